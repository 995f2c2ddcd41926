"""Middleware around the run, and routing by pattern, seen through a worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from streamq import CallNext, Drop, StreamQ, TaskContext, current_task
from streamq.errors import RegistrationError
from streamq.inspector import Inspector
from streamq.model.states import State
from tests.support import eventually, live, make_worker, running
from tests.worker.test_outcomes import in_state, is_gone

Order = list[str]


def watch(app: StreamQ, name: str, order: Order) -> None:
    """A middleware that writes down when it begins and ends, and how."""

    @app.middleware
    async def watcher(context: TaskContext, call_next: CallNext) -> Any:
        order.append(f"{name} begins")
        try:
            result = await call_next()
        except BaseException as error:
            order.append(f"{name} sees {type(error).__name__}")
            raise
        order.append(f"{name} sees {result}")
        return result


def async_handler(work: Callable[[], Any]) -> Callable[[], Any]:
    async def handler() -> Any:
        return work()

    return handler


def sync_handler(work: Callable[[], Any]) -> Callable[[], Any]:
    def handler() -> Any:
        return work()

    return handler


KINDS = pytest.mark.parametrize("kind", [async_handler, sync_handler])


@KINDS
async def test_middleware_stands_around_the_handler_in_the_given_order(app: StreamQ, kind: Any) -> None:
    """A135: the first is the outermost."""
    order: Order = []
    watch(app, "first", order)
    watch(app, "second", order)
    handle = await app.task(name="ok", retention=60)(kind(lambda: order.append("handler"))).enqueue()
    async with running(app):
        assert await handle.result(timeout=20) is None
    assert order == ["first begins", "second begins", "handler", "second sees None", "first sees None"]


@KINDS
async def test_what_a_handler_raises_goes_through_the_middleware(
    app: StreamQ, inspector: Inspector, kind: Any
) -> None:
    order: Order = []
    watch(app, "outer", order)
    handle = await app.task(name="bad", retry=0)(kind(lambda: dict[str, int]()["missing"])).enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert order == ["outer begins", "outer sees KeyError"]
    assert info.error == "KeyError: 'missing'"


@KINDS
async def test_middleware_may_answer_in_place_of_the_handler_and_change_its_result(
    app: StreamQ, kind: Any
) -> None:
    ran: list[str] = []

    @app.middleware
    async def cached(context: TaskContext, call_next: CallNext) -> Any:
        return "from the cache" if context.type == "known" else f"<{await call_next()}>"

    known = app.task(name="known", retention=60)(kind(lambda: ran.append("known")))
    other = app.task(name="other", retention=60)(kind(lambda: "fresh"))
    handles = [await known.enqueue(), await other.enqueue()]
    async with running(app):
        assert [await handle.result(timeout=20) for handle in handles] == ["from the cache", "<fresh>"]
    assert ran == []


@KINDS
@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1)], ids=repr)
async def test_what_middleware_raises_counts_as_the_handlers_error(
    app: StreamQ, inspector: Inspector, kind: Any, error: BaseException
) -> None:
    @app.middleware
    async def broken(context: TaskContext, call_next: CallNext) -> Any:
        await call_next()
        if context.type == "bad":
            raise error

    bad, ok = app.task(name="bad", retry=0)(kind(int)), app.task(name="ok")(kind(int))
    first, second = await bad.enqueue(), await ok.enqueue()
    async with running(app, concurrency=1):
        info = await in_state(inspector, first.id, State.ARCHIVED)
        await eventually(lambda: is_gone(inspector, second.id))
    assert (info.error or "").startswith(("ValueError: x", "HandlerExited: "))


@KINDS
async def test_middleware_may_steer(app: StreamQ, inspector: Inspector, kind: Any) -> None:
    ran: list[int] = []

    @app.middleware
    async def gate(context: TaskContext, call_next: CallNext) -> Any:
        raise Drop

    handle = await app.task(name="ok", retention=60)(kind(lambda: ran.append(1))).enqueue()
    async with running(app):
        await eventually(lambda: is_gone(inspector, handle.id))
    assert ran == []


@KINDS
async def test_context_variables_that_middleware_sets_are_seen_by_the_handler(
    app: StreamQ, kind: Any
) -> None:
    seen: list[Any] = []

    @app.middleware
    async def name_it(context: TaskContext, call_next: CallNext) -> Any:
        assert current_task() is context
        return await call_next()

    task = app.task(name="ok")(kind(lambda: seen.append(current_task().id)))
    handle = await task.enqueue()
    async with running(app):
        await eventually(lambda: seen == [handle.id])


async def test_a_sync_handler_that_is_out_of_time_keeps_slot_and_middleware_until_its_thread_ends(
    app: StreamQ, inspector: Inspector
) -> None:
    """What stands around a handler is not taken down under a thread that still uses it."""
    order: Order = []
    watch(app, "outer", order)
    begun, end = threading.Event(), threading.Event()

    @app.task(name="slow", timeout=0.05, retry=0)
    def slow() -> None:
        begun.set()
        end.wait(20)
        order.append("thread ends")

    handle = await slow.enqueue()
    async with running(app, concurrency=1) as worker:
        await eventually(lambda: worker.executor.running and begun.is_set())
        [run] = worker.executor.stuck_runs()
        await eventually(lambda: run.stop)
        assert (order, worker.executor.free) == (["outer begins"], 0)
        end.set()
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert order == ["outer begins", "thread ends", "outer sees CancelledError"]
    assert (info.error or "").startswith("AttemptTimeout: ")


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_what_a_thread_comes_to_after_a_shutdown_counts(
    app: StreamQ, inspector: Inspector, fails: bool
) -> None:
    """As it does without middleware."""
    order: Order = []
    watch(app, "outer", order)
    begun, end = threading.Event(), threading.Event()

    @app.task(name="slow", retry=0, retention=60)
    def slow() -> str:
        begun.set()
        end.wait(20)
        if fails:
            raise ValueError("late")
        return "late"

    handle = await slow.enqueue()
    worker = make_worker(app, grace_s=0.05)
    async with live(worker):
        await eventually(begun.is_set)
        worker.stop()
        [run] = worker.executor.stuck_runs()
        await eventually(lambda: run.stop)
        end.set()
        info = await in_state(inspector, handle.id, State.ARCHIVED if fails else State.COMPLETED)
    assert order == ["outer begins", "outer sees ValueError" if fails else "outer sees late"]
    assert info.error == ("ValueError: late" if fails else None)


async def test_a_limit_that_middleware_sets_ends_an_async_handler(app: StreamQ, inspector: Inspector) -> None:
    @app.middleware
    async def strict(context: TaskContext, call_next: CallNext) -> Any:
        async with asyncio.timeout(0.05):
            return await call_next()

    @app.task(name="slow", retry=0)
    async def slow() -> None:
        await asyncio.Event().wait()

    handle = await slow.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("TimeoutError")


def test_middleware_must_be_a_coroutine_function() -> None:
    """A134"""
    bad: list[Any] = [None, 5, lambda context, call_next: call_next()]
    for middleware in bad:
        with pytest.raises(RegistrationError, match="middleware: must be an async function"):
            StreamQ().middleware(middleware)


def test_without_middleware_an_async_handler_is_called_as_it_is() -> None:
    app = StreamQ()

    @app.task(name="ok")
    async def ok() -> None: ...

    assert app.definitions()["ok"].plain
    watch(app, "outer", [])
    assert not app.definitions()["ok"].plain


async def test_a_task_that_came_by_a_pattern_knows_its_real_type(app: StreamQ) -> None:
    """A132, A133: exact first, then the longest pattern."""
    seen: list[tuple[str, str]] = []

    def register(name: str) -> Any:
        @app.task(name=name)
        async def handler() -> None:
            seen.append((name, current_task().type))

        return handler

    mail, _, _ = register("email:*"), register("email:welcome"), register("*")
    await mail.named("email:weekly").enqueue()
    await app.enqueue("email:welcome")
    await app.enqueue("csv:")
    async with running(app):
        await eventually(lambda: len(seen) == 3)
    assert sorted(seen) == [
        ("*", "csv:"),
        ("email:*", "email:weekly"),
        ("email:welcome", "email:welcome"),
    ]
