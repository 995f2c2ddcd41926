"""Several worker processes under their supervisor, which outlives them; they do not outlive it."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.e2e.processes import WorkerProcess, wait_until
from tests.e2e.scenes import Scene

pytestmark = pytest.mark.processes

LONG_LEASE = ("--processes", "2", "--lease", "600")
"""Recovery by the lease would take ten minutes: what is recovered here, the supervisor recovered."""


def test_a_killed_child_is_replaced_and_what_it_held_runs_again_at_once(scene: Scene) -> None:
    """B8: kill -9 of a child; nobody waits for the lease, and no retry is spent."""
    count = 40
    scene.enqueue("work", count, seconds=2.0)

    with scene.worker(*LONG_LEASE, "--concurrency", "20") as worker:
        scene.until_started(count)
        [victim, _] = worker.children
        victim.kill()
        scene.until_ended(count)
        worker.until_started(3)
        assert victim not in worker.children
        assert len(worker.children) == 2
        assert worker.stop() == 0

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert (verdict.duplicated, verdict.most_attempts, verdict.most_crashes) == (0, 1, 1)
    assert scene.counters()["recovered"] == 20


def test_children_get_the_signals_and_the_exit_code_is_theirs(scene: Scene) -> None:
    """I16 for several processes: SIGINT ends all in order; the tasks that remain are unspent."""
    scene.enqueue("work", 400, seconds=0.1)

    with scene.worker("--processes", "2", "--concurrency", "5") as worker:
        worker.until_started(2)
        scene.until_ended(10)
        worker.signal(signal.SIGINT)
        assert worker.ended() == 0
        assert worker.log.count("worker stopped") == 2

    assert scene.journal.count("start") == scene.journal.count("end") < 400
    info = scene.queue()
    assert (info.active, info.ready) == (0, 400 - scene.journal.count("end"))
    assert scene.verdict().most_attempts == 1


def test_workers_that_are_drained_end_in_order_and_are_not_replaced(scene: Scene) -> None:
    """From outside, whatever their grace period: what runs ends, what waits stays for others, exit 0."""
    scene.enqueue("work", 30, seconds=1.0)

    with scene.worker("--processes", "2", "--concurrency", "5", "--grace", "0.1") as worker:
        worker.until_started(2)
        scene.until_started(10)
        scene.steer(lambda inspector: inspector.drain())
        assert worker.ended() == 0
        assert worker.log.count("worker stopped") == worker.log.count("worker started") == 2

    assert scene.journal.count("start") == scene.journal.count("end") < 30
    info = scene.queue()
    assert (info.active, info.ready) == (0, 30 - scene.journal.count("end"))


def test_children_end_when_their_supervisor_is_killed(scene: Scene) -> None:
    with scene.worker("--processes", "2") as worker:
        worker.until_started(2)
        children = worker.children
        worker.kill()
        gone, alive = psutil.wait_procs(children, timeout=30)

        assert len(gone) == 2
        assert not alive
        assert worker.log.count("worker stopped") == 2  # in order, not by force


def test_after_quiet_a_dead_child_is_recovered_but_not_replaced(scene: Scene) -> None:
    scene.enqueue("work", 1, seconds=60.0)

    with scene.worker(*LONG_LEASE) as worker:
        worker.until_started(2)
        scene.until_started(1)
        worker.signal(signal.SIGUSR1)
        wait_until(lambda: worker.log.count("signal received") == 3, "everyone is quiet")
        busy = child_that_runs(worker, scene)
        busy.kill()
        wait_until(lambda: scene.queue().ready == 1, "its task is ready again")
        assert len(worker.children) == 1


def child_that_runs(worker: WorkerProcess, scene: Scene) -> psutil.Process:
    [record] = [record for record in scene.journal.read() if record.kind == "start"]
    [child] = [child for child in worker.children if child.pid == record.pid]
    return child
