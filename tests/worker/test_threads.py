"""The threads for sync handlers."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

import pytest

from streamq.worker import threads as threads_module
from streamq.worker.threads import Threads
from tests.support import eventually

_others: set[threading.Thread] = set()


def names() -> int:
    """Handler threads of this test; those of earlier ones may still idle."""
    ours = set(threading.enumerate()) - _others
    return sum(thread.name == "streamq-handler" for thread in ours)


@pytest.fixture(autouse=True)
def short_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "_IDLE_S", 0.2)
    _others.update(threading.enumerate())


async def test_threads_are_started_as_needed_reused_and_end_when_idle() -> None:
    before = names()
    threads = Threads(4)
    for number in range(20):
        assert await threads.submit(lambda number=number: number * 2) == number * 2  # type: ignore[misc]
    assert names() - before <= 2  # one after the other: hardly ever more than one
    await eventually(lambda: names() == before)
    assert await threads.submit(lambda: "again") == "again"
    await eventually(lambda: names() == before)


async def test_as_many_jobs_run_at_once_as_there_are_threads_and_no_more() -> None:
    threads = Threads(3)
    barrier = threading.Barrier(3)
    at_once = most = 0
    lock = threading.Lock()

    def job() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        barrier.wait(20)
        with lock:
            at_once -= 1

    await asyncio.gather(*(threads.submit(job) for _ in range(9)))
    assert most == 3


class SlowQueue:
    """Hands a job over only after the next one has come: a thread then looks idle, but is not."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._put = 0
        self._changed = threading.Condition()

    def put(self, job: Any) -> None:
        self._jobs.put(job)
        with self._changed:
            self._put += 1
            self._changed.notify_all()

    def get(self, timeout: float) -> Any:
        job = self._jobs.get(timeout=timeout)
        with self._changed:
            assert self._changed.wait_for(lambda: self._put >= 2, 10)
        return job


async def test_a_job_does_not_wait_for_a_thread_that_only_looks_idle() -> None:
    threads = Threads(2)
    threads._jobs = SlowQueue()  # type: ignore[assignment]
    met = threading.Barrier(2)
    async with asyncio.timeout(10):
        await asyncio.gather(threads.submit(lambda: met.wait(5)), threads.submit(lambda: met.wait(5)))


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(2), KeyboardInterrupt()], ids=repr)
async def test_what_a_job_raises_reaches_its_future_and_the_thread_lives(error: BaseException) -> None:
    threads = Threads(1)

    def fail() -> None:
        raise error

    answer = threads.submit(fail)
    await asyncio.wait([answer])
    assert answer.exception() is error
    assert await threads.submit(lambda: 1) == 1


async def test_a_job_whose_waiter_is_gone_disturbs_nobody() -> None:
    threads = Threads(1)
    started, ends = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        ends.wait(20)

    answer = threads.submit(job)
    await eventually(started.is_set)
    answer.cancel()
    ends.set()
    assert await threads.submit(lambda: "next") == "next"


def test_a_job_that_outlives_its_loop_ends_quietly() -> None:
    threads = Threads(1)
    ends = threading.Event()

    async def leave() -> None:
        threads.submit(lambda: ends.wait(20))

    asyncio.run(leave())
    ends.set()
    asyncio.run(eventually(lambda: names() == 0))
