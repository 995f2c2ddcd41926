"""Leases: kept while a handler runs, noticed when lost, recovered when their worker died."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from streamq import StreamQ
from streamq.broker import working
from streamq.broker.runner import AsyncRunner
from streamq.broker.sync_runner import SyncRunner
from streamq.broker.working import recover
from streamq.clock import ServerClock, wall_ms
from streamq.errors import LeaseLost
from streamq.inspector import Inspector
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from streamq.worker.lease_keeper import LeaseKeeper
from streamq.worker.recoverer import Recoverer
from tests.conftest import PrivateServer
from tests.servers import Server
from tests.support import eventually, keys_of, live, make_worker, running
from tests.worker.test_outcomes import Errors, in_state, is_gone


def idle_ms(server: Server, lane: bytes) -> dict[bytes, int]:
    """Entry id to idle time of the lane's active entries."""
    rows: Any = server.client().xpending_range(lane, "w", "-", "+", 100)
    return {row["message_id"]: row["time_since_delivered"] for row in rows}


def deliver(
    server: Server, app: StreamQ, consumer: str, count: int = 10, queue: str = "default"
) -> list[bytes]:
    """Hand entries of the normal lane to a consumer, as a worker's read does; their ids."""
    redis, lane = server.client(), keys_of(app, queue).lanes[Lane.NORMAL]
    if not redis.xinfo_groups(lane):
        redis.xgroup_create(lane, "w", "0")
    reply: Any = redis.xreadgroup("w", consumer, {lane: ">"}, count=count)
    return [entry_id for entry_id, _ in reply[0][1]]


def keeper(
    app: StreamQ, held: dict[bytes, list[bytes]], lost: list[tuple[bytes, list[bytes]]], lease_ms: int = 600
) -> LeaseKeeper:
    return LeaseKeeper(
        SyncRunner(app.address),
        lambda: held,
        lambda lane, ids: lost.append((lane, ids)),
        consumer="w1",
        lease_ms=lease_ms,
    )


# Keeping


async def test_only_what_is_still_held_is_renewed(app: StreamQ, server: Server) -> None:
    """A80: two of three are finished; the third's lease alone moves. Nothing is held: nothing is sent."""
    for _ in range(3):
        await app.enqueue("t", {})
    ids = deliver(server, app, "w1")
    lane = keys_of(app).lanes[Lane.NORMAL]
    await eventually(lambda: min(idle_ms(server, lane).values()) >= 30)
    held = {lane: [ids[2]]}
    lost: list[tuple[bytes, list[bytes]]] = []
    keep = keeper(app, held, lost)
    assert keep.run_once() == 1
    idle = idle_ms(server, lane)
    assert idle[ids[2]] < 30 <= min(idle[ids[0]], idle[ids[1]])
    held.clear()
    before = server.commandstats()
    assert keep.run_once() == 0
    assert (server.commandstats() - before)["xclaim"] == 0
    assert lost == []
    keep.stop()


async def test_a_lease_that_someone_else_has_is_reported_and_not_taken_back(
    app: StreamQ, server: Server
) -> None:
    """A78: what was recovered has another entry id; renewing the old one takes nothing."""
    await app.enqueue("t", {})
    [entry_id] = deliver(server, app, "w1")
    keys = keys_of(app)
    runner = app.client.runner
    await runner.run(
        recover(keys, Lane.NORMAL, "20260101", "w2", lease_ms=0, crash_limit=3, backoff_ms=1, dead="w1")
    )
    lost: list[tuple[bytes, list[bytes]]] = []
    lane = keys.lanes[Lane.NORMAL]
    keep = keeper(app, {lane: [entry_id]}, lost)
    assert keep.run_once() == 0
    assert lost == [(lane, [entry_id])]
    assert idle_ms(server, lane) == {}
    assert server.client().xlen(keys.lanes[Lane.FRONT]) == 1
    keep.stop()


async def test_many_leases_are_renewed_page_by_page(app: StreamQ, server: Server) -> None:
    await app.enqueue_many([app.task(name="t")(_noop).call()] * 1200)
    ids = deliver(server, app, "w1", count=1200)
    before = server.commandstats()
    keep = keeper(app, {keys_of(app).lanes[Lane.NORMAL]: ids}, [])
    assert keep.run_once() == 1200
    assert (server.commandstats() - before)["xclaim"] == 3
    keep.stop()


async def _noop() -> None: ...


async def test_a_lane_without_group_does_not_keep_the_other_leases_from_being_renewed(
    app: StreamQ, server: Server
) -> None:
    """Someone deleted a queue's stream: its leases are lost, the next queue's are not."""
    for queue in ("gone", "there"):
        await app.enqueue("t", {}, queue=queue)
    gone, there = (keys_of(app, queue).lanes[Lane.NORMAL] for queue in ("gone", "there"))
    held = {gone: deliver(server, app, "w1", queue="gone"), there: deliver(server, app, "w1", queue="there")}
    server.client().delete(gone)
    lost: list[tuple[bytes, list[bytes]]] = []
    keep = keeper(app, held, lost)
    assert keep.run_once() == 1
    assert lost == [(gone, held[gone])]
    keep.stop()


async def test_the_keeper_outlives_an_outage_and_whatever_else_goes_wrong(
    app: StreamQ, private_server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its thread every lease would run out."""
    server = private_server()
    asked = 0

    def snapshot() -> dict[bytes, list[bytes]]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("a fault of ours")
        return {b"sq:{x}:normal": [b"1-1"]}

    keep = LeaseKeeper(
        SyncRunner(StreamQ(server.url).address), snapshot, lambda *_: None, consumer="w1", lease_ms=300
    )
    keep.start()
    await eventually(lambda: asked >= 3)
    server.kill()
    await eventually(lambda: "cannot renew leases" in caplog.text)
    before = asked
    await eventually(lambda: asked > before)
    keep.stop()
    keep.stop()
    assert "renewing leases failed" in caplog.text
    assert "streamq-lease-keeper" not in {thread.name for thread in threading.enumerate()}


async def test_a_handler_that_hogs_the_event_loop_keeps_its_lease(app: StreamQ, inspector: Inspector) -> None:
    """The loop is blocked for twice the lease while another worker looks for expired ones all the time."""
    runs: list[int] = []

    @app.task(name="hog")
    async def hog() -> None:
        runs.append(1)
        time.sleep(1.2)  # the fault under test

    handle = await hog.enqueue()
    stopping = threading.Event()
    recovered: list[int] = []

    def search() -> None:
        runner = SyncRunner(app.address)
        while not stopping.wait(0.02):
            for lane in LANES:
                found = runner.run(
                    recover(
                        keys_of(app), lane, "20260101", "other", lease_ms=600, crash_limit=3, backoff_ms=1
                    )
                )
                recovered.append(found.front + found.retry)
        runner.close()

    thread = threading.Thread(target=search)
    thread.start()
    try:
        async with running(app, lease_ms=600):
            await eventually(lambda: is_gone(inspector, handle.id))
    finally:
        stopping.set()
        thread.join()
    assert runs == [1]
    assert sum(recovered) == 0
    assert len(recovered) > 4


# Losing


async def test_a_handler_whose_lease_is_lost_is_cancelled_and_writes_nothing(
    app: StreamQ, inspector: Inspector
) -> None:
    """A77: the hook hears LeaseLost; the task's state is the new owner's alone."""
    errors = Errors()
    started, told = asyncio.Event(), asyncio.Event()

    @app.task(name="t", retention=60)
    async def task() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise
        return "never"

    handle = await task.enqueue()
    async with running(app, lease_ms=600, on_error=errors) as worker:
        await started.wait()
        await inspector.pause("default")  # so that this worker does not run it again
        await eventually(lambda: worker.fetcher._paused)
        await app.client.runner.run(
            recover(
                keys_of(app), Lane.NORMAL, "20260101", "other", lease_ms=0, crash_limit=3, backoff_ms=1,
                dead=worker.id,
            )
        )  # fmt: skip
        await told.wait()
        await eventually(lambda: errors.told)
        await eventually(lambda: not len(worker.held))
        assert (worker.settler.settled, worker.settler.unsettled) == (0, 0)
        assert worker.executor.free == 10
    [(task_id, error)] = errors.told
    assert task_id == handle.id
    assert isinstance(error, LeaseLost)
    queue = await inspector.queue("default")
    assert (queue.ready, queue.active, queue.completed, queue.processed) == (1, 0, 0, 0)


async def test_a_handler_that_returns_after_its_lease_was_lost_settles_nothing(
    app: StreamQ, inspector: Inspector
) -> None:
    """A77: it ignores its cancellation, and its result is thrown away."""
    started, told, ends = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.task(name="t", retention=60)
    async def task() -> str:
        started.set()
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                told.set()
        return "too late"

    await task.enqueue()
    async with running(app, lease_ms=600) as worker:
        await started.wait()
        await inspector.pause("default")
        await eventually(lambda: worker.fetcher._paused)
        await app.client.runner.run(
            recover(
                keys_of(app), Lane.NORMAL, "20260101", "other", lease_ms=0, crash_limit=3, backoff_ms=1,
                dead=worker.id,
            )
        )  # fmt: skip
        await told.wait()
        ends.set()
        await eventually(lambda: worker.executor.running == 0)
        settler = worker.settler
        assert (settler.settled, settler.lost, settler.unsettled, len(worker.held)) == (0, 0, 0, 0)
    queue = await inspector.queue("default")
    assert (queue.ready, queue.completed, queue.processed) == (1, 0, 0)


# Recovering


class Passes:
    """A recoverer by hand."""

    def __init__(self, app: StreamQ, *queues: str, lease_ms: int = 60_000, crash_limit: int = 3) -> None:
        self.runner = AsyncRunner(app.address)
        self.recoverer = Recoverer(
            self.runner,
            [keys_of(app, queue) for queue in queues or ("default",)],
            ServerClock(),
            consumer="w2",
            lease_ms=lease_ms,
            crash_limit=crash_limit,
            backoff_ms=50,
        )

    async def __aenter__(self) -> Recoverer:
        return self.recoverer

    async def __aexit__(self, *exc_info: object) -> None:
        await self.runner.aclose()


async def test_with_nothing_active_a_pass_changes_nothing(app: StreamQ, inspector: Inspector) -> None:
    """A73: with and without groups."""
    await app.enqueue("t", {})
    async with Passes(app) as recoverer:
        assert await recoverer.run_once() == 0
        assert recoverer.recovered == 0
    assert (await inspector.queue("default")).ready == 1


async def test_only_expired_leases_are_recovered(app: StreamQ, server: Server) -> None:
    """A72: one expired, two live, in two queues."""
    lanes = {}
    for queue in ("a", "b"):
        for _ in range(3):
            await app.enqueue("t", {}, queue=queue)
        ids = deliver(server, app, "w1", queue=queue)
        lanes[queue] = keys_of(app, queue).lanes[Lane.NORMAL]
        server.client().xclaim(lanes[queue], "w", "w1", 0, [ids[1]], idle=600_000)
    async with Passes(app, "a", "b") as recoverer:
        assert await recoverer.run_once() == 4
        assert recoverer.recovered == 2
    for queue, lane in lanes.items():
        assert len(idle_ms(server, lane)) == 2
        assert server.client().xlen(keys_of(app, queue).lanes[Lane.FRONT]) == 1


async def test_a_dead_workers_entries_are_taken_at_once_when_someone_saw_it_die(
    app: StreamQ, server: Server
) -> None:
    for _ in range(4):
        await app.enqueue("t", {})
    deliver(server, app, "dead", count=3)
    deliver(server, app, "living", count=1)
    async with Passes(app) as recoverer:
        assert await recoverer.run_once("dead") == 1
        assert recoverer.recovered == 3


async def test_an_expired_lease_is_recovered_at_start_up(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """A74: at once, not one period later. The next pass would come after most of ten minutes."""
    seen: list[int] = []

    @app.task(name="t")
    async def task() -> None:
        seen.append(1)

    handle = await task.enqueue()
    [entry_id] = deliver(server, app, "dead")
    lane = keys_of(app).lanes[Lane.NORMAL]
    server.client().xclaim(lane, "w", "dead", 0, [entry_id], idle=3_600_000)
    worker = make_worker(app, lease_ms=600_000)
    control = worker._control

    def has_been_up_for_an_hour() -> None:
        control.capabilities = replace(control.capabilities, uptime_s=3600)

    control.on_connect = has_been_up_for_an_hour
    async with live(worker):
        await eventually(lambda: seen == [1])
        await eventually(lambda: is_gone(inspector, handle.id))


def uptime_s(server: Server) -> int:
    info: Any = server.client().info("server")
    return int(info["uptime_in_seconds"])


async def test_after_a_new_connection_the_first_pass_waits_a_whole_lease(
    app: StreamQ, private_server: PrivateServer
) -> None:
    """Recovery must not stampede: live workers renew first. The very first connection need not wait."""
    server = private_server(aof=True)
    local = StreamQ(server.url)
    async with Passes(local, lease_ms=5_000) as recoverer:
        await eventually(lambda: uptime_s(server) >= 1)
        recoverer._lease_ms = 500
        assert await recoverer._wait_before_pass() == 0.0
        assert await recoverer._wait_before_pass() == 0.0
        server.client().client_kill_filter(_type="normal", skipme=True)
        await eventually(lambda: not recoverer._runner.connected)
        assert await recoverer._wait_before_pass() == 0.5
        assert await recoverer._wait_before_pass() == 0.0
    async with Passes(local, lease_ms=600_000) as young:  # the server itself has just started
        assert await young._wait_before_pass() == 600.0


async def test_a_crash_costs_no_retry_and_the_task_runs_again_at_the_front(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """A70: Asynq counts a retry; StreamQ counts crashes apart: only a handler's failure is the task's."""
    from streamq import current_task

    seen: list[tuple[int, int]] = []

    @app.task(name="t", retention=60)
    async def task() -> None:
        seen.append((current_task().crashes, current_task().retried))

    handle = await task.enqueue()
    deliver(server, app, "dead")
    async with running(app) as worker:
        await worker.recoverer.run_once("dead")
        info = await in_state(inspector, handle.id, State.COMPLETED)
    assert seen == [(1, 0)]
    assert (info.crashes, info.retried) == (1, 0)


async def test_a_task_that_kills_its_worker_each_time_is_archived_at_the_crash_limit(
    app: StreamQ, server: Server, inspector: Inspector, caplog: pytest.LogCaptureFixture
) -> None:
    """B9, A71: its bytes are kept, its reason says crashed, and no retry was spent."""

    @app.task(name="killer", retry=5)
    async def killer() -> None: ...

    handle = await killer.enqueue()
    keys, redis = keys_of(app), server.client()
    deaths = 0

    async def die_once() -> bool:
        """A worker that takes the task wherever it is, and dies."""
        nonlocal deaths
        for lane in LANES:
            key = keys.lanes[lane]
            await app.client.runner.run_all([working.make_group(key)])
            if redis.xreadgroup("w", f"dead{deaths}", {key: ">"}, count=1):
                deaths += 1
                return True
        return False

    # Recovery and forwarding run; nobody fetches but the dying.
    worker = make_worker(app, lease_ms=300, crash_limit=3, crash_backoff_ms=10, queues={"default": 1})
    worker.fetcher.run = _sleep_for_ever  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        async with live(worker, wait=False):
            for _ in range(4):
                await eventually(die_once)
            info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.crashes, info.retried, info.reason, deaths) == (4, 0, Reason.CRASHED, 4)
    assert info.message is not None
    assert info.message.type == "killer"
    assert "archived=1" in caplog.text


async def _sleep_for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("minutes", [5, -5])
async def test_a_worker_whose_clock_is_wrong_recovers_nothing_that_lives(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """B7: leases and expiries follow Redis's clock; by the worker's own the task would have expired."""
    runs: list[int] = []
    ends = asyncio.Event()

    @app.task(name="t", retention=60)
    async def task() -> str:
        runs.append(1)
        await ends.wait()
        return "done"

    handle = await task.options(expires=60).enqueue()
    true_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + minutes * 60 * 10**9)
    assert abs(wall_ms() - true_ns() // 10**6) > 200_000
    worker = make_worker(app, lease_ms=900)
    async with live(worker):
        await eventually(lambda: runs == [1])
        async with running(app, lease_ms=900) as other:
            passes = 0

            async def look() -> bool:
                nonlocal passes
                passes += 1
                await other.recoverer.run_once()
                return worker.lease_keeper.renewed >= 5

            await eventually(look)
            assert passes >= 2
            assert other.recoverer.recovered == worker.recoverer.recovered == 0
            ends.set()
            info = await in_state(inspector, handle.id, State.COMPLETED)
    assert runs == [1]
    assert info.completed_at is not None
    assert abs(info.completed_at.timestamp() * 1000 - true_ns() // 10**6) < 60_000
