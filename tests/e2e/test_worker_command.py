"""One worker process: it runs tasks, ends when it is told to, and spends nothing by ending."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from streamq.model.states import State
from tests.e2e.processes import wait_until
from tests.e2e.scenes import Scene

pytestmark = pytest.mark.processes


def test_the_command_runs_tasks_also_those_that_handlers_enqueue(scene: Scene) -> None:
    scene.enqueue("enqueue-another", 5)

    with scene.worker() as worker:
        scene.until_ended(10)
        assert worker.stop() == 0

    assert not scene.verdict().lost
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_worker_without_duplicates_or_spent_attempts(
    scene: Scene, number: signal.Signals
) -> None:
    """I16, A127: handlers shorter than the grace period end; what had not begun stays for others."""
    scene.enqueue("work", 300, seconds=0.2)

    with scene.worker("--concurrency", "20") as first:
        scene.until_ended(40)
        first.signal(number)
        assert first.ended() == 0
        assert scene.journal.count("start") == scene.journal.count("end") < 300
    with scene.worker("--concurrency", "100"):
        scene.until_ended(300)

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert (verdict.duplicated, verdict.most_attempts, verdict.most_crashes) == (0, 1, 0)


def test_handlers_longer_than_the_grace_period_are_given_back_unspent(scene: Scene) -> None:
    [task_id] = scene.enqueue("work", 1, seconds=60.0)

    with scene.worker("--grace", "0.2") as worker:
        scene.until_started(1)
        assert worker.stop() == 0

    info = scene.info(task_id)
    assert (info.state, info.retried, info.crashes) == (State.READY, 0, 0)


def test_a_drained_worker_exits_as_one_that_was_stopped(scene: Scene) -> None:
    with scene.worker() as worker:
        worker.until_started()
        scene.steer(lambda inspector: inspector.drain())
        assert worker.ended() == 0


def test_a_second_signal_does_not_wait_for_the_grace_period(scene: Scene) -> None:
    """A127: SIGTERM twice; the long handler is cancelled and its task given back."""
    [task_id] = scene.enqueue("work", 1, seconds=600.0)

    with scene.worker("--grace", "600") as worker:
        scene.until_started(1)
        worker.signal(signal.SIGTERM)
        wait_until(lambda: "signal received" in worker.log, "the first signal is noticed")
        assert worker.process.poll() is None
        assert worker.stop() == 0

    assert scene.info(task_id).state is State.READY


def test_a_thread_that_cannot_be_stopped_does_not_keep_the_process(scene: Scene) -> None:
    """Its task is given back, and the process leaves with the thread in it."""
    [task_id] = scene.enqueue("block", 1, seconds=600.0)

    with scene.worker("--grace", "0.1") as worker:
        scene.until_started(1)
        assert worker.stop() == 0
        assert "handlers behind that do not end" in worker.log

    assert scene.info(task_id).state is State.READY


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTSTP])
def test_a_quiet_worker_ends_what_runs_and_takes_nothing_more(scene: Scene, number: signal.Signals) -> None:
    scene.enqueue("work", 1, seconds=1.0)

    with scene.worker() as worker:
        scene.until_started(1)
        worker.signal(number)
        wait_until(lambda: "signal received" in worker.log, "the signal is noticed")
        scene.until_nobody_reads()
        [late] = scene.enqueue("work", 1)
        scene.until_ended(1)
        assert worker.process.poll() is None
        assert scene.info(late).state is State.READY
        assert worker.stop() == 0

    assert scene.info(late).state is State.READY


def test_workers_are_replaced_one_by_one_without_a_loss_or_a_second_run(scene: Scene) -> None:
    """F11: a rolling deploy under load."""
    with ExitStack() as stack:
        old = [stack.enter_context(scene.worker("--concurrency", "5")) for _ in range(2)]
        for worker in old:
            worker.until_started()
            new = stack.enter_context(scene.worker("--concurrency", "5"))
            new.until_started()
            before = scene.journal.count("end")
            scene.enqueue("work", 500, seconds=0.02)
            scene.until_ended(before + 20)  # everyone is at it
            assert worker.stop() == 0
        scene.until_ended(1_000)

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected
    assert (verdict.duplicated, verdict.most_attempts, verdict.most_crashes) == (0, 1, 0)
