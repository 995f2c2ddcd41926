"""Forwarder and janitor: due tasks move when they are due and never before; what had its time is deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamq import Retry, StreamQ, current_task
from streamq.broker.keys import Keys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import make_group
from streamq.inspector import Inspector
from streamq.model.states import State
from streamq.worker import janitor as janitor_module
from streamq.worker.forwarder import Forwarder
from streamq.worker.janitor import Janitor
from tests.servers import Server
from tests.support import eventually, keys_of, running
from tests.worker.test_outcomes import in_state, is_gone


@pytest.fixture
async def runner(app: StreamQ) -> AsyncIterator[AsyncRunner]:
    runner = AsyncRunner(app.address)
    yield runner
    await runner.aclose()


def server_ms(server: Server) -> int:
    seconds, micros = server.client().time()
    return int(seconds) * 1000 + int(micros) // 1000


async def test_only_what_is_due_moves(app: StreamQ, runner: AsyncRunner, inspector: Inspector) -> None:
    """A83: scheduled tasks of two queues, past and future; it answers when to come again."""
    for queue in ("a", "b"):
        await app.enqueue("t", {}, queue=queue, delay=0.001)
        await app.enqueue("t", {}, queue=queue, delay=3600)
    forwarder = Forwarder(runner, [keys_of(app, "a"), keys_of(app, "b")])
    await eventually(lambda: _forwarded(forwarder, 2))
    next_ms = await forwarder.run_once()
    assert 3_500_000 < next_ms <= 3_600_000
    assert forwarder.forwarded == 2
    for queue in ("a", "b"):
        info = await inspector.queue(queue)
        assert (info.ready, info.scheduled) == (1, 1)


async def _forwarded(forwarder: Forwarder, count: int) -> bool:
    await forwarder.run_once()
    return forwarder.forwarded >= count


async def test_with_nothing_waiting_it_answers_so(app: StreamQ, runner: AsyncRunner) -> None:
    assert await Forwarder(runner, [keys_of(app)]).run_once() == -1


async def test_more_than_a_page_is_moved_in_one_pass(
    app: StreamQ, runner: AsyncRunner, inspector: Inspector
) -> None:
    task = app.task(name="t")(_noop)
    await app.enqueue_many([task.options(delay=0.001).call()] * 600)
    forwarder = Forwarder(runner, [keys_of(app)])
    await eventually(lambda: _forwarded(forwarder, 600))
    assert (await inspector.queue("default")).ready == 600


async def _noop() -> None: ...


@pytest.mark.parametrize("delay", [0.05, 0.25])
async def test_a_delay_of_milliseconds_is_honoured_and_never_early(
    app: StreamQ, server: Server, delay: float
) -> None:
    """B21: 250 ms, by Redis's clock; also for a worker that had gone to sleep for longer."""
    started: list[int] = []

    @app.task(name="t")
    async def task() -> None:
        started.append(server_ms(server))

    async with running(app):
        for number in range(5):
            before = server_ms(server)
            await task.options(delay=delay).enqueue()
            await eventually(lambda number=number: len(started) == number + 1)  # type: ignore[misc]
            assert started[-1] - before >= delay * 1000


async def test_a_retry_delay_of_milliseconds_is_honoured_and_never_early(
    app: StreamQ, server: Server
) -> None:
    """B21"""
    started: list[int] = []

    @app.task(name="t", retry=Retry(max_retries=1, delay=0.25))
    async def task() -> None:
        started.append(server_ms(server))
        raise ValueError

    await task.enqueue()
    async with running(app):
        await eventually(lambda: len(started) == 2)
    assert started[1] - started[0] >= 250


async def test_a_task_due_earlier_than_all_others_wakes_the_forwarder(app: StreamQ) -> None:
    """The hint: it does not sleep until the next due time it knew of."""
    ran: list[str] = []

    @app.task(name="t")
    async def task(name: str) -> None:
        ran.append(name)

    await task.options(delay=3600).enqueue("late")
    async with running(app) as worker:
        await eventually(lambda: worker.hints._listener._standing)
        began = time.monotonic()
        await task.options(delay=0.05).enqueue("soon")
        await eventually(lambda: ran == ["soon"], within_s=4)  # it would have slept for five seconds
        assert time.monotonic() - began >= 0.05


async def test_a_task_scheduled_into_a_lane_keeps_it(app: StreamQ) -> None:
    order: list[str] = []

    @app.task(name="t")
    async def task(name: str) -> None:
        order.append(name)

    blocker = asyncio.Event()

    @app.task(name="block")
    async def block() -> None:
        await blocker.wait()

    async with running(app, concurrency=1) as worker:
        await block.enqueue()
        await eventually(lambda: worker.executor.running)
        await task.options(delay=0.02, priority="low").enqueue("low")
        await eventually(lambda: worker.forwarder.forwarded == 1)
        await task.options(delay=0.02, priority="high").enqueue("high")
        await eventually(lambda: worker.forwarder.forwarded == 2)
        blocker.set()
        await eventually(lambda: len(order) == 2)
    assert order == ["high", "low"]


async def test_a_retention_of_milliseconds_is_honoured_and_never_early(
    app: StreamQ, server: Server, inspector: Inspector, runner: AsyncRunner
) -> None:
    """B21, A85: 500 ms; the janitor deletes it with its body, and nothing before its time."""

    @app.task(name="t", retention=0.5)
    async def task() -> str:
        return "kept for a while"

    handle = await task.enqueue()
    stays = await task.options(retention=3600).enqueue()
    async with running(app):
        info = await in_state(inspector, stays.id, State.COMPLETED)
        assert await handle.result(timeout=5) == "kept for a while"
        info = await inspector.task("default", handle.id)
    assert info.completed_at is not None
    janitor = Janitor(
        runner, Keys(app.config.namespace), [keys_of(app)], archive_age_ms=86_400_000, archive_size=10
    )
    deleted_ms = 0

    async def purged() -> bool:
        nonlocal deleted_ms
        await janitor.run_once()
        deleted_ms = server_ms(server)
        return janitor.purged == 1

    await eventually(purged)
    assert deleted_ms - info.completed_at.timestamp() * 1000 >= 495
    assert await is_gone(inspector, handle.id)
    assert (await inspector.queue("default")).completed == 1
    assert server.client().hlen(keys_of(app).parked) == 1
    assert await janitor.run_once() > 3_000_000


async def test_a_worker_cleans_up_by_itself(app: StreamQ, inspector: Inspector) -> None:
    """A85: through a worker; it comes when the next retention ends."""

    @app.task(name="t", retention=0.2)
    async def task() -> None: ...

    handle = await task.enqueue()
    async with running(app):
        await in_state(inspector, handle.id, State.COMPLETED)
    async with running(app):  # one that finds it there at its start
        await eventually(lambda: is_gone(inspector, handle.id))


async def test_the_sweep_forgets_who_left_and_nobody_else(
    app: StreamQ, server: Server, inspector: Inspector, runner: AsyncRunner
) -> None:
    """Consumers of live workers stay, and so do those that own entries: recovery comes first."""
    keys, redis = keys_of(app), server.client()
    for lane in keys.lanes.values():
        await runner.run(make_group(lane))
        redis.xgroup_createconsumer(lane, "w", "gone")
        redis.xgroup_createconsumer(lane, "w", "owner")
    [lane] = [key for key in keys.lanes.values() if key.endswith(b":normal")]
    await app.enqueue("t", {})
    redis.xreadgroup("w", "owner", {lane: ">"}, count=1)
    await inspector.pause("default")
    async with running(app, wait=False) as worker:
        await eventually(inspector.workers)
        redis.xgroup_createconsumer(lane, "w", worker.id)
        janitor = Janitor(runner, Keys(app.config.namespace), [keys], archive_age_ms=1, archive_size=10)
        await janitor.sweep()
        rows: Any = redis.xinfo_consumers(lane, "w")
        names = {row["name"] for row in rows}
    assert names == {b"owner", worker.id.encode()}


async def test_the_sweep_of_an_adopted_queue_that_nobody_ever_read_finds_nothing(
    app: StreamQ, runner: AsyncRunner
) -> None:
    """B38: it has no lane, or lanes without a group."""
    await app.enqueue("t", {}, queue="theirs")
    janitor = Janitor(
        runner,
        Keys(app.config.namespace),
        [],
        adopted=[keys_of(app, "theirs")],
        archive_age_ms=1,
        archive_size=0,
    )
    assert await janitor.sweep() == 0
    assert await janitor.run_once() == -1


async def test_the_janitor_sweeps_although_a_queue_cannot_be_purged(
    app: StreamQ, server: Server, runner: AsyncRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: a key of the wrong type in one queue keeps nobody from forgetting who left."""
    broken, good = keys_of(app, "broken"), keys_of(app, "good")
    redis: Any = server.client()
    redis.set(broken.completed, "something else")
    [lane] = [key for key in good.lanes.values() if key.endswith(b":normal")]
    await runner.run(make_group(lane))
    redis.xgroup_createconsumer(lane, "w", "gone")
    monkeypatch.setattr(janitor_module, "_SWEEP_S", 0.0)
    janitor = Janitor(runner, Keys(app.config.namespace), [broken, good], archive_age_ms=1, archive_size=10)
    task = asyncio.create_task(janitor.run())
    await eventually(lambda: not redis.xinfo_consumers(lane, "w"))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_current_task_of_a_recovered_schedule_keeps_its_crash_count(
    app: StreamQ, server: Server
) -> None:
    """The count travels with the task through retry and forward."""
    seen: list[int] = []

    @app.task(name="t", retry=Retry(max_retries=3, delay=0))
    async def task() -> None:
        seen.append(current_task().crashes)
        if len(seen) == 1:
            raise ValueError

    await task.enqueue()
    keys, redis = keys_of(app), server.client()
    [lane] = [key for key in keys.lanes.values() if key.endswith(b":normal")]
    redis.xgroup_create(lane, "w", "0")
    redis.xreadgroup("w", "dead", {lane: ">"}, count=1)
    async with running(app) as worker:
        await worker.recoverer.run_once("dead")
        await eventually(lambda: len(seen) == 2)
    assert seen == [1, 1]
