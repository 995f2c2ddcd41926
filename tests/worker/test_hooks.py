"""The hooks: who is told what, and that nothing a hook does can hurt a task or a worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from streamq import Reason, Release, Retry, RetryAfter, SkipRetry, StreamQ, TaskContext, current_task
from streamq.broker.keys import GROUP
from streamq.cli.supervising import Undertaker
from streamq.codec import encode_message
from streamq.errors import PayloadError, RegistrationError
from streamq.inspector import Inspector
from streamq.model.hooks import Hooks
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.states import State
from streamq.worker import teller
from tests.servers import Server
from tests.support import eventually, keys_of, running
from tests.worker.test_outcomes import in_state, is_gone, raising

Hook = Callable[[TaskContext, Any], Awaitable[None] | None]


class Told:
    """A hook that takes note: type of the task, and the fact."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, Any]] = []

    def __call__(self, context: TaskContext, fact: Any) -> None:
        self.facts.append((context.type, fact))


class ToldAsync(Told):
    async def __call__(self, context: TaskContext, fact: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().__call__(context, fact)


@pytest.fixture(params=[Told, ToldAsync])
def told(request: pytest.FixtureRequest) -> Told:
    hook = request.param()
    assert isinstance(hook, Told)
    return hook


# Steering, through a worker


async def test_retry_after_waits_as_long_as_it_says(app: StreamQ, inspector: Inspector) -> None:
    handle = await app.task(name="busy")(raising(lambda: RetryAfter(3600, "over quota"))).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.RETRY)
    assert (info.retried, info.error) == (1, "RetryAfter: over quota")
    assert info.next_at is not None
    assert timedelta(minutes=59) < info.next_at - datetime.now(UTC) <= timedelta(hours=1)


async def test_retry_after_without_spending_comes_again_and_again(app: StreamQ) -> None:
    runs: list[int] = []

    @app.task(name="busy", retry=0, retention=60)
    async def busy() -> int:
        runs.append(current_task().retried)
        if len(runs) < 4:
            raise RetryAfter(0, spend=False)
        return len(runs)

    handle = await busy.enqueue()
    async with running(app):
        assert await handle.result(timeout=20) == 4
    assert runs == [0, 0, 0, 0]


async def test_a_released_task_runs_again_at_once_and_has_spent_nothing(
    app: StreamQ, inspector: Inspector
) -> None:
    """From its own lane it goes to the front; from there, a second time, it waits a second in retry."""
    lanes: list[int] = []
    waits: list[State] = []

    @app.task(name="shy", retry=0, retention=60)
    async def shy() -> None:
        lanes.append(current_task().attempt)
        if len(lanes) < 3:
            raise Release("another time")

    handle = await shy.enqueue()
    async with running(app):
        waits.append((await in_state(inspector, handle.id, State.RETRY)).state)
        info = await in_state(inspector, handle.id, State.COMPLETED)
    assert (lanes, info.retried, info.crashes) == ([1, 1, 1], 0, 0)
    assert "failed" not in await inspector.counters("default")


# Success


async def test_on_success_gets_the_result_of_async_and_sync_handlers(app: StreamQ, told: Told) -> None:
    """The task's own hook is called before the app's, and neither for a failure."""
    own, order = Told(), []

    def own_hook(context: TaskContext, fact: Any) -> None:
        own(context, fact)
        order.append(len(told.facts))

    @app.task(name="async", on_success=own_hook)
    async def in_loop(number: int) -> int:
        return number

    @app.task(name="sync")
    def in_thread(number: int) -> int:
        return number

    await in_loop.enqueue(1)
    async with running(app, on_success=told):
        await eventually(lambda: told.facts == [("async", 1)])
        await in_thread.enqueue(2)
        await eventually(lambda: told.facts == [("async", 1), ("sync", 2)])
        await app.task(name="bad", retry=0)(raising(ValueError)).enqueue()
        await eventually(lambda: app.tasks)
    assert (own.facts, order) == ([("async", 1)], [0])
    assert len(told.facts) == 2


async def test_hooks_see_the_task_and_the_state_of_the_lifespan(app: StreamQ) -> None:
    seen: list[Any] = []

    def hook(context: TaskContext, result: Any) -> None:
        seen.append((context.id, context.headers, current_task().id))

    task = app.task(name="ok", on_success=hook)(_nothing)
    handle = await task.options(headers={"a": "b"}).enqueue()
    async with running(app):
        await eventually(lambda: seen)
    assert seen == [(handle.id, {"a": "b"}, handle.id)]


async def _nothing() -> None:
    """A handler."""


# Archive


async def test_on_archive_gets_the_error_once_the_retries_are_spent(app: StreamQ, told: Told) -> None:
    """Not for the attempts before."""
    error = ValueError("the last")
    task = app.task(name="bad", retry=Retry(2, delay=0), on_archive=told)(raising(lambda: error))
    await task.enqueue()
    async with running(app):
        await eventually(lambda: told.facts)
    assert told.facts == [("bad", error)]


async def test_on_archive_is_told_of_a_result_that_cannot_be_kept(app: StreamQ, told: Told) -> None:
    @app.task(name="odd", retention=60)
    async def odd() -> object:
        return object()

    succeeded = Told()
    await odd.enqueue()
    async with running(app, on_archive=told, on_success=succeeded):
        await eventually(lambda: told.facts)
    [(name, error)] = told.facts
    assert name == "odd"
    assert isinstance(error, PayloadError)
    assert succeeded.facts == []


async def test_on_archive_is_told_of_an_expired_task_without_running_it(app: StreamQ, told: Told) -> None:
    own, ran = Told(), []

    @app.task(name="late", on_archive=own)
    async def late() -> None:
        ran.append(1)

    await late.options(expires=datetime.now(UTC) - timedelta(seconds=1)).enqueue()
    async with running(app, on_archive=told):
        await eventually(lambda: told.facts and own.facts)
    assert told.facts == own.facts == [("late", Reason.EXPIRED)]
    assert ran == []


async def test_on_archive_is_told_of_bytes_that_are_no_task(
    app: StreamQ, inspector: Inspector, server: Server, told: Told
) -> None:
    """Where even the type cannot be read it is empty; where it can, the task's own hook is told, too."""
    keys, redis, own = keys_of(app), server.client(), Told()
    app.task(name="known", on_archive=own)(_nothing)
    redis.xadd(keys.lanes[Lane.NORMAL], {"id": "a", "m": b"nonsense"})
    broken = encode_message(Message.new(type="known", payload=b"nonsense"))
    redis.xadd(keys.lanes[Lane.NORMAL], {"id": "b", "m": broken})
    async with running(app, on_archive=told):
        await eventually(lambda: len(told.facts) == 2)
    assert sorted(told.facts) == [("", Reason.UNDECODABLE), ("known", Reason.UNDECODABLE)]
    assert own.facts == [("known", Reason.UNDECODABLE)]


async def crash(app: StreamQ, server: Server) -> None:
    """Take what is ready as a worker that then dies."""
    lane, redis = keys_of(app).lanes[Lane.NORMAL], server.client()
    redis.xgroup_create(lane, GROUP, "0", mkstream=True)
    assert redis.xreadgroup(GROUP.decode(), "dead", {lane: ">"})


async def test_on_archive_is_told_of_tasks_that_crashed_too_often(
    app: StreamQ, server: Server, told: Told
) -> None:
    """By the worker that recovered them; the task's own hook is told, too."""
    own = Told()
    await app.task(name="killer", on_archive=own)(_nothing).enqueue()
    await app.enqueue("unknown")
    await crash(app, server)
    async with running(app, lease_ms=300, crash_limit=0, on_archive=told):
        await eventually(lambda: len(told.facts) == 2)
    assert sorted(told.facts) == [("killer", Reason.CRASHED), ("unknown", Reason.CRASHED)]
    assert own.facts == [("killer", Reason.CRASHED)]


async def test_a_supervisor_tells_of_the_tasks_that_it_archives(
    server: Server, namespace: str, told: Told
) -> None:
    """It recovers a dead child's tasks before any worker can; it has no lifespan, so there is no state."""
    seen: list[Any] = []

    def hook(context: TaskContext, fact: Any) -> None:
        seen.append((context.id, context.queue, context.headers, context.crashes, context.state))

    async with StreamQ(server.url, namespace=namespace, on_archive=told) as app:
        task = app.task(name="killer", on_archive=hook)(_nothing)
        handle = await task.options(headers={"a": "b"}).enqueue()
        await crash(app, server)
        undertaker = Undertaker(app, app.worker(crash_limit=0).config)
        await undertaker.recover("dead")
        await undertaker.aclose()
    assert seen == [(handle.id, "default", {"a": "b"}, 1, None)]
    assert told.facts == [("killer", Reason.CRASHED)]


# Whatever a hook does (B32)

WORST = [ValueError("hook"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]


def rude(error: BaseException, *, in_async: bool) -> Hook:
    def hook(context: TaskContext, fact: Any) -> NoReturn:
        raise error

    async def async_hook(context: TaskContext, fact: Any) -> NoReturn:
        await asyncio.sleep(0)
        raise error

    return async_hook if in_async else hook


@pytest.mark.parametrize("error", WORST, ids=repr)
@pytest.mark.parametrize("in_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("of_task", [False, True], ids=["app", "task"])
async def test_hooks_that_raise_lose_no_task_and_kill_no_worker(
    app: StreamQ,
    inspector: Inspector,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    in_async: bool,
    of_task: bool,
) -> None:
    """B32: every hook raises for every kind of task; each is settled, and each hook is logged once."""
    hook = rude(error, in_async=in_async)
    hooks: dict[str, Any] = {"on_error": hook, "on_success": hook, "on_archive": hook}
    own = hooks if of_task else {}
    ok = app.task(name="ok", retention=60, **own)(_nothing)
    bad = app.task(name="bad", retry=0, **own)(raising(ValueError))
    late = ok.options(expires=datetime.now(UTC) - timedelta(seconds=1))
    with caplog.at_level(logging.ERROR, "streamq.teller"):
        async with running(app, concurrency=1, **({} if of_task else hooks)):
            handles = [await task.enqueue() for task in (ok, bad, late)]
            await in_state(inspector, handles[0].id, State.COMPLETED)
            await in_state(inspector, handles[1].id, State.ARCHIVED)
            await in_state(inspector, handles[2].id, State.ARCHIVED)
            await eventually(lambda: len(caplog.records) == 4)
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        [
            f"on_success raised id={handles[0].id} type=ok",
            f"on_error raised id={handles[1].id} type=bad",
            f"on_archive raised id={handles[1].id} type=bad",
            f"on_archive raised id={handles[2].id} type=ok",
        ]
    )


@pytest.mark.parametrize("error", WORST, ids=repr)
async def test_a_predicate_and_a_delay_function_that_raise_are_logged_and_the_task_is_retried(
    app: StreamQ, inspector: Inspector, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """B32"""

    def broken(*_: object) -> NoReturn:
        raise error

    task = app.task(name="bad", retry=Retry(5, delay=broken), is_failure=broken)(raising(ValueError))
    handle = await task.enqueue()
    with caplog.at_level(logging.ERROR, "streamq.teller"):
        async with running(app):
            info = await in_state(inspector, handle.id, State.RETRY)
    assert info.retried == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"is_failure raised id={handle.id} type=bad",
        f"retry.delay raised id={handle.id} type=bad",
    ]


async def test_a_hook_that_hangs_is_broken_off(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task is settled all the while, and the slot is free again for the next."""
    monkeypatch.setattr(teller, "HOOK_S", 0.05)
    ended: list[str] = []

    async def hook(context: TaskContext, result: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(context.id)

    task = app.task(name="ok", on_success=hook)(_nothing)
    handles = [await task.enqueue() for _ in range(2)]
    async with running(app, concurrency=1):
        for handle in handles:
            await eventually(partial(is_gone, inspector, handle.id))
        await eventually(lambda: len(ended) == 2)
    assert ended == [handle.id for handle in handles]


async def test_a_flood_of_what_is_to_be_told_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: Told
) -> None:
    """Of tasks that have no slot in which to wait; how many were not told is said in the end."""
    monkeypatch.setattr(teller, "_MOST_WAITING", 3)
    teller_ = teller.Teller(Hooks(on_archive=told))
    context: Any = SimpleNamespace(type="t", id="a")
    for number in range(5):
        teller_.tell_later("on_archive", context, None, number)
    await eventually(lambda: len(told.facts) == 3)
    await teller_.aclose(within_s=20)
    assert told.facts == [("t", number) for number in range(3)]
    assert "hooks were not called count=2" in caplog.text


async def test_only_so_many_are_told_beside_everything_else_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller, "_AT_ONCE", 2)
    running_now, most, done = 0, 0, 0

    async def hook(_context: TaskContext, _fact: Any) -> None:
        nonlocal running_now, most, done
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0)
        running_now -= 1
        done += 1

    teller_ = teller.Teller(Hooks(on_archive=hook))
    context: Any = SimpleNamespace(type="t", id="a")
    for number in range(6):
        teller_.tell_later("on_archive", context, None, number)
    await eventually(lambda: done == 6)
    assert most == 2


async def test_a_hook_is_not_cut_off_by_the_timeout_of_its_task(app: StreamQ) -> None:
    """The timeout is for the handler: a hook that comes just before its end has its own time."""
    told = asyncio.Event()

    async def hook(context: TaskContext, error: BaseException) -> None:
        deadline = context.deadline
        assert deadline is not None
        await eventually(lambda: datetime.now(UTC) > deadline)
        told.set()

    @app.task(name="slow", timeout=0.1, retry=0, on_error=hook)
    async def slow() -> None:
        for _ in range(3):  # long enough for its timer to be set
            await asyncio.sleep(0)
        raise ValueError

    await slow.enqueue()
    async with running(app):
        await asyncio.wait_for(told.wait(), 20)


async def test_the_app_says_what_counts_as_a_failure_for_tasks_that_do_not(
    server: Server, namespace: str
) -> None:
    async with StreamQ(server.url, namespace=namespace, is_failure=lambda _: False) as app:
        retry = Retry(0, delay=3600)
        patient = await app.task(name="patient", retry=retry)(raising(ValueError)).enqueue()
        strict = app.task(name="strict", retry=retry, is_failure=lambda _: True)(raising(ValueError))
        failed = await strict.enqueue()
        async with running(app), app.inspector() as inspector:
            assert (await in_state(inspector, patient.id, State.RETRY)).retried == 0
            await in_state(inspector, failed.id, State.ARCHIVED)


def test_hooks_that_cannot_be_called_are_refused_at_registration() -> None:
    async def decides(error: BaseException) -> bool:
        return True

    bad: Any = 5
    with pytest.raises(RegistrationError, match="on_error: must be a function, not int"):
        StreamQ(on_error=bad)
    with pytest.raises(RegistrationError, match="on_archive: must be a function, not int"):
        StreamQ().task(on_archive=bad)
    predicates: list[Any] = [bad, decides]
    for predicate in predicates:
        with pytest.raises(RegistrationError, match="is_failure: must be a plain function"):
            StreamQ(is_failure=predicate)
        with pytest.raises(RegistrationError, match="is_failure: must be a plain function"):
            StreamQ().task(is_failure=predicate)(raising(ValueError))


async def test_a_skip_is_told_as_an_archive(app: StreamQ, told: Told) -> None:
    error = SkipRetry("pointless")
    await app.task(name="bad", retry=5)(raising(lambda: error)).enqueue()
    async with running(app, on_archive=told):
        await eventually(lambda: told.facts)
    assert told.facts == [("bad", error)]
