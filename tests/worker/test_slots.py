"""The executor's slots: whatever ends a run, its slot is free again."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamq.broker.address import Address
from streamq.broker.keys import Keys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import Entry
from streamq.clock import ServerClock
from streamq.codec import encode_message, encode_payload
from streamq.model.definition import Definition
from streamq.model.lanes import Lane
from streamq.model.limits import DEFAULT_LIMITS
from streamq.model.message import Message
from streamq.model.retry import DEFAULT_RETRY
from streamq.worker.executor import Executor
from streamq.worker.held import Held, Run, Source, Stop
from streamq.worker.limiter import Limiter
from streamq.worker.outcome import RELEASE, Outcome


class Outcomes:
    """Takes the place of the settler."""

    def __init__(self) -> None:
        self.taken: list[Outcome] = []
        self.held = Held()

    def settle(self, run: Run, outcome: Outcome) -> None:
        run.outcome_recorded = True
        self.held.remove(run)
        self.taken.append(outcome)


def executor_for(handler: Callable[[], Any], outcomes: Outcomes) -> Executor:
    """One slot, and this handler for tasks of the type t."""
    is_async = inspect.iscoroutinefunction(handler)
    definition = Definition("t", handler, is_async, DEFAULT_RETRY, timeout_ms=None, retention_ms=0)
    return Executor(
        {"t": definition},
        outcomes,
        outcomes.held,
        ServerClock(),
        concurrency=1,
        limits=DEFAULT_LIMITS,
        limiter=Limiter(AsyncRunner(Address.parse("redis://localhost:1")), "w1"),
    )


def start(executor: Executor) -> None:
    message = encode_message(Message.new(type="t", payload=encode_payload((), {})))
    source = Source(Keys().queue("default"), Lane.NORMAL)
    executor.start(source, [Entry(Lane.NORMAL, b"1-0", b"a", message, Lane.NORMAL, 0)])


@pytest.fixture
def _collected_by_hand() -> Iterator[None]:
    """What the garbage collector finds is kept, to be looked at."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()


@pytest.mark.usefixtures("_collected_by_hand")
async def test_a_run_that_ended_leaves_nothing_for_the_garbage_collector() -> None:
    """A ring of references for every task would cost more than running a short one."""
    ran: list[bool] = []

    async def handler() -> None:
        await asyncio.sleep(0)
        ran.append(True)

    executor = executor_for(handler, Outcomes())
    start(executor)
    async with asyncio.timeout(5):
        await executor.wait_idle()
    await asyncio.sleep(0)
    gc.collect()
    assert ran
    assert [one for one in gc.garbage if isinstance(one, Run | Message)] == []


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_run_stopped_before_its_first_step_is_given_back_with_its_slot(
    monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Where tasks do not start eagerly (Python 3.11), a stop can come before a handler has begun."""
    monkeypatch.setattr("streamq.worker.executor._EAGER", False)
    ran: list[str] = []

    async def handler() -> None:
        ran.append("async")

    def plain_handler() -> None:
        ran.append("sync")

    outcomes = Outcomes()
    executor = executor_for(handler if is_async else plain_handler, outcomes)
    start(executor)
    executor.stop_runs(Stop.SHUTDOWN)
    async with asyncio.timeout(5):
        await executor.wait_idle()
    assert (outcomes.taken, ran, executor.free) == ([RELEASE], [], 1)
