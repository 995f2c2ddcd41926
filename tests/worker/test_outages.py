"""A worker whose Redis fails, forgets or refuses: calm, nothing thrown away, working again by itself."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest

from streamq import Retry, StreamQ
from streamq.inspector import Inspector
from streamq.model.states import State
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server
from tests.support import eventually, running
from tests.worker.test_outcomes import in_state


async def test_an_outage_is_calm_and_running_work_is_not_thrown_away(
    server: Server, namespace: str, proxy_for: ProxyFor, caplog: pytest.LogCaptureFixture
) -> None:
    """B34: few attempts and few log lines; the handler goes on; everything resumes by itself."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    direct = StreamQ(server.url, namespace=namespace)
    ran: Counter[str] = Counter()
    ends = asyncio.Event()

    @app.task(name="long", retention=60)
    async def long() -> str:
        ran["long"] += 1
        await ends.wait()
        return "kept"

    @app.task(name="next")
    async def following() -> None:
        ran["next"] += 1

    async with direct, direct.inspector() as inspector:
        handle = await direct.enqueue("long", {})
        async with running(app, lease_ms=60_000) as worker:
            await eventually(lambda: ran["long"])
            await eventually(lambda: proxy.connections >= 3)
            attempts: Counter[str] = Counter()
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                await proxy.refuse()
                proxy.cut()
                began = asyncio.get_running_loop().time()
                while (
                    asyncio.get_running_loop().time() < began + 3
                ):  # how it behaves for a while is the point
                    await asyncio.sleep(0.1)
                attempts.update(record.name for record in caplog.records)
            assert sum(attempts.values()) <= 15, attempts
            assert worker.executor.running == 1
            await direct.enqueue("next", {})
            await proxy.accept()
            await eventually(lambda: ran["next"])
            ends.set()
            info = await in_state(inspector, handle.id, State.COMPLETED)
        assert (info.crashes, info.retried) == (0, 0)
    assert ran == {"long": 1, "next": 1}


async def test_a_restart_of_redis_is_survived_without_a_restart_of_the_worker(
    private_server: PrivateServer,
) -> None:
    """A129: scripts, groups and connections are found again; with its data kept nothing is lost."""
    server = private_server(aof=True, fsync="always")
    app = StreamQ(server.url)
    seen: set[int] = set()

    @app.task(name="t")
    async def task(number: int) -> None:
        seen.add(number)

    async with app, running(app):
        await app.enqueue_many(task.call(number) for number in range(200))
        await eventually(lambda: len(seen) > 20)
        server.restart(kill=True)
        await eventually(lambda: len(seen) == 200)
        await task.enqueue(200)
        await eventually(lambda: 200 in seen)


async def test_a_flushed_server_is_survived(
    private_server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    """FLUSHALL: what was there is gone, by order; what comes after is worked on."""
    server = private_server()
    app = StreamQ(server.url)
    seen: list[str] = []
    started, ends = asyncio.Event(), asyncio.Event()

    @app.task(name="t")
    async def task(name: str) -> None:
        started.set()
        if name == "held":
            await ends.wait()
        seen.append(name)

    async with app, running(app) as worker:
        await task.enqueue("held")
        await started.wait()
        server.client().flushall()
        server.client().script_flush()
        await task.enqueue("after")
        await eventually(lambda: "after" in seen)
        await eventually(lambda: not len(worker.held), "the lease of what was flushed is noticed as lost")
    assert seen == ["after"]


async def test_scripts_forgotten_under_load_are_loaded_again(private_server: PrivateServer) -> None:
    """NOSCRIPT at any moment: nothing lost, nothing twice."""
    server = private_server()
    app = StreamQ(server.url)
    seen: list[int] = []

    @app.task(name="t", retry=Retry(max_retries=3, delay=0))
    async def task(number: int) -> None:
        seen.append(number)
        await asyncio.sleep(0)

    async with app, running(app, concurrency=20, lease_ms=60_000):
        for start in range(0, 1000, 50):
            server.client().script_flush()
            await app.enqueue_many(task.call(number) for number in range(start, start + 50))
            server.client().script_flush()
            await eventually(lambda start=start: len(seen) >= start)  # type: ignore[misc]
        await eventually(lambda: len(seen) == 1000)
    assert sorted(seen) == list(range(1000))


async def test_a_user_without_rights_to_the_channels_works_all_the_same(
    private_server: PrivateServer,
) -> None:
    """Hints are comfort: without them a retry only comes a little later, and the worker lives."""
    server = private_server()
    client: Any = server.client()
    client.execute_command(
        "ACL", "SETUSER", "plain", "on", ">secret", "~*", "resetchannels", "+@all", "-client|unblock"
    )
    app = StreamQ(server.url.replace("redis://", "redis://plain:secret@"))
    attempts: list[int] = []

    @app.task(name="t", retry=Retry(max_retries=1, delay=0))
    async def task() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError

    async with app, running(app) as worker:
        await task.enqueue()
        await eventually(lambda: len(attempts) == 1)
        while len(attempts) < 2:  # what a hint would do
            worker.forwarder.wake()
            await asyncio.sleep(0.01)


async def test_out_of_memory_does_not_keep_tasks_from_being_settled(private_server: PrivateServer) -> None:
    """The settling scripts begin with XACK, so that they pass when Redis is full."""
    server = private_server()
    app = StreamQ(server.url)
    ran = 0

    @app.task(name="t")
    async def task(padding: str) -> None:
        nonlocal ran
        ran += 1

    async with app, app.inspector() as inspector:
        await app.enqueue_many([task.call("x" * 1000)] * 500)
        async with running(app, wait=False, lease_ms=60_000):
            await eventually(lambda: ran > 0)
            server.client().config_set("maxmemory", "1mb")
            server.client().config_set("maxmemory-policy", "noeviction")
            await eventually(lambda: _is_drained(inspector))
    assert ran == 500


async def _is_drained(inspector: Inspector) -> bool:
    queue = await inspector.queue("default")
    return queue.ready == queue.active == 0
