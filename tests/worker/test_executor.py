"""The executor: what a handler gets, how long it may take, and what cannot even be started."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from streamq import Retry, StreamQ, current_task
from streamq.broker.inspecting import find
from streamq.codec import encode_message, encode_payload
from streamq.errors import AttemptTimeout, PayloadError, UsageError
from streamq.inspector import Inspector
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.parked import Reason
from streamq.model.states import State
from streamq.worker.context import TaskContext
from tests.servers import Server
from tests.support import eventually, keys_of, make_worker, running
from tests.worker.test_outcomes import Errors, in_state, is_gone

# Arguments


async def test_arguments_arrive_exactly_as_they_were_given(app: StreamQ) -> None:
    """A50: integers beyond 2**53 too."""
    sent: dict[str, Any] = {
        "large": 2**53 + 1,
        "larger": -(2**80) - 1,
        "raw": b"\x00\xff",
        "money": Decimal("10.10"),
        "when": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "who": UUID(int=5),
        "nested": {"a": [1, None, True, {"b": 1.5}]},
        "text": "größe 漢字 🚀",
    }
    got: list[dict[str, Any]] = []

    @app.task(name="take")
    async def take(number: int, **rest: Any) -> None:
        got.append({"number": number, **rest})

    await take.enqueue(2**64 + 3, **sent)
    async with running(app):
        await eventually(lambda: got)
    assert got == [{"number": 2**64 + 3, **sent}]
    assert type(got[0]["large"]) is int


# The context


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "sync"])
async def test_a_handler_can_ask_about_its_task(app: StreamQ, *, in_thread: bool) -> None:
    """A66: id, type, queue, headers, attempt, retries left to spend; also from a thread."""
    seen: list[TaskContext] = []
    retry = Retry(max_retries=7, delay=0)

    def look() -> None:
        seen.append(current_task())
        if current_task().attempt == 1:
            raise ValueError("again")

    async def alook() -> None:
        look()

    task = app.task(name="look", retry=retry, headers={"a": "1"})(look if in_thread else alook)
    handle = await task.options(headers={"b": "2"}).enqueue()
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    first, second = seen
    assert (first.id, first.type, first.queue) == (handle.id, "look", "default")
    assert first.headers == {"a": "1", "b": "2"}
    assert (first.attempt, first.retried, second.attempt, second.retried) == (1, 0, 2, 1)
    assert (first.max_retries, first.crashes) == (7, 0)
    assert first.enqueued_at is not None
    assert abs(first.enqueued_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert handle.id in repr(first)


async def test_there_is_no_current_task_outside_of_a_handler(app: StreamQ) -> None:
    """A66: neither in plain code, nor in the worker's own code after a handler ran, nor in a hook's tasks."""
    with pytest.raises(UsageError, match="current_task"):
        current_task()
    ran = asyncio.Event()

    @app.task(name="run")
    async def run() -> None:
        ran.set()

    await run.enqueue()
    async with running(app):
        await ran.wait()
        with pytest.raises(UsageError, match="current_task"):
            current_task()


async def test_tasks_that_run_side_by_side_each_see_themselves(app: StreamQ) -> None:
    """A66: also after waiting, and in tasks that the handler starts."""
    meeting = asyncio.Barrier(5)
    seen: list[tuple[str, str, str]] = []

    @app.task(name="meet")
    async def meet(name: str) -> None:
        await meeting.wait()

        async def child() -> str:
            return current_task().id

        seen.append((name, current_task().id, await asyncio.create_task(child())))

    for number in range(5):
        await meet.options(task_id=f"t{number}").enqueue(f"t{number}")
    async with running(app):
        await eventually(lambda: len(seen) == 5)
    assert all(name == own == childs for name, own, childs in seen)


async def test_the_lifespan_surrounds_all_tasks_and_handlers_see_what_it_yields(
    server: Server, namespace: str
) -> None:
    """A67: StreamQ's base context is the app's lifespan; sync handlers see it too."""
    events: list[Any] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, int]]:
        events.append("open")
        yield {"pool": 5}
        events.append("close")

    app = StreamQ(server.url, namespace=namespace, lifespan=lifespan)

    @app.task(name="a")
    async def in_loop() -> None:
        events.append(("async", current_task().state["pool"]))

    @app.task(name="b")
    def in_thread() -> None:
        events.append(("sync", current_task().state["pool"]))

    async with app:
        await in_loop.enqueue()
        await in_thread.enqueue()
        async with running(app):
            await eventually(lambda: len(events) == 3)
    assert (events[0], events[-1]) == ("open", "close")
    assert set(events[1:-1]) == {("async", 5), ("sync", 5)}


async def test_a_lifespan_that_fails_ends_the_worker_with_its_error(
    app: StreamQ, inspector: Inspector
) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    worker = make_worker(app, lifespan=lifespan)
    with pytest.raises(OSError, match="no database"):
        await worker.run()
    assert await inspector.workers() == []


async def test_context_variables_of_a_handler_do_not_leak_into_the_next(app: StreamQ) -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="clean")
    seen: list[str] = []

    @app.task(name="a")
    async def soil() -> None:
        seen.append(mine.get())
        mine.set("dirty")

    @app.task(name="b")
    def soil_in_thread() -> None:
        seen.append(mine.get())
        mine.set("dirty")

    for _ in range(3):
        await soil.enqueue()
        await soil_in_thread.enqueue()
    async with running(app, concurrency=1):
        await eventually(lambda: len(seen) == 6)
    assert seen == ["clean"] * 6


# Threads


async def test_sync_handlers_run_in_threads_side_by_side_and_the_loop_goes_on(app: StreamQ) -> None:
    meeting = threading.Barrier(4)
    names: set[str] = set()

    @app.task(name="meet")
    def meet() -> None:
        meeting.wait(20)
        names.add(threading.current_thread().name)

    for _ in range(4):
        await meet.enqueue()
    async with running(app, concurrency=4) as worker:
        await eventually(lambda: names and not worker.executor.running)
    assert names == {"streamq-handler"}
    assert meeting.broken is False


async def test_sync_handlers_never_outnumber_the_slots(app: StreamQ) -> None:
    lock = threading.Lock()
    at_once = most = done = 0

    @app.task(name="count")
    def count() -> None:
        nonlocal at_once, most, done
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.002)
        with lock:
            at_once -= 1
            done += 1

    await app.enqueue_many([count.call()] * 60)
    async with running(app, concurrency=3):
        await eventually(lambda: done == 60)
    assert most <= 3


# Time limits


async def test_a_timeout_of_milliseconds_cuts_the_attempt_off_and_never_early(
    app: StreamQ, inspector: Inspector
) -> None:
    """B21: 300 ms."""
    lasted: list[float] = []

    @app.task(name="slow", timeout=0.3, retry=0)
    async def slow() -> None:
        began = time.monotonic()
        try:
            await asyncio.Event().wait()
        finally:
            lasted.append(time.monotonic() - began)

    handle = await slow.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert info.error == "AttemptTimeout: the attempt ran past its timeout or deadline"
    assert lasted[0] >= 0.295  # the timer starts a turn of the loop after the handler


async def test_no_timeout_means_no_limit(app: StreamQ) -> None:
    """B22: for the definition, for the call, and no timer runs at all."""
    running_now: list[TaskContext] = []
    ends = asyncio.Event()

    @app.task(name="long", timeout=None)
    async def long() -> None:
        running_now.append(current_task())
        await ends.wait()

    @app.task(name="short", timeout=0.05)
    async def short() -> None:
        running_now.append(current_task())
        await ends.wait()

    await long.enqueue()
    await short.options(timeout=None).enqueue()
    async with running(app) as worker:
        await eventually(lambda: len(running_now) == 2)
        await asyncio.sleep(0)
        assert [run.timer for run in worker.held.runs()] == [None, None]
        assert worker.executor.running == 2
        ends.set()


@pytest.mark.parametrize(
    "timeout, deadline, expected",
    [
        (20, None, 20),
        (None, 40, 40),
        (20, 40, 20),
        (60, 40, 40),
        (40, 40, 40),
        ("unset", None, 1800),
        ("unset", 40, 40),
        ("unset", 7200, 7200),
    ],
)
async def test_the_earlier_of_timeout_and_deadline_limits_the_attempt(
    app: StreamQ, timeout: Any, deadline: int | None, expected: float
) -> None:
    """A64: the default of half an hour holds only where neither is given."""
    started, ends = asyncio.Event(), asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        started.set()
        await ends.wait()

    options: dict[str, Any] = {} if timeout == "unset" else {"timeout": timeout}
    if deadline is not None:
        options["deadline"] = datetime.now(UTC) + timedelta(seconds=deadline)
    if timeout is None and deadline is not None:
        options["timeout"] = None
    await task.options(**options).enqueue()
    async with running(app) as worker:
        await started.wait()
        [run] = worker.held.runs()
        await eventually(lambda: run.timer)
        assert run.timer is not None
        left_s = run.timer.when() - asyncio.get_running_loop().time()
        ends.set()
    assert expected - 15 < left_s <= expected + 1


async def test_the_limit_is_what_the_handler_reads_as_its_deadline(app: StreamQ) -> None:
    """A66: the earlier of timeout and deadline."""
    seen: list[datetime | None] = []

    @app.task(name="t", timeout=60)
    async def task() -> None:
        seen.append(current_task().deadline)

    before = datetime.now(UTC)
    await task.enqueue()
    async with running(app):
        await eventually(lambda: seen)
    assert seen[0] is not None
    assert timedelta(seconds=59) < seen[0] - before < timedelta(seconds=80)


async def test_a_task_whose_deadline_has_passed_is_not_started(app: StreamQ, inspector: Inspector) -> None:
    """A65: Asynq starts it with a context that is done already; StreamQ archives it with the reason."""
    ran: list[int] = []

    @app.task(name="t", retry=5)
    async def task() -> None:
        ran.append(1)

    handle = await task.options(deadline=datetime.now(UTC) - timedelta(seconds=1)).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert info.reason is Reason.FAILED
    assert "AttemptTimeout" in (info.error or "")
    assert ran == []


async def test_a_task_that_expired_while_it_waited_is_not_started(app: StreamQ, inspector: Inspector) -> None:
    """B23"""
    ran: list[int] = []

    @app.task(name="t")
    async def task() -> None:
        ran.append(1)

    handle = await task.options(expires=datetime.now(UTC) - timedelta(seconds=1)).enqueue()
    fresh = await task.options(expires=60).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
        await eventually(lambda: is_gone(inspector, fresh.id))
    assert info.reason is Reason.EXPIRED
    assert ran == [1]


async def test_a_sync_handler_that_overruns_keeps_its_slot_until_it_really_ends(
    app: StreamQ, inspector: Inspector
) -> None:
    """B11: with one slot nothing else starts meanwhile, and its own retry never overlaps it."""
    release = threading.Event()
    lock = threading.Lock()
    at_once = most = attempts = 0
    others: list[int] = []

    @app.task(name="stubborn", timeout=0.05, retry=Retry(max_retries=1, delay=0))
    def stubborn() -> None:
        nonlocal at_once, most, attempts
        with lock:
            attempts += 1
            at_once += 1
            most = max(most, at_once)
        release.wait(30)
        with lock:
            at_once -= 1

    @app.task(name="other")
    async def other() -> None:
        others.append(1)

    handle = await stubborn.enqueue()
    async with running(app, concurrency=1) as worker:
        await eventually(lambda: attempts == 1)
        await other.enqueue()
        [run] = worker.held.runs()
        await eventually(lambda: run.stop, "the time limit has struck")
        assert (await inspector.task("default", handle.id)).state is State.ACTIVE
        assert worker.executor.free == 0
        assert others == []
        release.set()
        await eventually(lambda: is_gone(inspector, handle.id), "its retry, which takes no time, succeeded")
        await eventually(lambda: others == [1])
    assert (attempts, most) == (2, 1)


async def test_an_async_handler_that_ignores_its_cancellation_keeps_its_slot(
    app: StreamQ, inspector: Inspector
) -> None:
    """B11"""
    ends, told = asyncio.Event(), asyncio.Event()

    @app.task(name="deaf", timeout=0.05, retry=0)
    async def deaf() -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                told.set()
        raise ValueError("gave up at last")

    handle = await deaf.enqueue()
    async with running(app, concurrency=1) as worker:
        await told.wait()
        assert worker.executor.free == 0
        assert (await inspector.task("default", handle.id)).state is State.ACTIVE
        ends.set()
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("AttemptTimeout")


async def test_a_timeout_is_told_to_the_hook_as_such(app: StreamQ, inspector: Inspector) -> None:
    errors = Errors()

    @app.task(name="slow", timeout=0.02, retry=0)
    async def slow() -> None:
        await asyncio.Event().wait()

    handle = await slow.enqueue()
    async with running(app, on_error=errors):
        await in_state(inspector, handle.id, State.ARCHIVED)
    [(_, error)] = errors.told
    assert isinstance(error, AttemptTimeout)


async def test_a_handler_that_cancels_itself_has_failed(app: StreamQ, inspector: Inspector) -> None:
    """Nobody told it to stop: it is neither a timeout nor a shutdown."""

    @app.task(name="odd", retry=0)
    async def odd() -> None:
        raise asyncio.CancelledError

    handle = await odd.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("CancelledError")


# What cannot be read


def stored(**fields: Any) -> bytes:
    return encode_message(Message.new(**{"type": "fine", "payload": encode_payload((), {}), **fields}))


def newer() -> bytes:
    import cbor2

    return cbor2.dumps({"v": 99, "t": "fine", "p": b""})


MALFORMED: dict[str, dict[str, bytes]] = {
    "no fields of ours": {"foo": b"bar"},
    "no message": {"id": b"bad"},
    "no id": {"m": stored()},
    "not CBOR": {"id": b"bad", "m": b"\xff\xff\xff"},
    "empty message": {"id": b"bad", "m": b""},
    "not a map": {"id": b"bad", "m": b"\x01"},
    "deep": {"id": b"bad", "m": b"\x81" * 100_000},
    "newer version": {"id": b"bad", "m": newer()},
    "bad payload": {"id": b"bad", "m": stored(payload=b"\xff")},
    "payload of another shape": {"id": b"bad", "m": stored(payload=b"\x83\x01\x02\x03")},
    "huge number": {
        "id": b"bad",
        "m": stored().replace(b"\xa3", b"\xa4", 1) + b"\x61o\xc2\x59\x08\x00" + b"\xff" * 2048,
    },
    "odd crash count": {"id": b"bad", "m": b"\xff", "l": b"?", "c": b"many"},
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_cannot_be_read_is_archived_and_the_worker_goes_on(
    app: StreamQ, inspector: Inspector, server: Server, fields: dict[str, bytes]
) -> None:
    """Never lost, never a crash, never an endless loop; the stored bytes are kept."""
    ran: list[int] = []

    @app.task(name="fine", retry=0)
    async def fine() -> None:
        ran.append(1)

    handle = await fine.enqueue()
    keys = keys_of(app)
    entry_id = server.client().xadd(keys.lanes[Lane.NORMAL], fields)  # type: ignore[arg-type]
    await fine.enqueue()
    async with running(app, concurrency=1):
        await eventually(lambda: len(ran) >= 2)
        await eventually(lambda: is_gone(inspector, handle.id))
        await eventually(lambda: server.client().xlen(keys.lanes[Lane.NORMAL]) == 0)
    queue = await inspector.queue("default")
    assert queue.ready == queue.active == queue.retry == 0
    if "m" in fields and fields["m"] == stored():
        assert ran == [1, 1, 1]  # only its id was missing: it can run
        return
    assert queue.archived == 1
    assert isinstance(entry_id, bytes)
    found = await app.client.runner.run(find(keys, fields.get("id", entry_id).decode()))
    assert found.parked is not None
    assert found.parked.reason is Reason.UNDECODABLE
    assert found.parked.message == fields.get("m", b"")


@pytest.mark.parametrize("fails", [False, True])
async def test_an_id_that_is_no_text_does_not_hold_the_worker_up(
    app: StreamQ, inspector: Inspector, server: Server, fails: bool
) -> None:
    @app.task(name="fine", retry=0)
    async def fine() -> None:
        if fails:
            raise ValueError

    server.client().xadd(keys_of(app).lanes[Lane.NORMAL], {"id": b"\xff\xfe", "m": stored()})
    await fine.enqueue()
    async with running(app, concurrency=1, on_error=Errors()) as worker:
        await eventually(lambda: worker.settler.settled == 2)
    queue = await inspector.queue("default")
    assert (queue.active, queue.archived) == (0, 2 if fails else 0)


async def test_a_malformed_entry_that_is_given_back_or_recovered_is_not_lost(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """B2: among healthy ones whose worker died; they recover, it is archived."""
    ran: list[str] = []

    @app.task(name="fine")
    async def fine(name: str) -> None:
        ran.append(name)

    await fine.enqueue("before")
    keys, redis = keys_of(app), server.client()
    lane = keys.lanes[Lane.NORMAL]
    redis.xadd(lane, {"foo": "bar"})
    redis.xadd(lane, {"id": "bad", "m": b"\xff"})
    await fine.enqueue("after")
    redis.xgroup_create(lane, "w", "0")
    redis.xreadgroup("w", "dead", {lane: ">"}, count=10)
    async with running(app) as worker:
        await worker.recoverer.run_once("dead")
        await eventually(lambda: sorted(ran) == ["after", "before"])
        await eventually(lambda: redis.zcard(keys.archived) == 2)
    queue = await inspector.queue("default")
    assert (queue.ready, queue.active, queue.retry) == (0, 0, 0)


async def test_an_unstorable_argument_never_gets_as_far_as_a_worker(
    app: StreamQ, inspector: Inspector
) -> None:
    @app.task(name="t")
    async def task(value: object) -> None: ...

    with pytest.raises(PayloadError, match=r"args\[0\]"):
        await task.enqueue(object())
