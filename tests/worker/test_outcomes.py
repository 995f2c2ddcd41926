"""What becomes of a task after its handler ended, seen through a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from streamq import Drop, Retry, SkipRetry, StreamQ
from streamq.broker.inspecting import find
from streamq.clock import utc_day, wall_ms
from streamq.codec import decode_message
from streamq.errors import HandlerExited, HandlerNotFound, TaskFailed, TaskNotFound
from streamq.inspector import Inspector
from streamq.model.info import TaskInfo
from streamq.model.parked import Reason
from streamq.model.states import State
from streamq.worker.context import TaskContext
from tests.servers import Server
from tests.support import eventually, keys_of, running


class Errors:
    """An on_error hook that takes note."""

    def __init__(self) -> None:
        self.told: list[tuple[str, BaseException]] = []

    def __call__(self, context: TaskContext, error: BaseException) -> None:
        self.told.append((context.id, error))


@pytest.fixture
def errors() -> Errors:
    return Errors()


def raising(make: Callable[[], BaseException]) -> Callable[[], Any]:
    async def handler() -> NoReturn:
        raise make()

    return handler


async def in_state(inspector: Inspector, task_id: str, state: State) -> TaskInfo:
    """The task, once it is in that state."""

    async def look() -> TaskInfo | None:
        info = await inspector.task("default", task_id)
        return info if info.state is state else None

    info = await eventually(look, f"{task_id} is {state}")
    assert isinstance(info, TaskInfo)
    return info


async def is_gone(inspector: Inspector, task_id: str) -> bool:
    try:
        await inspector.task("default", task_id)
    except TaskNotFound:
        return True
    return False


# Success


async def test_a_task_that_succeeded_and_is_not_kept_is_gone_and_counted(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """A51"""

    @app.task(name="ok")
    async def ok() -> str:
        return "nobody asked"

    handle = await ok.enqueue()
    async with running(app):
        await eventually(lambda: is_gone(inspector, handle.id))
    assert (await inspector.queue("default")).size == 0
    for day in (None, utc_day(wall_ms())):
        counters = await inspector.counters("default", day)
        assert counters.get("processed") == 1
        assert "failed" not in counters
    keys, redis = keys_of(app), server.client()
    assert redis.hlen(keys.index) == redis.hlen(keys.parked) == 0


async def test_a_task_that_succeeded_and_is_kept_is_completed_with_its_result(
    app: StreamQ, inspector: Inspector
) -> None:
    """A52, A68: the score is the end of its retention."""

    @app.task(name="ok", retention=3600)
    async def ok(left: int, right: int) -> int:
        return left + right

    handle = await ok.enqueue(2, 3)
    async with running(app):
        info = await in_state(inspector, handle.id, State.COMPLETED)
        assert await handle.result(timeout=5) == 5
    assert info.completed_at is not None
    found = await app.client.runner.run(find(keys_of(app), handle.id))
    assert found.time_ms is not None
    assert 0 <= found.time_ms - info.completed_at.timestamp() * 1000 - 3_600_000 < 5_000


async def test_a_result_of_bytes_comes_back_as_it_was(app: StreamQ) -> None:
    """A68"""

    @app.task(name="raw", retention=60)
    async def raw() -> bytes:
        return bytes(range(256))

    handle = await raw.enqueue()
    async with running(app):
        assert await handle.result(timeout=10) == bytes(range(256))


# Failure


async def test_an_error_with_retries_left_goes_to_retry_with_what_happened(
    app: StreamQ, inspector: Inspector
) -> None:
    """A53, A59: due a minute later, one failure counted, text and time stored; no payload in the error."""

    @app.task(name="bad", retry=Retry(max_retries=3, delay=60))
    async def bad() -> NoReturn:
        raise ValueError("no such address")

    handle = await bad.enqueue()
    before_ms = wall_ms()
    async with running(app):
        info = await in_state(inspector, handle.id, State.RETRY)
    assert (info.retried, info.crashes, info.error) == (1, 0, "ValueError: no such address")
    assert info.next_at is not None
    assert info.failed_at is not None
    assert 60_000 <= info.next_at.timestamp() * 1000 - before_ms < 70_000
    assert abs(info.failed_at.timestamp() * 1000 - before_ms) < 10_000
    assert info.message is not None
    assert "test_outcomes.py" in (info.message.traceback or "")
    counters = await inspector.counters("default")
    assert (counters["processed"], counters["failed"]) == (1, 1)


async def test_a_task_that_used_its_retries_up_is_archived_with_the_last_error(
    app: StreamQ, inspector: Inspector, errors: Errors
) -> None:
    """A54, A60: two retries are three attempts, and the hook is told of each."""
    attempts: list[int] = []

    @app.task(name="bad", retry=Retry(max_retries=2, delay=0))
    async def bad() -> NoReturn:
        attempts.append(1)
        raise ValueError(f"attempt {len(attempts)}")

    handle = await bad.enqueue()
    async with running(app, on_error=errors):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.retried, info.error, info.reason) == (2, "ValueError: attempt 3", Reason.FAILED)
    assert [str(error) for _, error in errors.told] == ["attempt 1", "attempt 2", "attempt 3"]
    with pytest.raises(TaskFailed, match="attempt 3"):
        await handle.result(timeout=5)


async def test_the_hook_is_told_once_for_each_failing_task(
    app: StreamQ, inspector: Inspector, errors: Errors
) -> None:
    """A60"""

    @app.task(name="bad", retry=0)
    async def bad(number: int) -> NoReturn:
        raise ValueError(number)

    handles = [await bad.enqueue(number) for number in range(7)]
    async with running(app, on_error=errors):
        for handle in handles:
            await in_state(inspector, handle.id, State.ARCHIVED)
    assert sorted(task_id for task_id, _ in errors.told) == sorted(handle.id for handle in handles)


def skip() -> BaseException:
    return SkipRetry("pointless")


def wrapped_skip() -> BaseException:
    error = RuntimeError("outer")
    error.__cause__ = SkipRetry("pointless")
    return error


def grouped_skip() -> BaseException:
    return ExceptionGroup("two", [ValueError("a"), SkipRetry("pointless")])


@pytest.mark.parametrize("make", [skip, wrapped_skip, grouped_skip])
async def test_skip_retry_archives_at_once_and_tells_the_hook(
    app: StreamQ, inspector: Inspector, errors: Errors, make: Callable[[], BaseException]
) -> None:
    """A55, A56: plain, as the cause of another error, or inside an exception group."""
    handle = await app.task(name="bad", retry=5)(raising(make)).enqueue()
    async with running(app, on_error=errors):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.retried, info.reason) == (0, Reason.FAILED)
    assert [task_id for task_id, _ in errors.told] == [handle.id]


def drop() -> BaseException:
    return Drop("no longer wanted")


def wrapped_drop() -> BaseException:
    error = RuntimeError("outer")
    error.__cause__ = Drop()
    return error


@pytest.mark.parametrize("make", [drop, wrapped_drop])
async def test_drop_forgets_the_task_and_tells_the_hook(
    app: StreamQ, inspector: Inspector, errors: Errors, make: Callable[[], BaseException]
) -> None:
    """A57: what Asynq calls revoke. Neither retried nor archived, nor kept, though it asked for retention."""
    handle = await app.task(name="bad", retry=5, retention=60)(raising(make)).enqueue()
    async with running(app, on_error=errors):
        await eventually(lambda: is_gone(inspector, handle.id))
    assert [task_id for task_id, _ in errors.told] == [handle.id]
    counters = await inspector.counters("default")
    assert "failed" not in counters


@pytest.mark.parametrize("retries", [5, 0])
async def test_an_error_that_is_no_failure_is_tried_again_and_spends_nothing(
    app: StreamQ, inspector: Inspector, retries: int
) -> None:
    """A58, B24: retried stays, nothing is counted; also when there is no retry left to spend."""
    task = app.task(
        name="busy",
        retry=Retry(max_retries=retries, delay=60),
        is_failure=lambda error: type(error) is not OSError,
    )
    handle = await task(raising(lambda: OSError("not now"))).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.RETRY)
    assert (info.retried, info.error) == (0, "OSError: not now")
    counters = await inspector.counters("default")
    assert "processed" not in counters
    assert "failed" not in counters


async def test_a_predicate_that_raises_counts_the_error_as_a_failure(
    app: StreamQ, inspector: Inspector
) -> None:
    def broken(error: BaseException) -> bool:
        raise KeyError(error)

    handle = await app.task(name="bad", retry=0, is_failure=broken)(raising(ValueError)).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert info.error == "ValueError"


async def test_a_retry_function_that_raises_leaves_the_delay_to_the_default(
    app: StreamQ, inspector: Inspector
) -> None:
    """The task is neither lost nor retried in a tight loop."""

    def broken(failures: int, error: BaseException) -> float:
        raise ZeroDivisionError

    before_ms = wall_ms()
    task = app.task(name="bad", retry=Retry(max_retries=5, delay=broken))
    handle = await task(raising(ValueError)).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.RETRY)
    assert info.next_at is not None
    assert info.next_at.timestamp() * 1000 - before_ms >= 1_500


async def test_a_retry_function_decides_the_delay(app: StreamQ, inspector: Inspector) -> None:
    asked: list[tuple[int, str]] = []

    def delay(failures: int, error: BaseException) -> float:
        asked.append((failures, str(error)))
        return 120

    before_ms = wall_ms()
    task = app.task(name="bad", retry=Retry(max_retries=5, delay=delay))
    handle = await task(raising(lambda: ValueError("why"))).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.RETRY)
    assert asked == [(1, "why")]
    assert info.next_at is not None
    assert info.next_at.timestamp() * 1000 - before_ms >= 120_000


# Whatever a handler raises


class Rude(BaseException):
    """Not even an Exception."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize(
    "make, shown",
    [
        (lambda: SystemExit(3), "HandlerExited: the handler raised SystemExit"),
        (KeyboardInterrupt, "HandlerExited: the handler raised KeyboardInterrupt"),
        (GeneratorExit, "HandlerExited: the handler raised GeneratorExit"),
        (lambda: Rude("x"), "Rude: x"),
        (Mute, "Mute: (its text cannot be shown)"),
        (lambda: RecursionError("deep"), "RecursionError: deep"),
        (lambda: StopIteration("done"), ""),
        (lambda: ValueError("half a pair: \ud800"), "ValueError: half a pair: "),
        (lambda: ValueError("x" * 100_000), "ValueError: xxx"),
    ],
    ids=["exit", "interrupt", "generator", "base", "mute", "recursion", "stop", "surrogate", "long"],
)
async def test_a_worker_outlives_whatever_a_handler_raises(
    app: StreamQ, inspector: Inspector, make: Callable[[], BaseException], shown: str, in_thread: bool
) -> None:
    """A61: it counts as the task's failure, can be told what it was, and the next task runs."""
    handler: Callable[[], Any] = raising(make)
    if in_thread:

        def handler() -> NoReturn:
            raise make()

    seen: list[int] = []

    @app.task(name="next")
    async def following() -> None:
        seen.append(1)

    handle = await app.task(name="bad", retry=0)(handler).enqueue()
    async with running(app, concurrency=1):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
        await following.enqueue()
        await eventually(lambda: seen == [1])
    assert (info.error or "").startswith(shown)
    assert len(info.error or "") <= 4_000


async def test_an_exit_is_told_to_the_hook_as_what_it_was(
    app: StreamQ, inspector: Inspector, errors: Errors
) -> None:
    """A61: identifiable by type, and the original is its cause."""
    handle = await app.task(name="bad", retry=0)(raising(lambda: SystemExit(3))).enqueue()
    async with running(app, on_error=errors):
        await in_state(inspector, handle.id, State.ARCHIVED)
    [(_, error)] = errors.told
    assert isinstance(error, HandlerExited)
    assert isinstance(error.__cause__, SystemExit)


async def test_a_task_that_nobody_here_handles_is_retried_and_at_last_archived_with_the_reason(
    app: StreamQ, inspector: Inspector, errors: Errors
) -> None:
    """A62: a deploy in progress loses nothing; a mistake ends in the archive."""
    handle = await app.enqueue("nobody:knows", {"a": 1}, retry=Retry(max_retries=1, delay=0))
    patient = await app.enqueue("nobody:knows", {"a": 1})
    async with running(app, on_error=errors):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
        assert (await in_state(inspector, patient.id, State.RETRY)).retried == 1
    assert info.error is not None
    assert "HandlerNotFound: no handler for 'nobody:knows'" in info.error
    assert all(isinstance(error, HandlerNotFound) for _, error in errors.told)


async def test_arguments_that_the_handler_does_not_take_fail_the_attempt(
    app: StreamQ, inspector: Inspector
) -> None:
    @app.task(name="strict", retry=0)
    async def strict(number: int) -> None: ...

    handle = await app.enqueue("strict", {"numbre": 1}, retry=0)
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("TypeError: ")


# The hook


@pytest.mark.parametrize("error", [ValueError("hook"), SystemExit(1), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("in_async", [False, True], ids=["sync", "async"])
async def test_a_hook_that_raises_changes_nothing(
    app: StreamQ, inspector: Inspector, error: BaseException, in_async: bool
) -> None:
    """B32: the task is settled before the hook is called, and the worker lives."""

    def hook(context: TaskContext, told: BaseException) -> None:
        raise error

    async def async_hook(context: TaskContext, told: BaseException) -> None:
        raise error

    task = app.task(name="bad", retry=0)(raising(ValueError))
    first, second = await task.enqueue(), await task.enqueue()
    async with running(app, concurrency=1, on_error=async_hook if in_async else hook):
        await in_state(inspector, first.id, State.ARCHIVED)
        await in_state(inspector, second.id, State.ARCHIVED)


async def test_an_async_hook_is_awaited(app: StreamQ) -> None:
    told: list[str] = []

    async def hook(context: TaskContext, error: BaseException) -> None:
        told.append(f"{context.type} {error}")

    await app.task(name="bad", retry=0)(raising(lambda: ValueError("x"))).enqueue()
    async with running(app, on_error=hook):
        await eventually(lambda: told == ["bad x"])


# Results that cannot be stored


@pytest.mark.parametrize(
    "result", [object(), "x" * 2_000_000, "\ud800"], ids=["object", "large", "surrogate"]
)
async def test_a_result_that_cannot_be_stored_archives_the_task_with_the_reason(
    app: StreamQ, inspector: Inspector, result: object
) -> None:
    """The work is done: it is not done again, whatever retries are left."""
    runs: list[int] = []

    @app.task(name="odd", retention=60, retry=5)
    async def odd() -> object:
        runs.append(1)
        return result

    handle = await odd.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert runs == [1]
    assert (info.error or "").startswith("PayloadError: result: ")


async def test_without_retention_any_result_will_do(app: StreamQ, inspector: Inspector) -> None:
    @app.task(name="odd")
    async def odd() -> object:
        return object()

    handle = await odd.enqueue()
    async with running(app):
        await eventually(lambda: is_gone(inspector, handle.id))


# What cannot be read


async def test_the_original_message_of_an_archived_task_is_kept(app: StreamQ, inspector: Inspector) -> None:
    handle = await app.task(name="bad", retry=0)(raising(ValueError)).options(headers={"a": "b"}).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    found = await app.client.runner.run(find(keys_of(app), handle.id))
    assert decode_message(found.message_bytes).payload == b"\x82\x80\xa0"
    assert info.headers == {"a": "b"}
