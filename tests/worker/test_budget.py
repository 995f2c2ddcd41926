"""What a worker costs Redis: commands per task under load, commands per second when idle."""

from __future__ import annotations

import asyncio
from typing import Any

from streamq import StreamQ
from tests.conftest import PrivateServer
from tests.support import eventually, running

WATCHED_S = 4.0


async def test_a_saturated_worker_needs_a_tenth_of_a_command_per_task(private_server: PrivateServer) -> None:
    """All calls count, also those inside of scripts."""
    server = private_server()
    app = StreamQ(server.url)
    ran = 0
    tasks = 5_000

    @app.task(name="t")
    async def task() -> None:
        nonlocal ran
        ran += 1

    async with app, app.inspector() as inspector:
        await app.enqueue_many([task.call()] * tasks)
        await inspector.pause("default")
        async with app_worker(app) as worker:
            await eventually(lambda: worker.fetcher._connection)
            before = server.commandstats()
            await inspector.resume("default")
            await eventually(lambda: worker.settler.settled == tasks)
            calls = server.commandstats() - before
    assert sum(calls.values()) <= 0.1 * tasks, calls


def app_worker(app: StreamQ) -> Any:
    """With the settings that users get."""
    return running(app, wait=False, concurrency=100, lease_ms=10_000, block_ms=5_000, presence_s=5.0)


async def test_an_idle_worker_sends_at_most_three_commands_a_second(private_server: PrivateServer) -> None:
    """B30: with default settings. Pickup is woken by the blocked read, not by polling."""
    server = private_server()
    app = StreamQ(server.url)
    ran = asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        ran.set()

    async with app, app_worker(app) as worker:
        await eventually(lambda: worker.fetcher._connection)
        await task.enqueue()
        await ran.wait()
        await eventually(lambda: worker.settler.settled == 1)
        monitored: list[str] = []
        client: Any = server.client()
        with client.monitor() as monitor:
            # Watching for a while is the point: what is counted is commands per second.
            await asyncio.sleep(WATCHED_S)
            client.echo("the end")
            while "the end" not in (line := await asyncio.to_thread(monitor.next_command))["command"]:
                if line["client_type"] != "lua":
                    monitored.append(line["command"])
        assert ran.is_set()
    assert len(monitored) <= 3 * WATCHED_S, monitored
