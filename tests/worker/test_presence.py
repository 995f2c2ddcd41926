"""Presence: a worker is listed while it lives, and not for long after."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from streamq import StreamQ
from streamq.broker import ordering
from streamq.broker.ordering import Verb
from streamq.broker.presence import server_time
from streamq.errors import OptionError, ServerError, Unavailable, WorkerError
from streamq.inspector import Inspector
from streamq.model.info import WorkerInfo
from tests.conftest import ProxyFor
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


# Orders from outside


async def test_one_worker_is_told_to_be_quiet_and_the_others_go_on(
    app: StreamQ, inspector: Inspector
) -> None:
    """It takes nothing more, and what it runs ends by itself."""
    ends, ran = asyncio.Event(), []

    @app.task(name="t")
    async def task(wait: bool) -> None:
        ran.append(wait)
        if wait:
            await ends.wait()

    held = await task.options(retention=60).enqueue(wait=True)
    async with running(app, presence_s=60) as quiet:
        await eventually(lambda: quiet.executor.running)
        async with running(app, presence_s=60) as other:
            await inspector.quiet(quiet.id)
            await eventually(lambda: quiet.describe().status == "quiet")
            for _ in range(5):
                await task.enqueue(wait=False)
            await eventually(lambda: other.settler.settled == 5)
            assert other.describe().status == "running"
            assert not quiet.ordered
            ends.set()
            await held.result(timeout=20)
            assert quiet.settler.settled == 1


async def test_all_workers_drain_and_end_when_nothing_runs_any_more(
    app: StreamQ, inspector: Inspector
) -> None:
    """A60: longer than their grace period; nothing is given back, and nothing new begins."""
    ends = asyncio.Event()
    started: list[int] = []

    @app.task(name="t")
    async def task(number: int) -> None:
        started.append(number)
        await ends.wait()

    for number in range(2):
        await task.enqueue(number)
    first, second = (make_worker(app, concurrency=1, grace_s=0.01, presence_s=60) for _ in range(2))
    async with live(first) as one, live(second) as two:
        await eventually(lambda: len(started) == 2)
        await task.enqueue(2)
        await inspector.drain()
        await eventually(lambda: first.describe().status == second.describe().status == "draining")
        assert not one.done()
        ends.set()
        await asyncio.wait({one, two}, timeout=20)
        assert one.done()
        assert two.done()
        assert first.ordered
        assert second.ordered
    assert sorted(started) == [0, 1]
    info = await inspector.queue("default")
    assert (info.ready, info.active, info.processed) == (1, 0, 2)


async def test_a_worker_that_starts_after_an_order_to_all_is_not_meant(
    app: StreamQ, inspector: Inspector
) -> None:
    """A deploy: the old ones drain, the new ones work. Nor is one with an id that was told before."""
    ran = asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        ran.set()

    async with live(make_worker(app, worker_id="w1")) as old:
        await inspector.drain()
        await asyncio.wait({old}, timeout=20)
        assert old.done()
    keys, client = make_worker(app).keys, app.client.runner
    now_ms = await client.run(server_time())
    await client.run_all(ordering.order(keys, "w1", Verb.DRAIN, now_ms - 1))
    async with running(app, worker_id="w1", presence_s=0.1) as new:
        await task.enqueue()
        await ran.wait()
        await eventually(lambda: new.settler.settled == 1)
        assert new.describe().status == "running"
        assert not new.ordered


async def test_an_order_that_no_hint_carries_arrives_with_the_heartbeat(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(app, presence_s=0.2)
    monkeypatch.setattr(worker.hints, "_on_order", lambda: None)
    async with live(worker) as run:
        await inspector.stop(worker.id)
        await asyncio.wait({run}, timeout=20)
        assert run.done()
        assert worker.ordered


async def test_a_stop_from_outside_keeps_to_the_grace_period(app: StreamQ, inspector: Inspector) -> None:
    """What still runs then is given back; reading the order again does not hurry it."""
    started, ends = asyncio.Event(), asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        started.set()
        await ends.wait()

    await task.enqueue()
    async with live(worker := make_worker(app, presence_s=0.1, grace_s=60)) as run:
        await started.wait()
        await inspector.stop(worker.id)
        await eventually(lambda: worker.describe().status == "stopping")
        beats = worker.presence
        for _ in range(3):
            await beats.run_once()
        assert not worker._hurried.is_set()
        ends.set()
        await asyncio.wait({run}, timeout=20)
        assert run.done()
    assert worker.settler.settled == 1


async def test_orders_to_nobody_are_refused(app: StreamQ, inspector: Inspector) -> None:
    with pytest.raises(WorkerError, match="worker nobody: is not there"):
        await inspector.drain("nobody")
    with pytest.raises(OptionError, match="worker_id"):
        await inspector.quiet("")
    with pytest.raises(OptionError, match="means all workers"):
        app.worker(worker_id="*")


async def test_an_order_that_this_version_does_not_know_is_left_alone(app: StreamQ, server: Server) -> None:
    worker = make_worker(app, presence_s=0.1)
    for value in ("dance 99999999999999", "quiet", "quiet soon", b"\xff"):
        server.client().hset(worker.keys.orders.decode(), worker.id, value)
        async with asyncio.timeout(20):
            await worker.presence.run_once()
    assert worker.describe().status == "running"
    await worker._control.aclose()


async def test_a_worker_that_leaves_takes_its_orders_along(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """And those to all expire by themselves."""
    async with live(worker := make_worker(app)) as run:
        await inspector.drain(worker.id)
        await asyncio.wait({run}, timeout=20)
    assert not server.client().exists(worker.keys.orders.decode())
    await inspector.quiet()
    assert 0 < server.client().ttl(worker.keys.orders.decode()) <= 86_400


# Health


async def test_who_wants_to_know_is_told_whether_redis_could_be_reached(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """A125: None while it is up, the error while it is down, and None again after."""
    proxy = await proxy_for(server)
    told: list[ServerError | None] = []
    app = StreamQ(proxy.url, namespace=namespace, on_health=told.append)
    async with running(app, presence_s=0.1):
        await eventually(lambda: told)
        assert set(told) == {None}
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: isinstance(told[-1], Unavailable))
        await proxy.accept()
        await eventually(lambda: told[-1] is None)


@pytest.mark.parametrize("kind", ["raises", "exits", "cancels", "hangs"])
async def test_a_health_callback_never_ends_the_heartbeat(
    app: StreamQ, inspector: Inspector, kind: str
) -> None:
    """A125: whatever it does, the worker goes on and is seen."""
    calls: list[int] = []

    async def on_health(_failure: ServerError | None) -> None:
        calls.append(1)
        if kind == "hangs":
            await asyncio.Event().wait()
        raise {"raises": ValueError(), "exits": SystemExit(1), "cancels": asyncio.CancelledError()}[kind]

    async with running(app, presence_s=0.1, on_health=on_health) as worker:
        await eventually(lambda: len(calls) >= 3)
        assert [info.id for info in await inspector.workers()] == [worker.id]


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
