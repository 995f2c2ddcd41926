"""Presence: a worker is listed while it lives, and not for long after."""

from __future__ import annotations

import asyncio
import os
import socket

from streamq import StreamQ
from streamq.inspector import Inspector
from streamq.model.info import WorkerInfo
from tests.servers import Server
from tests.support import eventually, live, make_worker, running


async def test_a_worker_is_listed_with_what_it_does_and_disappears_when_it_stops(
    app: StreamQ, inspector: Inspector
) -> None:
    """A79, A81"""
    ends = asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        await ends.wait()

    for _ in range(3):
        await task.enqueue()

    async def look() -> WorkerInfo | None:
        workers = await inspector.workers()
        return next((info for info in workers if info.active == 3), None)

    async with running(app, queues={"default": 6, "mail": 2}, presence_s=0.1) as worker:
        info = await eventually(look)
        ends.set()
    assert isinstance(info, WorkerInfo)
    assert (info.id, info.host, info.pid) == (worker.id, socket.gethostname(), os.getpid())
    assert (info.queues, info.concurrency, info.status) == ({"default": 3, "mail": 1}, 10, "running")
    assert await inspector.workers() == []


async def test_its_heartbeat_expires_by_itself_when_it_dies(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """A79"""
    worker = make_worker(app, presence_s=0.1)
    await worker.presence.run_once()
    assert [info.id for info in await inspector.workers()] == [worker.id]
    key = worker.keys.worker(worker.id)
    assert 0 < server.client().pttl(key) <= 300
    await eventually(lambda: _nobody(inspector))
    await eventually(lambda: not server.client().exists(key))
    await worker._control.aclose()


async def _nobody(inspector: Inspector) -> bool:
    return await inspector.workers() == []


async def test_strict_queues_are_listed_without_weights(app: StreamQ) -> None:
    worker = make_worker(app, queues={"a": 1, "b": 1}, strict=True)
    assert worker.describe().queues == {"a": 0, "b": 0}


async def test_quiet_and_stopping_are_shown(app: StreamQ, inspector: Inspector) -> None:
    ends = asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        await ends.wait()

    await task.enqueue()
    worker = make_worker(app, presence_s=0.1)

    async def status() -> list[str]:
        return [info.status for info in await inspector.workers()]

    async def shows(word: str) -> bool:
        return await status() == [word]

    async with live(worker):
        await eventually(lambda: worker.executor.running)
        worker.quiet()
        await eventually(lambda: shows("quiet"))
        worker.stop()
        await eventually(lambda: shows("stopping"))
        ends.set()
