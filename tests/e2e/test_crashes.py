"""Workers that die or freeze: nothing is lost, no retry is spent, and the stale are refused."""

from __future__ import annotations

import signal

import pytest

from streamq.errors import TaskNotFound
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.e2e.processes import wait_until
from tests.e2e.scenes import QUEUE, Scene

pytestmark = [pytest.mark.processes, pytest.mark.slow]

MANY = 20_000
SLOTS = 50
LEASE = ("--lease", "1.5", "--concurrency", str(SLOTS))


def test_a_worker_killed_among_many_tasks_loses_none_and_spends_no_retry(scene: Scene) -> None:
    """B8, I1, I3, I13: what it held runs again elsewhere, one crash later, and nothing more than that.

    At most its slots are run twice, and what had ended but was not settled yet: outcomes go out with
    the next round trip, so that is at most another fetch of slots.
    """
    scene.enqueue("work", MANY, seconds=0.01)

    with scene.worker(*LEASE) as victim, scene.worker(*LEASE):
        victim.until_started()
        scene.until_ended(500)
        victim.kill()
        scene.until_ended(MANY)
        scene.until_drained()

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected
    assert verdict.duplicated <= 2 * SLOTS
    assert (verdict.most_attempts, verdict.most_crashes) == (1, 1)
    counters = scene.counters()
    assert 1 <= counters["recovered"] <= 2 * SLOTS
    assert counters["processed"] == MANY  # each was settled once, however often it ran
    assert counters.get("failed", 0) == 0


def test_a_task_that_kills_its_worker_each_time_is_archived_at_the_crash_limit(scene: Scene) -> None:
    """B9, I6: the supervisor replaces the worker each time, and the queue works on."""
    [poison] = scene.enqueue("die", 1)

    with scene.worker("--processes", "2", "--crash-limit", "1", "--lease", "60") as worker:
        wait_until(lambda: scene.info(poison).state is State.ARCHIVED, "the poison task is archived")
        scene.enqueue("work", 20)
        scene.until_ended(20)
        assert worker.process.poll() is None

    info = scene.info(poison)
    assert (info.reason, info.crashes, info.retried) == (Reason.CRASHED, 2, 0)
    assert sum(record.task_id == poison for record in scene.journal.read() if record.kind == "start") == 2
    verdict = scene.verdict()
    assert verdict.lost == {poison}  # known, kept with its bytes, and never ended


@pytest.mark.parametrize("wakes", [False, True])
def test_a_cancel_is_final_though_its_worker_dies_before_it_hears_of_it(scene: Scene, wakes: bool) -> None:
    """B10: frozen, cancelled, and killed or woken when another has recovered what it held.

    Neither runs the tasks again; what the one that wakes comes to is refused.
    """
    kept, deleted = scene.enqueue("work", 2, seconds=3.0)
    with scene.worker("--lease", "0.9") as victim:
        scene.until_started(2)
        victim.signal(signal.SIGSTOP)
        scene.steer(lambda inspector: inspector.cancel(QUEUE, kept))
        scene.steer(lambda inspector: inspector.cancel(QUEUE, deleted, outcome="delete"))
        with scene.worker("--lease", "0.9") as other:
            wait_until(lambda: scene.counters().get("cancelled") == 2, "both are carried out")
            if wakes:
                victim.signal(signal.SIGCONT)
                wait_until(lambda: "lost" in victim.log, "it notices that it was taken for dead")
                assert victim.stop() == 0
            else:
                victim.kill()
            assert other.stop() == 0

    assert scene.journal.count("start") == 2
    info = scene.info(kept)
    assert (info.state, info.reason) == (State.ARCHIVED, Reason.CANCELLED)
    with pytest.raises(TaskNotFound):
        scene.info(deleted)
    assert scene.counters() == {"archived": 1, "cancelled": 2}


def test_a_worker_frozen_past_its_lease_is_refused_when_it_wakes(scene: Scene) -> None:
    """B6, I3, I12: SIGSTOP for longer than the lease, then SIGCONT.

    Its tasks were given to another worker. What it ends after waking changes nothing: each task is
    counted as processed once.
    """
    count = 10
    scene.enqueue("work", count, seconds=1.0)
    with scene.worker("--lease", "0.9", "--concurrency", str(count)) as frozen:
        scene.until_started(count)
        frozen.signal(signal.SIGSTOP)
        with scene.worker("--lease", "0.9", "--concurrency", str(count)) as other:
            scene.until_ended(count)
            scene.until_drained()
            frozen.signal(signal.SIGCONT)
            wait_until(lambda: "lost" in frozen.log, "it notices that it was taken for dead")
            assert other.stop() == 0
        [late] = scene.enqueue("work", 1)
        scene.until_ended(count + 1)
        scene.until_drained()
        assert frozen.stop() == 0

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert verdict.duplicated <= count
    assert (verdict.most_attempts, verdict.most_crashes) == (1, 1)
    counters = scene.counters()
    assert counters["processed"] == count + 1
    assert counters["recovered"] == count
    assert late in scene.ended()
