"""The sweep: what stood beside tasks that have ended is found, whoever ended them."""

from __future__ import annotations

import pytest

from streamq.broker.producing import GroupRule
from streamq.broker.working import MAX_SETTLE_TASKS
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.driving import sweep
from tests.broker.locks import enqueue, holder, nothing_left
from tests.broker.stage import LONG_MS, Stage

NOTHING = (0, 0, 0)


def test_a_queue_of_plain_tasks_costs_one_command(stage: Stage) -> None:
    stage.started("a")
    stage.enqueue("b")
    before = stage.dump()
    calls = stage.redis.info("commandstats")
    assert sweep(stage) == NOTHING
    after = stage.redis.info("commandstats")
    new = {name for name in after if after[name]["calls"] != calls.get(name, {"calls": 0})["calls"]}
    assert new <= {"cmdstat_exists", "cmdstat_time", "cmdstat_info"}, "time and info are the test's own"
    assert stage.dump() == before


def test_what_belongs_to_living_tasks_stays(stage: Stage) -> None:
    """B36: in whatever state; also who waits behind a running one, places in a batch, and marks."""
    enqueue(stage, "retry", key="1")
    stage.retry(*stage.fetch())
    enqueue(stage, "active", key="2", mode="k")
    [active] = stage.fetch()
    enqueue(stage, "behind", key="2", mode="k")
    enqueue(stage, "scheduled", key="3", delay_ms=LONG_MS)
    enqueue(stage, "member", key="4", group=GroupRule("t", "g", LONG_MS))
    enqueue(stage, "window", key="5", mode="w", window_ms=LONG_MS)
    stage.complete(*stage.fetch())
    stage.redis.hset(stage.queue.progress, "active", "half")
    stage.redis.hset(stage.queue.cancels, active.lane.encode() + active.entry_id, "archive")
    stage.redis.hset(stage.queue.grouped, "batched", "=active")
    before = stage.dump()
    assert sweep(stage) == NOTHING
    assert stage.dump() == before


@pytest.mark.parametrize("end", ["complete", "purge", "recover", "entry"])
def test_locks_of_tasks_that_ended_without_tidying_go(stage: Stage, end: str) -> None:
    """B36: completed by a worker that died then, purged, archived by a recovery, deleted by hand."""
    enqueue(stage, "a")
    [entry] = stage.fetch()
    stage.redis.hset(stage.queue.progress, "a", "half")
    stage.redis.hset(stage.queue.cancels, entry.lane.encode() + entry.entry_id, "archive")
    if end == "complete":
        stage.complete(entry)
    elif end == "purge":
        stage.retain(entry, retention_ms=1)
        stage.until(lambda: stage.purge().purged)
    elif end == "recover":
        stage.recover(dead="w1", crash_limit=0)
        assert stage.find("a").state is State.ARCHIVED
    else:
        stage.redis.xack(stage.queue.lanes[Lane.NORMAL], "w", entry.entry_id)
        stage.redis.xdel(stage.queue.lanes[Lane.NORMAL], entry.entry_id)
        stage.redis.hdel(stage.queue.index, "a")
    assert sweep(stage) == (1, 0, 0)
    assert nothing_left(stage)
    assert not stage.redis.exists(stage.queue.cancels)
    assert stage.redis.exists(stage.queue.progress) == (end == "recover"), "progress of a kept task is kept"
    assert sweep(stage) == NOTHING


def test_a_window_that_is_over_goes(stage: Stage) -> None:
    """B36."""
    enqueue(stage, "a", mode="w", window_ms=40)
    stage.complete(*stage.fetch())
    stage.until(lambda: sweep(stage).freed)
    assert nothing_left(stage)


@pytest.mark.parametrize("kept", [True, False])
def test_who_waits_behind_a_dead_one_is_made_ready(stage: Stage, kept: bool) -> None:
    """B36: the worker that ran the first one ended it and died before it could say so."""
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    if kept:
        stage.archive(entry)
    else:
        stage.complete(entry)
    assert sweep(stage) == (0, 1, 0)
    assert stage.find("b").state is State.READY
    assert holder(stage) == "b"
    assert sweep(stage) == NOTHING


def test_a_lock_whose_owner_was_forgotten_is_found(stage: Stage) -> None:
    """B3, B36: HDEL by hand; it goes when its task has ended, and not before."""
    enqueue(stage, "a")
    enqueue(stage, "b", key="other")
    a, b = stage.fetch()
    stage.redis.delete(stage.queue.owners)
    assert sweep(stage) == NOTHING
    assert stage.redis.hgetall(stage.queue.owners) == {b"a": b"K", b"b": b"other"}
    stage.complete(a)
    stage.redis.delete(stage.queue.owners)
    assert sweep(stage) == (1, 0, 0)
    assert holder(stage) is None
    assert holder(stage, "other") == "b"
    stage.complete(b)
    assert sweep(stage) == (1, 0, 0)
    assert nothing_left(stage)


@pytest.mark.parametrize("record", [b"", b"nonsense", b"d0", b"d0 ", b"=x"])
def test_a_lock_that_makes_no_sense_stops_nobody(stage: Stage, record: bytes) -> None:
    """B3."""
    stage.redis.hset(stage.queue.unique, "odd", record)
    enqueue(stage, "a")
    stage.complete(*stage.fetch())
    assert sweep(stage).freed >= 1
    assert holder(stage) is None


def test_places_in_a_batch_go_with_the_batch(stage: Stage) -> None:
    """A38, B36: and the locks of its members with them."""
    [batch] = stage.started("batch")
    enqueue(stage, "member", group=GroupRule("t", "g", LONG_MS))
    stage.redis.delete(stage.queue.aggregating, stage.queue.groups, stage.queue.parked)
    stage.redis.hset(stage.queue.grouped, "member", "=batch")
    assert sweep(stage) == NOTHING
    stage.complete(batch)
    assert sweep(stage).freed == 1
    assert nothing_left(stage)
    assert not stage.redis.exists(stage.queue.grouped)


def test_more_than_a_page_of_each(stage: Stage) -> None:
    """No call tidies up behind more tasks than is good for Redis."""
    count = MAX_SETTLE_TASKS + 350
    gone = [f"gone{number}" for number in range(count)]
    stage.redis.hset(stage.queue.progress, mapping=dict.fromkeys(gone, "x"))
    stage.redis.hset(stage.queue.grouped, mapping=dict.fromkeys(gone, "=batch"))
    stage.redis.hset(stage.queue.cancels, mapping={f"n{number}-1": "archive" for number in range(1, count)})
    stage.redis.hset(stage.queue.unique, mapping={f"key{name}": f"d0 {name}" for name in gone})
    stage.started("held")
    stage.redis.hset(stage.queue.progress, "held", "x")
    assert sweep(stage) == (count, 0, 0)
    assert stage.redis.hkeys(stage.queue.progress) == [b"held"]
    assert not stage.redis.exists(
        stage.queue.grouped, stage.queue.cancels, stage.queue.unique, stage.queue.owners
    )


def test_names_of_limiters_whose_keys_are_gone_go(stage: Stage) -> None:
    now_ms = stage.now_ms()
    stage.redis.zadd(stage.queue.limiters, {"over": now_ms - 1, "stays": now_ms + LONG_MS})
    sweep(stage)
    assert stage.redis.zrange(stage.queue.limiters, 0, -1) == [b"stays"]
