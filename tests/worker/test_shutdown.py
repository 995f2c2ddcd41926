"""Start and stop: two verbs in a written order, called twice, during outages; nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import streamq.worker.worker as worker_module
from streamq import StreamQ, current_task
from streamq.errors import LifecycleError, RegistrationError
from streamq.inspector import Inspector
from streamq.model.states import State
from streamq.worker.worker import Worker
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server
from tests.support import eventually, live, make_worker, reads, running
from tests.worker.test_outcomes import Errors, is_gone


class Gate:
    """A handler that takes note of how it fares, and waits."""

    def __init__(self, app: StreamQ, **options: Any) -> None:
        self.started: list[int] = []
        self.told: list[str] = []
        self.ended: list[str] = []
        self.open = asyncio.Event()
        self.task = app.task(name="gate", **options)(self.handler)

    async def handler(self) -> str:
        self.started.append(current_task().attempt)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.told.append(current_task().id)
            raise
        self.ended.append(current_task().id)
        return "done"


async def ended(run: asyncio.Task[None]) -> None:
    await eventually(run.done, "the worker has stopped")
    await run


async def test_quiet_takes_nothing_more_and_goes_on_with_what_runs(
    app: StreamQ, inspector: Inspector
) -> None:
    gate = Gate(app)
    first = await gate.task.enqueue()
    worker = make_worker(app)
    async with live(worker) as run:
        await eventually(lambda: gate.started)
        worker.quiet()
        worker.quiet()
        await eventually(lambda: not fetching())
        second = await gate.task.enqueue()
        assert worker.describe().status == "quiet"
        gate.open.set()
        await eventually(lambda: is_gone(inspector, first.id))
        # It does not end by itself, and it has not taken the second.
        assert not run.done()
        assert (await inspector.task("default", second.id)).state is State.READY
    assert gate.ended == [first.id]


def fetching() -> bool:
    return any(task.get_name() == "streamq-fetcher" for task in asyncio.all_tasks())


async def test_stop_lets_handlers_end_within_the_grace_period(app: StreamQ, inspector: Inspector) -> None:
    gate = Gate(app)
    handle = await gate.task.enqueue()
    worker = make_worker(app, grace_s=60)
    async with live(worker) as run:
        await eventually(lambda: gate.started)
        worker.stop()
        await eventually(lambda: not fetching())
        assert worker.describe().status == "stopping"
        assert not run.done()
        gate.open.set()
        await ended(run)
        assert (gate.ended, gate.told) == ([handle.id], [])
        assert await is_gone(inspector, handle.id)


async def test_what_still_runs_at_the_deadline_is_told_and_given_back_with_nothing_spent(
    app: StreamQ, inspector: Inspector
) -> None:
    """A69, B33: ready at the head, lease gone, retried and crashes unchanged; the hook is not called."""
    gate, errors = Gate(app), Errors()
    handle = await gate.task.enqueue()
    later = await app.enqueue("gate", {})
    worker = make_worker(app, grace_s=0.05, concurrency=1, on_error=errors)
    async with live(worker) as run:
        await eventually(lambda: gate.started)
        worker.stop()
        await ended(run)
    assert (gate.told, errors.told) == ([handle.id], [])
    queue = await inspector.queue("default")
    assert (queue.ready, queue.active, queue.processed) == (2, 0, 0)
    gate.open.set()
    async with running(app, concurrency=1):
        await eventually(lambda: len(gate.ended) == 2)
    assert gate.ended == [handle.id, later.id]  # at the head, before what was enqueued after it
    assert gate.started == [1, 1, 1]


async def test_a_handler_is_told_at_the_deadline_and_its_task_returns_only_after_it_stopped(
    app: StreamQ, inspector: Inspector
) -> None:
    """B33: it cleans up for a while; meanwhile nobody else can have the task."""
    told, may_end = asyncio.Event(), asyncio.Event()
    states: list[State] = []

    @app.task(name="tidy")
    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.set()
            states.append((await inspector.task("default", current_task().id)).state)
            await may_end.wait()

    handle = await tidy.enqueue()
    worker = make_worker(app, grace_s=0.05, lease_ms=600)
    async with live(worker) as run:
        await eventually(lambda: worker.executor.running)
        worker.stop()
        await told.wait()
        renewed = worker.lease_keeper.renewed
        await eventually(lambda: worker.lease_keeper.renewed > renewed, "its lease is kept meanwhile")
        assert (await inspector.task("default", handle.id)).state is State.ACTIVE
        may_end.set()
        await ended(run)
    assert states == [State.ACTIVE]
    assert (await inspector.task("default", handle.id)).state is State.READY


async def test_what_a_handler_came_to_at_the_deadline_counts(app: StreamQ, inspector: Inspector) -> None:
    """One that finishes its work although it was told to stop has finished it."""
    told = asyncio.Event()

    @app.task(name="t", retention=60)
    async def task() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
        return "in time"

    handle = await task.enqueue()
    worker = make_worker(app, grace_s=0.05)
    async with live(worker) as run:
        await eventually(lambda: worker.executor.running)
        worker.stop()
        await ended(run)
    assert await handle.result(timeout=5) == "in time"


async def test_a_second_stop_skips_the_wait(app: StreamQ, inspector: Inspector) -> None:
    gate = Gate(app)
    handle = await gate.task.enqueue()
    worker = make_worker(app, grace_s=3600)
    async with live(worker) as run:
        await eventually(lambda: gate.started)
        worker.stop()
        await eventually(lambda: not fetching())
        assert not run.done()
        worker.stop()
        await ended(run)
    assert gate.told == [handle.id]
    assert (await inspector.queue("default")).ready == 1


async def test_a_worker_with_all_slots_taken_stops_without_waiting_for_its_read(app: StreamQ) -> None:
    """With a block time of a minute, only the grace period counts."""
    gate = Gate(app)
    for _ in range(2):
        await gate.task.enqueue()
    worker = make_worker(app, concurrency=1, block_ms=60_000, grace_s=0.05)
    async with live(worker) as run:
        await eventually(lambda: gate.started)
        worker.stop()
        await ended(run)


async def test_an_idle_worker_stops_without_waiting_for_its_read(app: StreamQ) -> None:
    """Its blocked read is woken by CLIENT UNBLOCK."""
    worker = make_worker(app, block_ms=60_000, grace_s=60)
    async with live(worker) as run:
        await eventually(lambda: worker.fetcher._connection)
        worker.stop()
        await ended(run)


async def test_a_sync_handler_that_will_not_end_is_given_back_when_the_worker_leaves(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B33: a thread cannot be stopped but by the end of its process, which is next; ``stuck`` says so."""
    monkeypatch.setattr(worker_module, "_CANCEL_S", 0.1)
    ends = threading.Event()

    @app.task(name="stuck")
    def stuck() -> None:
        ends.wait(60)

    handle = await stuck.enqueue()
    worker = make_worker(app, grace_s=0.05)
    try:
        async with live(worker) as run:
            await eventually(lambda: worker.executor.running)
            worker.stop()
            await ended(run)
        assert worker.stuck == 1
        assert (await inspector.task("default", handle.id)).state is State.READY
    finally:
        ends.set()
        await eventually(lambda: worker.executor.running == 0)
    queue = await inspector.queue("default")  # what the thread came to afterwards changed nothing
    assert (queue.ready, queue.processed) == (1, 0)


async def test_a_worker_stopped_before_it_ran_does_nothing(app: StreamQ, inspector: Inspector) -> None:
    await app.enqueue("t", {})
    worker = make_worker(app)
    worker.stop()
    await worker.run()
    assert (await inspector.queue("default")).ready == 1


async def test_a_worker_runs_once(app: StreamQ) -> None:
    """A126: not a second time while it runs, and not again after its end; the running one is unharmed."""
    gate = Gate(app)
    worker = make_worker(app)
    async with live(worker):
        with pytest.raises(LifecycleError, match="worker: runs already"):
            await worker.run()
        await app.enqueue("gate", {})
        await eventually(lambda: gate.started)
    with pytest.raises(LifecycleError, match="worker: has ended; make a new one"):
        await worker.run()


async def test_a_worker_without_tasks_does_not_run(app: StreamQ) -> None:
    """A126: it would archive whatever it gets; mostly the module with the tasks was not imported."""
    with pytest.raises(RegistrationError, match="tasks: the app has none"):
        await app.worker().run()


async def test_a_worker_starts_once_redis_is_there(private_server: PrivateServer) -> None:
    """A128, A124: Redis is down at the start; no crash, and it works as soon as Redis comes."""
    server = private_server()
    server.stop()
    app = StreamQ(server.url)
    seen: list[int] = []

    @app.task(name="t")
    async def task() -> None:
        seen.append(1)

    async with running(app, wait=False) as worker:
        await eventually(lambda: asyncio.all_tasks() and not reads(worker))
        server.start()
        async with app:
            await task.enqueue()
        await eventually(lambda: seen == [1])


async def test_a_worker_that_waits_for_redis_can_be_stopped(private_server: PrivateServer) -> None:
    """A128"""
    server = private_server()
    server.stop()
    async with running(StreamQ(server.url), wait=False) as worker:
        assert not reads(worker)


async def test_a_stop_while_redis_is_away_ends_within_bounds(
    server: Server, namespace: str, proxy_for: ProxyFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A128: outcomes that cannot be settled are left to recovery; the worker does not hang."""
    monkeypatch.setattr(worker_module, "_CANCEL_S", 0.3)
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    direct = StreamQ(server.url, namespace=namespace)
    gate = Gate(app)
    async with direct, direct.inspector() as inspector:
        await direct.enqueue("gate", {})
        worker = make_worker(app, grace_s=0.05)
        async with live(worker) as run:
            await eventually(lambda: gate.started)
            await proxy.refuse()
            proxy.cut()
            worker.stop()
            await ended(run)
        assert worker.settler.unsettled == 1
        assert (await inspector.queue("default")).active == 1


async def test_a_stop_while_redis_is_silent_ends_within_bounds(
    server: Server, namespace: str, proxy_for: ProxyFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open: connections stand, nothing answers."""
    monkeypatch.setattr(worker_module, "_CANCEL_S", 0.3)
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    async with running(app, timeouts=_short()) as worker:
        await eventually(lambda: worker.fetcher._connection)
        proxy.silence()


def _short() -> Any:
    from streamq.broker.dial import Timeouts

    return Timeouts(connect_s=0.5, reply_s=0.5)


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_nothing_is_left_of_a_worker_that_ran(
    server: Server, namespace: str, proxy_for: ProxyFor, how: str
) -> None:
    """A130, A81: no task, no thread but idle handler threads, no connection, no heartbeat."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    gate = Gate(app)
    direct = StreamQ(server.url, namespace=namespace)
    async with direct, direct.inspector() as inspector:
        await direct.enqueue("gate", {})
        await inspector.queues()
        before, threads = asyncio.all_tasks(), set(threading.enumerate())
        worker = make_worker(app, grace_s=0.05)
        run = asyncio.create_task(worker.run())
        await eventually(lambda: gate.started)
        await eventually(lambda: proxy.connections >= 4)
        assert len(await inspector.workers()) == 1
        if how == "stop":
            worker.stop()
        else:
            run.cancel()
        await asyncio.wait([run], timeout=20)
        assert run.done()
        assert run.cancelled() is (how == "cancel")
        await eventually(lambda: proxy.connections == 0)
        assert await inspector.workers() == []
        queue = await inspector.queue("default")
        assert (queue.ready, queue.active) == (1, 0)  # also a cancelled worker gives back what it held
    await eventually(lambda: not _workers_tasks(before))
    left = {thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("streamq")}
    assert left == set()


def _workers_tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    left = asyncio.all_tasks() - before
    return [task.get_name() for task in left if task.get_name().startswith("streamq")]


async def test_a_stop_from_a_handler_does_not_wait_for_itself(app: StreamQ) -> None:
    workers: list[Worker] = []

    @app.task(name="stop")
    async def stop() -> None:
        workers[0].stop()

    workers.append(make_worker(app, grace_s=60))
    await stop.enqueue()
    async with live(workers[0]) as run:
        await ended(run)
    assert workers[0].settler.settled == 1


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_a_clean_stop_under_load_runs_nothing_twice_and_spends_nothing(
    app: StreamQ, inspector: Inspector, concurrency: int
) -> None:
    """Handlers shorter than the grace period: each task runs exactly once, over many stops."""
    seen: list[int] = []

    @app.task(name="t")
    async def task(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)
        assert (current_task().attempt, current_task().crashes) == (1, 0)

    await app.enqueue_many(task.call(number) for number in range(300))
    stops = 0
    while (await inspector.queue("default")).size and stops < 20:
        async with running(app, concurrency=concurrency) as worker:
            before = len(seen)
            await eventually(lambda before=before: len(seen) >= min(before + 40, 300))  # type: ignore[misc]
            worker.stop()
            await eventually(lambda: worker.executor.running == 0)  # awaited here
        stops += 1
    assert sorted(seen) == list(range(300))
    counters = await inspector.counters("default")
    assert counters == {"processed": 300}
