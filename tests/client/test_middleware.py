"""Middleware around enqueue: the same for both clients, for one call and for many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest

from streamq import StreamQ, TaskCall
from streamq.client.client import Client, ClientConfig
from streamq.errors import (
    BatchError,
    PayloadError,
    RegistrationError,
    TaskIdConflict,
    Unavailable,
    UsageError,
)
from tests.servers import Server

Enqueue = Callable[[list[TaskCall[Any]]], Awaitable[list[Any]]]
Make = Callable[[TaskCall[Any]], AbstractContextManager[TaskCall[Any]]]
BAD = object()

WAYS = ["one", "many", "blocking one", "blocking many"]


@pytest.fixture
async def app(server: Server, namespace: str) -> Any:
    async with StreamQ(server.url, namespace=namespace) as app:
        yield app


@pytest.fixture(params=WAYS)
def enqueue(request: pytest.FixtureRequest, app: StreamQ) -> Enqueue:
    """Enqueues calls in one of the four ways; an error stands in the place of a handle."""

    async def one(calls: list[TaskCall[Any]]) -> list[Any]:
        return [await caught(app.enqueue(call)) for call in calls]

    async def many(calls: list[TaskCall[Any]]) -> list[Any]:
        try:
            return list(await app.enqueue_many(calls))
        except BatchError as error:
            return list(error.results)

    def blocking(calls: list[TaskCall[Any]]) -> list[Any]:
        results: list[Any] = []
        with app.sync() as client:
            for call in calls:
                try:
                    results.append(client.enqueue(call))
                except Exception as error:  # noqa: BLE001  # whatever it is, it is compared
                    results.append(error)
        return results

    def blocking_many(calls: list[TaskCall[Any]]) -> list[Any]:
        with app.sync() as client:
            try:
                return list(client.enqueue_many(calls))
            except BatchError as error:
                return list(error.results)

    ways: dict[str, Any] = {
        "one": one,
        "many": many,
        "blocking one": lambda calls: asyncio.to_thread(blocking, calls),
        "blocking many": lambda calls: asyncio.to_thread(blocking_many, calls),
    }
    way: Enqueue = ways[request.param]
    return way


async def caught(made: Awaitable[Any]) -> Any:
    try:
        return await made
    except Exception as error:  # noqa: BLE001  # whatever it is, it is compared
        return error


async def headers(app: StreamQ, handle: Any) -> dict[str, str]:
    return dict((await app.client.info(handle.queue, handle.id)).headers)


async def test_middleware_changes_calls_in_the_given_order_and_sees_them_stored(
    app: StreamQ, enqueue: Enqueue
) -> None:
    order: list[str] = []

    def watch(name: str) -> None:
        @app.enqueue_middleware
        @contextmanager
        def watcher(call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
            order.append(f"{name} begins {sorted(call.headers)}")
            yield call.with_options(headers={name: call.type})
            order.append(f"{name} ends")

    watch("first")
    watch("second")
    [handle] = await enqueue([app.call("t", headers={"own": "1"})])
    assert await headers(app, handle) == {"own": "1", "first": "t", "second": "t"}
    assert order == ["first begins ['own']", "second begins ['first', 'own']", "second ends", "first ends"]


def noting(seen: list[Any]) -> Make:
    @contextmanager
    def middleware(call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
        try:
            yield call
        except Exception as error:
            seen.append((call.type, type(error)))
            raise
        seen.append((call.type, "stored"))

    return middleware


async def test_middleware_sees_the_error_of_its_own_call_alone(app: StreamQ, enqueue: Enqueue) -> None:
    seen: list[Any] = []
    app.enqueue_middleware(noting(seen))
    await app.enqueue("first", task_id="taken")
    seen.clear()
    calls = [app.call("a"), app.call("b", {"x": BAD}), app.call("c", task_id="taken"), app.call("d")]
    results = await enqueue(calls)
    assert [type(result).__name__.removeprefix("Sync") for result in results] == [
        "TaskHandle", "PayloadError", "TaskIdConflict", "TaskHandle",
    ]  # fmt: skip
    assert sorted(seen, key=lambda item: str(item[0])) == [
        ("a", "stored"), ("b", PayloadError), ("c", TaskIdConflict), ("d", "stored"),
    ]  # fmt: skip


async def test_middleware_that_swallows_the_error_hides_it_from_nobody(
    app: StreamQ, enqueue: Enqueue
) -> None:
    """An enqueue never ends with neither a handle nor an error."""
    seen: list[Any] = []
    app.enqueue_middleware(noting(seen))

    @app.enqueue_middleware
    @contextmanager
    def forgiving(call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
        with suppress(Exception):
            yield call

    [result] = await enqueue([app.call("b", {"x": BAD})])
    assert isinstance(result, PayloadError)
    assert seen == [("b", PayloadError)]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_what_middleware_raises_is_the_error_of_that_call(
    app: StreamQ, enqueue: Enqueue, late: bool
) -> None:
    """Middleware that stands further out is told; the other calls are not touched."""
    seen: list[Any] = []
    app.enqueue_middleware(noting(seen))

    @app.enqueue_middleware
    @contextmanager
    def broken(call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
        if call.type == "bad" and not late:
            raise LookupError("before")
        yield call
        if call.type == "bad":
            raise LookupError("after")

    first, second, third = await enqueue([app.call("ok"), app.call("bad"), app.call("ok")])
    assert isinstance(second, LookupError)
    assert first.created
    assert third.created
    assert sorted(seen, key=str) == [("bad", LookupError), ("ok", "stored"), ("ok", "stored")]


async def test_middleware_that_yields_no_call_is_told_so(app: StreamQ, enqueue: Enqueue) -> None:
    @contextmanager
    def forgetful(call: TaskCall[Any]) -> Iterator[Any]:
        yield None

    app.enqueue_middleware(forgetful)
    [result] = await enqueue([app.call("t")])
    assert isinstance(result, UsageError)
    assert str(result) == "enqueue_middleware: must yield the TaskCall, not NoneType"


depth: ContextVar[int] = ContextVar("depth", default=0)


async def test_calls_of_one_enqueue_many_do_not_see_each_others_context(
    app: StreamQ, enqueue: Enqueue
) -> None:
    """Spans of calls that are under way together are siblings, and each is reset where it was set."""

    @app.enqueue_middleware
    @contextmanager
    def nest(call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
        token = depth.set(depth.get() + 1)
        yield call.with_options(headers={"depth": str(depth.get())})
        depth.reset(token)

    handles = await enqueue([app.call("t"), app.call("t")])
    assert [await headers(app, handle) for handle in handles] == [{"depth": "1"}] * 2
    assert depth.get() == 0


async def test_middleware_sees_an_outage(namespace: str) -> None:
    seen: list[Any] = []
    config = ClientConfig(namespace=namespace, enqueue_timeout_s=0.1, middleware=[noting(seen)])
    app = StreamQ("redis://127.0.0.1:1", enqueue_timeout=0.1)
    app.enqueue_middleware(noting(seen))
    async with Client(app.address, config) as client:
        with pytest.raises(Unavailable):
            await client.enqueue("a")
        with pytest.raises(BatchError):
            await client.enqueue_many([app.call("b"), app.call("c")])
    with app.sync() as blocking, pytest.raises(Unavailable):
        blocking.enqueue("d")
    assert [name for name, _ in seen] == ["a", "b", "c", "d"]
    assert all(issubclass(kind, Unavailable) for _, kind in seen)


async def test_middleware_is_left_when_the_callers_own_calls_raise(app: StreamQ) -> None:
    seen: list[Any] = []
    app.enqueue_middleware(noting(seen))

    def calls() -> Iterator[TaskCall[Any]]:
        yield app.call("a")
        raise LookupError("no more")

    with pytest.raises(LookupError):
        await app.enqueue_many(calls())
    with app.sync() as client, pytest.raises(LookupError):
        client.enqueue_many(calls())
    assert seen == [("a", LookupError)] * 2


def test_enqueue_middleware_must_be_a_plain_function() -> None:
    async def wrong(call: TaskCall[Any]) -> TaskCall[Any]:
        return call

    bad: list[Any] = [None, 5, wrong]
    for middleware in bad:
        with pytest.raises(RegistrationError, match="enqueue_middleware: must be a plain function"):
            StreamQ().enqueue_middleware(middleware)
