"""The executor's slots: whatever ends a run, its slot is free again."""

from __future__ import annotations

import asyncio

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

    def settle(self, run: Run, outcome: Outcome) -> None:
        run.outcome_recorded = True
        self.taken.append(outcome)


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
    definition = Definition(
        "t", handler if is_async else plain_handler, is_async, DEFAULT_RETRY, timeout_ms=None, retention_ms=0
    )
    executor = Executor(
        {"t": definition},
        outcomes,
        Held(),
        ServerClock(),
        concurrency=1,
        limits=DEFAULT_LIMITS,
        limiter=Limiter(AsyncRunner(Address.parse("redis://localhost:1")), "w1"),
    )
    message = encode_message(Message.new(type="t", payload=encode_payload((), {})))
    source = Source(Keys().queue("default"), Lane.NORMAL)
    executor.start(source, [Entry(Lane.NORMAL, b"1-0", b"a", message, Lane.NORMAL, 0)])
    executor.stop_runs(Stop.SHUTDOWN)
    async with asyncio.timeout(5):
        await executor.wait_idle()
    assert (outcomes.taken, ran, executor.free) == ([RELEASE], [], 1)
