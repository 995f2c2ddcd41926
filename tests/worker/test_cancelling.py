"""Cancelling what runs: the worker hears of it at once, surely soon, and what was asked for is final."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from streamq import GroupRule, Member, Retry, StreamQ, TaskContext, current_task
from streamq.broker import working
from streamq.broker.working import Entry
from streamq.errors import (
    AttemptCancelled,
    AttemptTimeout,
    OptionError,
    ResultNotKept,
    ServerError,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskInBatch,
    TaskNotFound,
)
from streamq.inspector import Inspector
from streamq.model.cancelling import CancelOutcome
from streamq.model.lanes import Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from streamq.worker.held import Source, Stop
from streamq.worker.worker import Worker
from tests.servers import Server
from tests.support import eventually, keys_of, live, make_worker, running
from tests.worker.test_outcomes import Errors, in_state, is_gone

OUTCOMES: tuple[CancelOutcome, ...] = ("archive", "delete", "retry")


class Waits:
    """A task that waits until it is cancelled, and says what it saw. Named ``waits``."""

    def __init__(self, app: StreamQ, **options: Any) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []

        @app.task(name="waits", **options)
        async def waits() -> None:
            self.started.append(current_task().id)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(current_task().id)
                raise

        self.enqueue = waits.enqueue


def deaf(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """One that neither hints nor the lease keeper tell of a cancel."""
    monkeypatch.setattr(worker.canceller, "hint", lambda _queue, _place: None)
    monkeypatch.setattr(worker.canceller, "apply", lambda _lane, _marks: 0)
    monkeypatch.setattr(worker.hints, "_on_cancelled", lambda _queue, _place: None)
    return worker


# A running handler


async def test_a_cancel_reaches_the_handler_that_is_meant_and_no_other(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """A123, B10: it sees asyncio's cancellation; the task is archived as cancelled, nothing is retried."""
    waits = Waits(app, retry=5)
    meant, other = await waits.enqueue(), await waits.enqueue()
    async with running(app, lease_ms=60_000):
        await eventually(lambda: len(waits.started) == 2)
        assert await meant.cancel() is False
        with pytest.raises(TaskCancelled, match="was cancelled"):
            await meant.result(timeout=20)
        assert waits.cancelled == [meant.id]
        assert (await inspector.task("default", other.id)).state is State.ACTIVE
        info = await inspector.task("default", meant.id)
        assert (info.state, info.reason, info.retried) == (State.ARCHIVED, Reason.CANCELLED, 0)
        assert not server.client().exists(keys_of(app).cancels)  # the mark has gone with the task
        counters = await inspector.counters("default")
        assert counters == {"cancelled": 1, "archived": 1}


async def test_a_hint_for_another_workers_task_costs_nothing(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """A123: who does not run the task asks nothing."""
    waits = Waits(app)
    await waits.enqueue()
    async with running(app, lease_ms=60_000) as worker:
        await eventually(lambda: waits.started)
        worker.canceller.hint("default", b"n999-0")
        worker.canceller.hint("nobody", b"n999-0")
        worker.canceller.hint("default", b"")
        assert await worker.canceller.run_once() == 0
        [mine] = worker.held.runs()
        worker.canceller.hint("default", b"n" + mine.entry.entry_id)
        assert await worker.canceller.run_once() == 0  # a hint alone decides nothing: there is no mark
        assert waits.cancelled == []


async def test_a_mark_is_carried_out_once_and_not_once_the_outcome_is_known(app: StreamQ) -> None:
    """A123: hint and lease keeper may both bring it; one that settles meets it in the script."""
    waits = Waits(app)
    await waits.enqueue()
    await waits.enqueue()
    async with running(app, lease_ms=60_000) as worker:
        await eventually(lambda: len(waits.started) == 2)
        told, settled = worker.held.runs()
        marks = {told.entry.entry_id: b"a0"}
        assert worker.canceller.apply(told.source.key, marks) == 1
        assert worker.canceller.apply(told.source.key, marks) == 0
        settled.outcome_recorded = True
        assert worker.canceller.apply(settled.source.key, {settled.entry.entry_id: b"a0"}) == 0
        settled.outcome_recorded = False
        await eventually(lambda: len(waits.cancelled) == 1)


async def test_a_cancelled_task_is_deleted_where_that_is_asked_for(
    app: StreamQ, inspector: Inspector
) -> None:
    """B10"""
    waits = Waits(app)
    handle = await waits.enqueue()
    async with running(app, lease_ms=60_000):
        await eventually(lambda: waits.started)
        waiting = asyncio.create_task(handle.result(timeout=20))
        await handle.cancel("delete")
        with pytest.raises(ResultNotKept):
            await waiting
        assert await is_gone(inspector, handle.id)
    assert await inspector.counters("default") == {"cancelled": 1}


async def test_a_cancelled_task_is_tried_again_only_where_that_is_asked_for(
    app: StreamQ, inspector: Inspector
) -> None:
    """B10: after the delay, and without spending a retry."""
    waits = Waits(app, retry=0)
    handle = await waits.enqueue()
    async with running(app, lease_ms=60_000):
        await eventually(lambda: len(waits.started) == 1)
        began_s = time.monotonic()
        await handle.cancel("retry", delay=0.3)
        info = await in_state(inspector, handle.id, State.RETRY)
        assert info.retried == 0
        await eventually(lambda: len(waits.started) == 2)
        assert time.monotonic() - began_s >= 0.3
        await handle.cancel()
        await in_state(inspector, handle.id, State.ARCHIVED)
    assert waits.started == waits.cancelled == [handle.id] * 2


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("ends", ["returns", "fails"])
async def test_what_was_asked_for_is_final_whatever_the_handler_does_then(
    app: StreamQ, inspector: Inspector, outcome: CancelOutcome, ends: str
) -> None:
    """B10: it swallows the cancellation and succeeds, or fails by itself; neither is an outcome any more."""
    errors = Errors()
    again = StreamQ(app.address, namespace=app.config.namespace, on_error=errors)
    ran: list[int] = []

    @again.task(name="stubborn", retry=Retry(5, delay=60), retention=60)
    async def stubborn() -> str:
        ran.append(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ends == "fails":
                raise ValueError("by itself") from None
        return "done"

    handle = await app.enqueue("stubborn", {}, retry=Retry(5, delay=60), retention=60)
    async with running(again, lease_ms=60_000):
        await eventually(lambda: ran)
        await handle.cancel(outcome, delay=60 if outcome == "retry" else None)
        if outcome == "delete":
            await eventually(lambda: is_gone(inspector, handle.id))
        else:
            state = State.ARCHIVED if outcome == "archive" else State.RETRY
            info = await in_state(inspector, handle.id, state)
            assert (info.retried, info.error) == (0, None)
    assert errors.told == []


async def test_a_cancel_that_no_hint_carries_arrives_with_the_leases(
    app: StreamQ, inspector: Inspector, server: Server, namespace: str
) -> None:
    """A123: the worker's user may not subscribe; the lease keeper reads the marks."""
    admin: Any = server.client()
    user = f"deaf-{namespace}"
    admin.execute_command("ACL", "SETUSER", user, "on", ">secret", "~*", "resetchannels", "+@all")
    worker_app = StreamQ(server.url.replace("//", f"//{user}:secret@"), namespace=namespace)
    waits = Waits(worker_app)
    handle = await app.enqueue("waits", {})
    try:
        async with running(worker_app, lease_ms=900):
            await eventually(lambda: waits.started)
            await handle.cancel()
            await in_state(inspector, handle.id, State.ARCHIVED)
        assert waits.cancelled == [handle.id]
    finally:
        admin.execute_command("ACL", "DELUSER", user)


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_a_handler_that_fails_before_its_worker_hears_of_the_cancel_is_not_retried(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch, outcome: CancelOutcome
) -> None:
    """B10: the script that settles finds the mark."""
    fails, ran = asyncio.Event(), asyncio.Event()

    @app.task(name="fails", retry=Retry(5, delay=60))
    async def failing() -> None:
        ran.set()
        await fails.wait()
        raise ValueError("by itself")

    handle = await failing.enqueue()
    async with live(deaf(make_worker(app), monkeypatch)):
        await ran.wait()
        await handle.cancel(outcome)
        fails.set()
        if outcome == "delete":
            await eventually(lambda: is_gone(inspector, handle.id))
        elif outcome == "archive":
            info = await in_state(inspector, handle.id, State.ARCHIVED)
            assert info.reason is Reason.CANCELLED
        else:
            ran.clear()
            await ran.wait()  # at once, and not after the minute of its own policy
    counters = await inspector.counters("default")
    assert counters["cancelled"] == 1
    assert "failed" not in counters or outcome == "retry"


async def test_a_task_that_is_cancelled_when_its_worker_ends_is_not_given_back(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B10: the worker has not heard of it and releases what it runs; the release finds the mark."""
    waits = Waits(app)
    handle = await waits.enqueue()
    async with live(deaf(make_worker(app), monkeypatch)):
        await eventually(lambda: waits.started)
        await handle.cancel()
    info = await inspector.task("default", handle.id)
    assert (info.state, info.reason) == (State.ARCHIVED, Reason.CANCELLED)


async def test_a_handler_that_succeeds_before_its_worker_hears_of_the_cancel_has_succeeded(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is done; the mark means nothing then."""
    ends, ran = asyncio.Event(), asyncio.Event()

    @app.task(name="ends", retention=60)
    async def ending() -> str:
        ran.set()
        await ends.wait()
        return "done"

    handle = await ending.enqueue()
    async with live(deaf(make_worker(app), monkeypatch)):
        await ran.wait()
        assert await handle.cancel() is False
        ends.set()
        assert await handle.result(timeout=20) == "done"


async def test_reading_the_marks_is_tried_again_after_a_failure(
    app: StreamQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamq.worker import canceller

    monkeypatch.setattr(canceller, "_RETRY_S", 0.01)
    waits = Waits(app)
    handle = await waits.enqueue()
    async with running(app, lease_ms=60_000) as worker:
        await eventually(lambda: waits.started)
        look, failures = worker.canceller.run_once, [ServerError("not now"), ServerError("nor now")]

        async def run_once() -> int:
            if failures:
                raise failures.pop()
            return await look()

        monkeypatch.setattr(worker.canceller, "run_once", run_once)
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=20)


# Handlers in threads


async def test_a_sync_handler_is_told_and_its_slot_stays_taken_until_it_ends(
    app: StreamQ, inspector: Inspector
) -> None:
    """B10, B11: it cannot be stopped from outside; ``current_task().cancelled`` says why it should end."""
    started, goes_on = threading.Event(), threading.Event()
    seen: list[str | None] = []

    @app.task(name="sync", retry=5)
    def sync() -> None:
        seen.append(current_task().cancelled)
        started.set()
        while current_task().cancelled is None:
            time.sleep(0.005)
        seen.append(current_task().cancelled)
        goes_on.wait(20)

    handle = await sync.enqueue()
    async with running(app, lease_ms=60_000) as worker:
        await eventually(started.is_set)
        await handle.cancel()
        await eventually(lambda: len(seen) == 2)
        assert worker.executor.running == 1
        goes_on.set()
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert seen == [None, "cancel"]
    assert (info.reason, info.retried) == (Reason.CANCELLED, 0)


class Looks:
    """A sync task that works on until it should not. Named ``looks``."""

    def __init__(self, app: StreamQ, **options: Any) -> None:
        self.started = threading.Event()
        self.said: list[str] = []

        @app.task(name="looks", **options)
        def looks() -> None:
            self.started.set()
            try:
                while True:
                    current_task().raise_if_cancelled()
                    time.sleep(0.005)
            except AttemptCancelled as error:
                self.said.append(str(error))
                raise

        self.enqueue = looks.enqueue


async def test_a_sync_handler_that_ends_when_told_is_cancelled(app: StreamQ, inspector: Inspector) -> None:
    """B10"""
    looks = Looks(app)
    handle = await looks.enqueue()
    async with running(app, lease_ms=60_000):
        await eventually(looks.started.is_set)
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=20)
    assert looks.said == ["the handler was told to stop (cancel)"]


async def test_a_sync_handler_sees_that_its_time_is_over(app: StreamQ, inspector: Inspector) -> None:
    """It counts as the timeout that it is."""
    looks = Looks(app, timeout=0.1, retry=0)
    handle = await looks.enqueue()
    async with running(app):
        with pytest.raises(TaskFailed, match=AttemptTimeout.__name__):
            await handle.result(timeout=20)
    assert looks.said == ["the handler was told to stop (timeout)"]


async def test_a_run_that_is_stopped_before_it_began_gives_its_slot_and_its_task_back(
    app: StreamQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are started by the loop, one turn later; what is cancelled before that runs no line."""
    deliveries, done = 0, asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        if deliveries == 1:
            await asyncio.Event().wait()
        done.set()

    worker = make_worker(app, concurrency=1)
    start = worker.executor.start

    def start_and_stop(source: Source, entries: list[Entry]) -> None:
        nonlocal deliveries
        deliveries += 1
        start(source, entries)
        if deliveries == 1:
            worker.executor.stop_runs(Stop.SHUTDOWN)

    monkeypatch.setattr(worker.executor, "start", start_and_stop)
    await task.enqueue()
    async with live(worker):
        await eventually(done.is_set)
        await eventually(lambda: worker.executor.running == 0)
    assert deliveries == 2


async def test_a_cancel_that_comes_after_the_timeout_decides(app: StreamQ, inspector: Inspector) -> None:
    """B10: the handler goes on for a while; that it failed is nobody's business any more."""
    goes_on, told = threading.Event(), list[BaseException]()

    def on_error(_context: TaskContext, error: BaseException) -> None:
        told.append(error)

    @app.task(name="slow", timeout=0.05, retry=5, on_error=on_error)
    def slow() -> None:
        goes_on.wait(20)

    handle = await slow.enqueue()
    async with running(app, lease_ms=60_000) as worker:
        await eventually(lambda: any(run.stop is Stop.TIMEOUT for run in worker.held.runs()))
        await handle.cancel()
        await eventually(lambda: worker.canceller.cancelled == 1)
        goes_on.set()
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.reason, info.retried) == (Reason.CANCELLED, 0)
    assert told == []


async def test_a_sync_handler_sees_that_its_worker_ends(app: StreamQ, inspector: Inspector) -> None:
    """Its task is given back, and no retry is spent."""
    looks = Looks(app, retry=0)
    handle = await looks.enqueue()
    async with running(app, grace_s=0):
        await eventually(looks.started.is_set)
    info = await inspector.task("default", handle.id)
    assert (info.state, info.retried) == (State.READY, 0)
    assert looks.said == ["the handler was told to stop (shutdown)"]


async def test_a_sync_handler_sees_that_another_worker_has_its_task(
    app: StreamQ, inspector: Inspector
) -> None:
    looks = Looks(app)
    await looks.enqueue()
    async with running(app, lease_ms=600) as worker:
        await eventually(looks.started.is_set)
        await inspector.pause("default")
        keys, day = keys_of(app), "20260101"
        await app.client.runner.run(
            working.recover(
                keys, Lane.NORMAL, day, "x", lease_ms=1, crash_limit=9, backoff_ms=1, dead=worker.id
            )
        )
        await eventually(lambda: looks.said)
    assert looks.said == ["the handler was told to stop (lost)"]


async def test_nothing_is_cancelled_while_a_handler_may_go_on(app: StreamQ) -> None:
    seen: list[str | None] = []

    @app.task(name="t")
    async def task() -> None:
        current_task().raise_if_cancelled()
        seen.append(current_task().cancelled)

    await task.enqueue()
    async with running(app):
        await eventually(lambda: seen == [None])


# What waits, and what is over


@pytest.mark.parametrize("delay", [None, 60])
async def test_a_waiting_task_is_cancelled_at_once(
    app: StreamQ, inspector: Inspector, delay: float | None
) -> None:
    """B10: without any worker."""
    handle = await app.enqueue("t", {}, delay=delay)
    assert await handle.cancel() is True
    with pytest.raises(TaskCancelled):
        await handle.result(timeout=1)
    assert (await handle.info()).reason is Reason.CANCELLED


async def test_cancel_is_the_same_from_handles_clients_and_the_inspector(
    app: StreamQ, inspector: Inspector
) -> None:
    """Blocking ones too."""

    def blocking(ids: list[str]) -> list[bool]:
        with app.sync() as client:
            handle = client.enqueue("t", {})
            done = [handle.cancel(), client.cancel("default", ids[0])]
            with pytest.raises(TaskFinished):
                handle.cancel("retry", delay=1)
            return [*done, handle.cancel("delete")]

    first, second, third = [await app.enqueue("t", {}) for _ in range(3)]
    assert await asyncio.to_thread(blocking, [first.id]) == [True, True, True]
    assert await app.client.cancel("default", second.id, outcome="delete") is True
    assert await inspector.cancel("default", third.id, outcome="retry", delay=60) is True
    assert (await inspector.task("default", third.id)).state is State.RETRY


async def test_what_cannot_be_cancelled_says_why(app: StreamQ, inspector: Inspector, server: Server) -> None:
    """Each with an error of its own."""
    handle = await app.enqueue("t", {})
    await handle.cancel()
    with pytest.raises(TaskFinished, match="nothing to cancel"):
        await handle.cancel()
    await handle.cancel("delete")
    with pytest.raises(TaskNotFound):
        await handle.cancel()
    batch = await app.enqueue("t", {})
    server.client().hset(keys_of(app).grouped.decode(), "member", f"={batch.id}")
    with pytest.raises(TaskInBatch, match=batch.id) as caught:
        await app.client.cancel("default", "member")
    assert caught.value.batch_id == batch.id


@pytest.mark.parametrize(
    "outcome, delay, field",
    [("drop", None, "outcome"), (None, None, "outcome"), ("archive", 1, "delay"), ("retry", -1, "delay")],
)
async def test_a_cancel_that_makes_no_sense_changes_nothing(
    app: StreamQ, outcome: Any, delay: Any, field: str
) -> None:
    handle = await app.enqueue("t", {})
    with pytest.raises(OptionError) as caught:
        await handle.cancel(outcome, delay=delay)
    assert caught.value.field == field
    assert (await handle.info()).state is State.READY


# Groups


async def test_a_cancelled_member_is_not_in_the_batch_of_its_group(app: StreamQ) -> None:
    """B10: while it waits; the others go on without it."""
    seen: list[list[Any]] = []

    @app.batch_task(name="batch", group_rule=GroupRule(grace=3600, max_delay=None, max_size=2))
    async def batch(members: list[Member]) -> None:
        seen.append([member.args[0] for member in members])

    first = await batch.in_group("g").enqueue(1)
    assert await first.cancel() is True
    assert (await first.info()).reason is Reason.CANCELLED
    for number in (2, 3):
        await batch.in_group("g").enqueue(number)
    async with running(app):
        await eventually(lambda: seen == [[2, 3]])


async def test_a_batch_that_runs_is_cancelled_as_one_and_its_members_with_it(
    app: StreamQ, inspector: Inspector
) -> None:
    """B10: a member names its batch, and whoever waits for a member hears of the cancel."""
    cancelled = asyncio.Event()
    batches: list[str] = []

    @app.batch_task(name="batch", group_rule=GroupRule(grace=0.05), retention=60)
    async def batch(members: list[Member]) -> None:
        batches.append(current_task().id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    handles = [await batch.in_group("g").enqueue(number) for number in range(2)]
    async with running(app, lease_ms=60_000):
        await eventually(lambda: batches)
        with pytest.raises(TaskInBatch) as caught:
            await handles[0].cancel()
        assert caught.value.batch_id == batches[0]
        assert await app.client.cancel("default", batches[0]) is False
        await cancelled.wait()
        for handle in handles:
            with pytest.raises(TaskCancelled):
                await handle.result(timeout=20)


async def test_members_that_expired_are_counted(app: StreamQ, inspector: Inspector) -> None:
    """B23: those that are archived beside their batch."""
    seen: list[list[Any]] = []

    @app.batch_task(name="batch", group_rule=GroupRule(grace=0.05))
    async def batch(members: list[Member]) -> None:
        seen.append([member.args[0] for member in members])

    late = await batch.options(group="g", expires=0).enqueue(1)
    await batch.in_group("g").enqueue(2)
    async with running(app):
        info = await in_state(inspector, late.id, State.ARCHIVED)
    assert info.reason is Reason.EXPIRED
    assert seen == [[2]]
    assert await inspector.counters("default") == {"expired": 1, "archived": 1, "processed": 1}


# Expiry


async def test_an_expired_task_is_dropped_where_that_is_asked_for(app: StreamQ, inspector: Inspector) -> None:
    """B23: it never ran, nothing of it is kept, and it is counted."""
    ran: list[int] = []

    @app.task(name="t", on_expiry="drop")
    async def task() -> None:
        ran.append(1)

    dropped = await task.options(expires=0).enqueue()
    kept = await task.options(expires=0, on_expiry="archive").enqueue()
    fresh = await task.enqueue()
    async with running(app):
        await eventually(lambda: is_gone(inspector, dropped.id))
        await in_state(inspector, kept.id, State.ARCHIVED)
        await eventually(lambda: is_gone(inspector, fresh.id))
        await eventually(lambda: ran == [1])
    assert await inspector.counters("default") == {"expired": 2, "archived": 1, "processed": 1}


async def test_a_task_that_expires_before_its_next_attempt_is_not_tried_again(
    app: StreamQ, inspector: Inspector
) -> None:
    """B23: too late is too late, also for a retry."""
    ran: list[int] = []

    @app.task(name="t", retry=Retry(5, delay=0.3))
    async def task() -> None:
        ran.append(1)
        raise ValueError

    handle = await task.options(expires=0.25, on_expiry="drop").enqueue()
    async with running(app):
        await eventually(lambda: is_gone(inspector, handle.id))
    assert ran == [1]
