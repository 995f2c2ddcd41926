"""enqueue_many: a true result for each task, few round trips, bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from streamq import Inspector, State, StreamQ, SyncClient, TaskCall
from streamq.client.client import Client
from streamq.errors import BatchError, OptionError, OutOfMemory, PayloadError, TaskIdConflict, Unavailable
from tests.client.conftest import Producing, call
from tests.conftest import PrivateServer
from tests.servers import HOST, Server, free_port


async def test_each_call_gets_its_handle_in_order(producing: Producing, inspector: Inspector) -> None:
    """A25: three tasks for three queues."""
    calls = [call(f"type{n}", queue=f"q{n}") for n in (2, 0, 1)]
    handles = await producing.enqueue_many(calls)
    infos = [await producing.info(handle) for handle in handles]
    assert [(info.type, info.queue) for info in infos] == [("type2", "q2"), ("type0", "q0"), ("type1", "q1")]
    assert {info.state for info in infos} == {State.READY}
    assert await inspector.queues() == ["q0", "q1", "q2"]


async def test_the_order_of_enqueueing_is_kept_within_a_queue(producing: Producing, server: Server) -> None:
    """A25: over several calls of the script as well."""
    handles = await producing.enqueue_many(call() for _ in range(700))
    lane = producing.app.client.keys.queue("default").lanes
    entries: Any = server.client().xrange(list(lane.values())[2])
    assert [fields[b"id"].decode() for _, fields in entries] == [handle.id for handle in handles]
    assert len({handle.id for handle in handles}) == 700


async def test_one_bad_call_fails_alone(producing: Producing, inspector: Inspector) -> None:
    """A26: now, delayed, unstorable, nameless, a taken id: each answer is the truth about its task."""
    await producing.enqueue("t", task_id="taken")
    calls = [
        call(),
        call(delay=60),
        TaskCall("t", args=(object(),)),
        TaskCall(" "),
        call(task_id="taken"),
        call(task_id="free"),
        call(task_id="free"),
        call(task_id="taken", on_conflict="return"),
        call(priority="high"),
    ]
    with pytest.raises(BatchError, match="4 of 9") as caught:
        await producing.enqueue_many(calls)
    results = caught.value.results
    failed = {place: type(item) for place, item in enumerate(results) if isinstance(item, Exception)}
    assert failed == {2: PayloadError, 3: OptionError, 4: TaskIdConflict, 6: TaskIdConflict}
    states = [(await producing.info(results[place])).state for place in (0, 1, 5, 8)]
    assert states == [State.READY, State.SCHEDULED, State.READY, State.READY]
    assert (results[5].id, results[7].id, results[7].created) == ("free", "taken", False)
    queue = await inspector.queue("default")
    assert (queue.ready, queue.scheduled) == (4, 1)


async def test_an_empty_batch_sends_nothing(producing: Producing, server: Server) -> None:
    """A28"""
    before = server.commandstats()["evalsha"]
    assert await producing.enqueue_many([]) == []
    assert server.commandstats()["evalsha"] == before


@pytest.fixture(params=["async", "sync"])
def sync_too(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "sync")


async def enqueue_many(app: StreamQ, calls: Iterator[TaskCall[Any]], *, sync: bool) -> None:
    if sync:
        with app.sync() as client:
            client.enqueue_many(calls)
    else:
        async with app:
            await app.enqueue_many(calls)


async def test_while_redis_is_away_every_valid_call_carries_the_error_within_the_time_of_one(
    sync_too: bool,
) -> None:
    """A27: 10,000 tasks are 40 calls of the script; they do not wait for Redis one after the other."""
    app = StreamQ(f"redis://{HOST}:{free_port()}", enqueue_timeout=0.5)
    calls: Iterator[TaskCall[Any]] = (
        TaskCall("t", args=(object(),)) if n % 2500 == 7 else call() for n in range(10_000)
    )
    began = time.monotonic()
    with pytest.raises(BatchError, match="10000 of 10000") as caught:
        await enqueue_many(app, calls, sync=sync_too)
    assert time.monotonic() - began < 4, "bounded; one by one it would be 20 s"
    kinds = [type(item) for item in caught.value.results]
    assert [place for place, kind in enumerate(kinds) if kind is PayloadError] == [7, 2507, 5007, 7507]
    assert all(issubclass(kind, Unavailable) for kind in kinds if kind is not PayloadError)


async def test_a_full_redis_refuses_each_call_and_says_so(
    private_server: PrivateServer, sync_too: bool
) -> None:
    """A27: OutOfMemory is no reason to wait, and nothing of the batch was written."""
    server = private_server(maxmemory="3mb")
    app = StreamQ(server.url)
    payload = "x" * 100_000
    calls: Iterator[TaskCall[Any]] = (TaskCall("t", args=(payload,)) for _ in range(60))
    with pytest.raises(BatchError) as caught:
        await enqueue_many(app, calls, sync=sync_too)
    refused = [item for item in caught.value.results if isinstance(item, Exception)]
    assert {type(item) for item in refused} == {OutOfMemory}
    async with app.inspector() as inspector:
        assert (await inspector.queue("default")).ready == 60 - len(refused)


async def test_a_batch_of_a_hundred_is_one_round_trip(opened: StreamQ, server: Server) -> None:
    """One EVALSHA; the queue's name goes to the registry once, with the first call."""
    await opened.enqueue("t")
    before = server.commandstats()
    await opened.enqueue_many(call() for _ in range(100))
    spent = server.commandstats() - before
    assert (spent["evalsha"], spent["sadd"], spent["script|load"]) == (1, 0, 0)


def test_a_blocking_batch_of_a_hundred_is_one_round_trip(sync: SyncClient, server: Server) -> None:
    sync.enqueue("t")
    before = server.commandstats()
    sync.enqueue_many(call() for _ in range(100))
    spent = server.commandstats() - before
    assert (spent["evalsha"], spent["sadd"]) == (1, 0)


async def test_a_large_batch_goes_in_parts_that_do_not_hold_redis_up(
    producing: Producing, server: Server
) -> None:
    """By count (250) and by bytes (about 1 MB a call)."""
    before = server.commandstats()["evalsha"]
    await producing.enqueue_many(call() for _ in range(1000))
    assert server.commandstats()["evalsha"] - before == 4
    before = server.commandstats()["evalsha"]
    await producing.enqueue_many(TaskCall("t", args=("x" * 400_000,)) for _ in range(6))
    assert 2 <= server.commandstats()["evalsha"] - before <= 3


async def test_a_delay_counts_for_each_task_of_a_batch(producing: Producing) -> None:
    handles = await producing.enqueue_many(call(delay=delay) for delay in (timedelta(hours=1), 0, 60))
    states = [(await producing.info(handle)).state for handle in handles]
    assert states == [State.SCHEDULED, State.READY, State.SCHEDULED]


async def test_what_a_caller_gave_up_is_still_decided_once(opened: StreamQ, inspector: Inspector) -> None:
    """A cancelled enqueue_many leaves whole calls of the script behind, never half of one."""
    client: Client = opened.client
    enqueueing = client.enqueue_many(call() for _ in range(2000))
    batch = asyncio.create_task(enqueueing)
    await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    await client.aclose()
    if await inspector.queues():
        assert (await inspector.queue("default")).ready % 250 == 0
