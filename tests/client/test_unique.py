"""Unique tasks as both clients enqueue them: handles, errors, keys, races."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamq import Inspector, State, StreamQ, Unique
from streamq.broker import working
from streamq.broker.keys import GROUP
from streamq.broker.sync_runner import SyncRunner
from streamq.broker.working import Settle
from streamq.errors import BatchError, DuplicateTask, OptionError, TaskIdConflict
from streamq.model.lanes import Lane
from streamq.model.options import CallOptions
from streamq.model.parked import Parked, Reason
from tests.client.conftest import Producing, call
from tests.conftest import ProxyFor
from tests.servers import Server
from tests.support import keys_of

HOUR = 3600


async def test_a_duplicate_is_refused_and_the_error_names_the_holder(
    producing: Producing, inspector: Inspector
) -> None:
    """A29"""
    unique = Unique("window", ttl=HOUR)
    first = await producing.enqueue("t", {"n": 1}, unique=unique)
    assert first.created
    with pytest.raises(DuplicateTask, match=r"holds the lock") as caught:
        await producing.enqueue("t", {"n": 1}, unique=unique)
    assert (caught.value.queue, caught.value.task_id) == ("default", first.id)
    assert (await inspector.queue("default")).size == 1


async def test_the_lock_of_a_window_counts_from_the_due_time(producing: Producing, server: Server) -> None:
    """A29, A30"""
    await producing.enqueue("t", unique=Unique("window", ttl=600), delay=HOUR)
    keys = keys_of(producing.app)
    redis: Any = server.client()
    [record] = redis.hvals(keys.unique)
    ends = datetime.fromtimestamp(int(record.split()[0][1:]) / 1000, UTC)
    assert abs(ends - datetime.now(UTC) - timedelta(seconds=4200)) < timedelta(seconds=60)


async def test_another_queue_task_or_payload_is_no_duplicate(producing: Producing) -> None:
    """A31"""
    await producing.enqueue("t", {"n": 1}, unique=True)
    others: list[tuple[str, dict[str, Any], CallOptions]] = [
        ("t", {"n": 1}, {"queue": "other"}),
        ("u", {"n": 1}, {}),
        ("t", {"n": 2}, {}),
        ("t", {}, {}),
    ]
    for task, arguments, options in others:
        assert (await producing.enqueue(task, arguments, unique=True, **options)).created


async def test_a_map_filled_in_another_order_is_a_duplicate(producing: Producing) -> None:
    """A32: Asynq compares bytes; keys are made of canonical CBOR here."""
    await producing.enqueue("t", {"m": {"a": 1, "b": 2}}, unique=True)
    with pytest.raises(DuplicateTask):
        await producing.enqueue("t", {"m": {"b": 2, "a": 1}}, unique=True)


async def test_it_does_not_matter_how_the_arguments_of_a_task_were_passed(producing: Producing) -> None:
    task: Any = producing.app.task(name="pair", unique=Unique(on_conflict="return"))(lambda a, b=0: a + b)
    first = await producing.enqueue(task.call(1, b=2))
    again = [
        await producing.enqueue(task.call(1, 2)),
        await producing.enqueue(task.call(a=1, b=2)),
        await producing.enqueue("pair", {"b": 2, "a": 1}, unique=Unique(on_conflict="return")),
    ]
    assert all(handle == first and not handle.created for handle in again)
    assert (await producing.enqueue(task.call(1))).created


async def test_a_call_may_switch_off_what_its_task_asks_for(producing: Producing) -> None:
    task: Any = producing.app.task(name="t", unique=True)(print)
    await producing.enqueue(task.call())
    assert (await producing.enqueue(task.options(unique=None).call())).created
    with pytest.raises(DuplicateTask):
        await producing.enqueue(task.call())


async def test_the_existing_handle_is_returned_where_asked(producing: Producing) -> None:
    unique = Unique(on_conflict="return")
    first = await producing.enqueue("t", unique=unique)
    second = await producing.enqueue("t", unique=unique)
    assert (second, second.created) == (first, False)
    assert (await producing.info(second)).state is State.READY


async def test_a_waiting_holder_is_replaced_where_asked(producing: Producing, inspector: Inspector) -> None:
    first = await producing.enqueue("t", unique=True, delay=HOUR)
    second = await producing.enqueue("t", unique=Unique(on_conflict="replace"))
    assert second.created
    assert second.id != first.id
    counts = await inspector.queue("default")
    assert (counts.ready, counts.scheduled) == (1, 0)


async def test_debounce_answers_with_the_task_that_has_the_newest_message(producing: Producing) -> None:
    unique = Unique("debounce", key=["document"])
    first = await producing.enqueue("index", {"document": 7, "version": 1}, unique=unique, delay=60)
    second = await producing.enqueue("index", {"document": 7, "version": 2}, unique=unique, delay=HOUR)
    assert (second, second.created) == (first, False)
    info = await producing.info(second)
    assert info.next_at is not None
    assert info.next_at > datetime.now(UTC) + timedelta(seconds=HOUR - 60)
    assert info.message is not None
    assert b"version\x02" in info.message.payload


async def test_who_waits_for_another_task_has_no_due_time(producing: Producing, server: Server) -> None:
    """It is scheduled, but no clock makes it ready: the end of the other one does."""
    first = await producing.enqueue("t", unique="keep_last")
    take(server, producing.app)
    second = await producing.enqueue("t", unique="keep_last")
    assert second.created
    info = await producing.info(second)
    assert (info.state, info.next_at) == (State.SCHEDULED, None)
    assert (await producing.info(first)).state is State.ACTIVE
    third = await producing.enqueue("t", unique="keep_last")
    assert (third, third.created) == (second, False)


def take(server: Server, app: StreamQ) -> None:
    """Deliver one task of the normal lane to somebody."""
    redis: Any = server.client()
    lane = keys_of(app).lanes[Lane.NORMAL]
    redis.xgroup_create(lane, GROUP, "0", mkstream=True)
    assert redis.xreadgroup(GROUP, "somebody", {lane: ">"}, count=1)


async def test_an_id_that_is_taken_takes_no_lock(producing: Producing, server: Server) -> None:
    """A18, B36: in Asynq the lock stood until its time was over, and refused everybody."""
    await producing.enqueue("t", task_id="x")
    with pytest.raises(TaskIdConflict):
        await producing.enqueue("t", {"n": 1}, task_id="x", unique=True)
    assert (await producing.enqueue("t", {"n": 1}, task_id="y", unique=True)).created


@pytest.mark.parametrize(
    "options", [{"delay": HOUR}, {"unique": True}, {"group": "g"}, {"group": "g", "unique": True}], ids=str
)
async def test_an_id_that_is_taken_is_refused_on_every_path(
    producing: Producing, inspector: Inspector, options: CallOptions
) -> None:
    """A18: scheduled, unique and in a group; where asked the handle of the task that has it comes back."""
    first = await producing.enqueue("t", task_id="x")
    with pytest.raises(TaskIdConflict):
        await producing.enqueue("t", {"n": 1}, task_id="x", **options)
    again = await producing.enqueue("t", {"n": 1}, task_id="x", on_conflict="return", **options)
    assert (again, again.created) == (first, False)
    assert (await inspector.queue("default")).size == 1


async def test_the_same_member_of_a_group_twice_is_a_duplicate(
    producing: Producing, inspector: Inspector
) -> None:
    """A38"""
    first = await producing.enqueue("t", {"n": 1}, unique=True, group="g")
    assert (await producing.info(first)).state is State.AGGREGATING
    with pytest.raises(DuplicateTask) as caught:
        await producing.enqueue("t", {"n": 1}, unique=True, group="g")
    assert caught.value.task_id == first.id
    assert (await producing.enqueue("t", {"n": 2}, unique=True, group="g")).created
    assert (await inspector.queue("default")).size == 2


async def test_ids_of_finished_tasks_are_refused_returned_or_replaced(
    producing: Producing, server: Server
) -> None:
    """B37"""
    first = await producing.enqueue("t", {"n": 1}, task_id="x")
    take(server, producing.app)
    redis: Any = server.client()
    keys = keys_of(producing.app)
    [(entry_id, fields)] = redis.xrange(keys.lanes[Lane.NORMAL])
    settle = Settle((entry_id, b"x", Parked(Lane.NORMAL, 0, fields[b"m"], Reason.FAILED).pack()))
    command = working.archive(keys, Lane.NORMAL, "20260101", [settle], 100, HOUR * 1000)
    with closing(SyncRunner(producing.app.address)) as runner:
        assert runner.run(command) == [b"ok"]
    with pytest.raises(TaskIdConflict):
        await producing.enqueue("t", task_id="x")
    returned = await producing.enqueue("t", task_id="x", on_conflict="return")
    assert (returned, returned.created) == (first, False)
    assert (await producing.info(returned)).state is State.ARCHIVED
    replaced = await producing.enqueue("t", task_id="x", on_conflict="replace")
    assert replaced.created
    assert (await producing.info(replaced)).state is State.READY


async def test_an_id_without_a_task_is_free(producing: Producing, server: Server) -> None:
    """B37: records that point nowhere, left by a hand in the database, hold no id."""
    keys: Any = keys_of(producing.app)
    server.client().hset(keys.index, "x", "n1-1")
    server.client().hset(keys.parked, "y", "n0:m")
    for task_id in ("x", "y"):
        handle = await producing.enqueue("t", task_id=task_id)
        assert handle.created
        assert (await producing.info(handle)).state is State.READY


async def test_many_unique_tasks_have_an_answer_each(producing: Producing, inspector: Inspector) -> None:
    """A26: the handle or the error of each stands in its place, and the others are not touched."""
    holder = await producing.enqueue("held", unique=True)
    calls = [
        call("plain"),
        call("held", unique=True),
        call("held", unique=Unique(on_conflict="return")),
        call("new", unique=True),
        call("new", unique=True),
    ]
    with pytest.raises(BatchError) as caught:
        await producing.enqueue_many(calls)
    plain, refused, returned, created, twice = caught.value.results
    assert plain.created
    assert isinstance(refused, DuplicateTask)
    assert (returned, returned.created) == (holder, False)
    assert created.created
    assert isinstance(twice, DuplicateTask)
    assert (refused.task_id, twice.task_id) == (holder.id, created.id)
    assert (await inspector.queue("default")).ready == 3


async def test_a_hundred_unique_tasks_are_one_script_call(producing: Producing, server: Server) -> None:
    """The locks are checked in the call that stores the tasks: still one round trip for a batch."""
    await producing.enqueue("warm-up", unique=True)
    before = server.commandstats()
    await producing.enqueue_many(
        producing.app.call("t", {"n": n}, unique=Unique(on_conflict="return")) for n in range(100)
    )
    after = server.commandstats()
    assert after["evalsha"] - before["evalsha"] == 1
    assert after["xadd"] - before.get("xadd", 0) == 100


async def test_a_misspelt_argument_of_the_key_is_refused(producing: Producing, server: Server) -> None:
    """A19"""
    with pytest.raises(OptionError, match="no argument 'usr'"):
        await producing.enqueue("t", {"user": 1}, unique=Unique(key=["usr"]))
    with pytest.raises(BatchError):
        await producing.enqueue_many([call("t", unique=Unique(key=["usr"]))])
    assert server.client().exists(keys_of(producing.app).index) == 0


async def test_of_two_producers_at_once_exactly_one_creates_the_task(server: Server, namespace: str) -> None:
    """A29: two clients with connections of their own, two hundred keys, each key enqueued by both at once."""
    apps = [StreamQ(server.url, namespace=namespace) for _ in range(2)]
    async with apps[0], apps[1]:
        for n in range(200):
            first, second = await asyncio.gather(
                *(app.enqueue("t", {"n": n}, unique=Unique(on_conflict="return")) for app in apps)
            )
            assert first == second
            assert {first.created, second.created} == {True, False}
        async with apps[0].inspector() as inspector:
            assert (await inspector.queue("default")).ready == 200


async def test_the_answer_to_a_resend_is_the_first_one(
    app: StreamQ, server: Server, proxy_for: ProxyFor
) -> None:
    """B5: the reply was lost; the task is not refused as a duplicate of itself."""
    proxy = await proxy_for(server)
    through = StreamQ(proxy.url, namespace=app.config.namespace)
    async with through:
        await through.enqueue("warm-up", unique=True)
        lost = proxy.lose_next_reply(b"EVALSHA")
        assert (await through.enqueue("t", unique=True)).created
        assert lost.is_set()
