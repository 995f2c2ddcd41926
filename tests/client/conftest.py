"""Both clients behind one face, so that each fact is shown for asyncio and for blocking code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from streamq import Inspector, StreamQ, SyncClient, SyncTaskHandle, TaskCall, TaskHandle, TaskInfo
from streamq.model.options import Options
from tests.servers import Server

AnyHandle = TaskHandle[Any] | SyncTaskHandle[Any]


def call(task: str = "t", **options: Any) -> TaskCall[Any]:
    """A call of a task by its name."""
    return TaskCall(task, options=Options.of(options))


class Producing:
    """An app's producing side. The blocking client blocks the test's loop: nothing else runs there."""

    def __init__(self, app: StreamQ, sync: SyncClient | None) -> None:
        self.app = app
        self.sync = sync

    async def enqueue(
        self, task: TaskCall[Any] | str, arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> AnyHandle:
        if self.sync is not None:
            return self.sync.enqueue(task, arguments, **options)  # type: ignore[arg-type]  # both overloads
        return await self.app.client.enqueue(task, arguments, **options)  # type: ignore[arg-type]

    async def enqueue_many(self, calls: Iterable[TaskCall[Any]]) -> list[Any]:
        if self.sync is not None:
            return list(self.sync.enqueue_many(calls))
        return list(await self.app.enqueue_many(calls))

    async def info(self, handle: AnyHandle) -> TaskInfo:
        return handle.info() if isinstance(handle, SyncTaskHandle) else await handle.info()


@pytest.fixture
def app(server: Server, namespace: str) -> StreamQ:
    """An app on the shared Redis 7, in a namespace of its own. Not open yet."""
    return StreamQ(server.url, namespace=namespace)


@pytest.fixture
async def opened(app: StreamQ) -> AsyncIterator[StreamQ]:
    """The same app, open."""
    async with app:
        yield app


@pytest.fixture
def sync(app: StreamQ) -> Iterator[SyncClient]:
    """The app's blocking client."""
    with app.sync() as client:
        yield client


@pytest.fixture(params=["async", "sync"])
async def producing(request: pytest.FixtureRequest, app: StreamQ) -> AsyncIterator[Producing]:
    """The app's client of either kind."""
    with ExitStack() as stack:
        async with app:
            yield Producing(app, stack.enter_context(app.sync()) if request.param == "sync" else None)


@pytest.fixture
async def inspector(app: StreamQ) -> AsyncIterator[Inspector]:
    async with app.inspector() as inspector:
        yield inspector
