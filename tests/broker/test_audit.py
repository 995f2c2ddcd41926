"""The audit: what others broke by hand is repaired or set aside, counted, and never silent.

Each test breaks a queue as a person with redis-cli would, and lets the audit run once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from streamq.broker import auditing
from streamq.broker.address import Address
from streamq.broker.grouping import flush_group
from streamq.broker.keys import GROUP
from streamq.broker.producing import GroupRule
from streamq.broker.refusals import WrongType
from streamq.errors import QueueError, ServerRefused
from streamq.inspector import Inspector
from streamq.model.info import Audit
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.broker import driving
from tests.broker.locks import enqueue
from tests.broker.stage import DAY, LONG_MS, Stage

NOTHING = Audit()
ZSETS = ("scheduled", "retry", "completed", "archived")


def audit(stage: Stage) -> Audit:
    """One whole audit; what it tells is counted, over all time and for the day."""
    keys = stage.queue.stats, stage.queue.stats_of(DAY)
    before = [stage.counters(key) for key in keys]
    found = driving.audit(stage)
    told = {"vanished": found.vanished, "repaired": found.repaired, "quarantined": found.quarantined}
    for key, former in zip(keys, before, strict=True):
        now = stage.counters(key)
        assert {name: now.get(name, 0) - former.get(name, 0) for name in told} == told
    return found


def every_state(stage: Stage) -> None:
    """Tasks in every state there is, in all lanes."""
    for lane in (Lane.HIGH, Lane.NORMAL, Lane.LOW):
        started = [
            f"{lane}{step}" for step in ("complete", "retain", "retry", "archive", "release", "recover")
        ]
        complete, retain, retry, archive, release, recover = stage.started(*started, lane=lane)
        stage.complete(complete)
        stage.retain(retain)
        stage.retry(retry)
        stage.archive(archive)
        stage.release(release)
        stage.let_idle(recover)
        stage.recover(lane, lease_ms=1000)
        stage.started(f"{lane}active", lane=lane)
        stage.enqueue(f"{lane}ready", lane=lane)
        stage.enqueue(f"{lane}scheduled", lane=lane, delay_ms=100_000)
        enqueue(stage, f"{lane}member", key=f"{lane}1", lane=lane, group=GROUP_RULE)
        enqueue(stage, f"{lane}runs", key=f"{lane}2", lane=lane, mode="k")
        stage.fetch(count=1, lanes=[lane])
        enqueue(stage, f"{lane}waits", key=f"{lane}2", lane=lane, mode="k")
    stage.fetch(count=1, lanes=[Lane.FRONT])


def test_a_queue_that_fits_together_is_left_as_it_is(stage: Stage) -> None:
    """B3: with tasks in every state; a task on its way is never taken for an orphan."""
    assert audit(stage) == NOTHING
    assert stage.all_keys() == []
    every_state(stage)
    before = stage.dump()
    assert audit(stage) == NOTHING
    assert stage.dump() == before


@pytest.mark.parametrize("state", [State.READY, State.ACTIVE])
def test_an_entry_deleted_by_hand_leaves_no_record_behind(stage: Stage, state: State) -> None:
    """B3: the task is lost, which is counted; its id is free again, and an active one's lease ends."""
    if state is State.READY:
        stage.enqueue("gone", "stays")
        entry = stage.redis.xrange(stage.queue.lanes[Lane.NORMAL])[0][0]
    else:
        gone, _stays = stage.started("gone", "stays")
        entry = gone.entry_id
    stage.redis.xdel(stage.queue.lanes[Lane.NORMAL], entry)
    assert audit(stage) == Audit(vanished=1)
    assert stage.find("gone").state is None
    assert not stage.find("gone").orphan
    assert stage.find("stays").state is state
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"vanished": 1}
    assert audit(stage) == NOTHING
    assert stage.enqueue("gone", conflict="x") == [b"ready"]


def test_recovery_counts_what_vanished_too(stage: Stage) -> None:
    """B3: the pending entry goes with the recovery, the record with the audit."""
    gone, stays = stage.started("gone", "stays")
    stage.redis.xdel(stage.queue.lanes[Lane.NORMAL], gone.entry_id)
    stage.let_idle(stays)
    assert stage.recover(dead="w1").vanished == 1
    assert stage.counters() == {"vanished": 1, "recovered": 1}
    assert stage.counters(stage.queue.stats_of(DAY)) == stage.counters()
    assert audit(stage) == Audit(vanished=1)


@pytest.mark.parametrize("lane", LANES)
def test_an_entry_acknowledged_by_hand_is_issued_again(stage: Stage, lane: Lane) -> None:
    """B3: no crash and no retry is spent, and what a recovery kept beside it stays."""
    [entry] = stage.started("a", lane=Lane.LOW if lane is Lane.FRONT else lane)
    if lane is Lane.FRONT:
        stage.recover(Lane.LOW, dead="w1")
        [entry] = stage.fetch(lanes=[lane])
    stage.redis.xack(stage.queue.lanes[lane], GROUP, entry.entry_id)
    assert audit(stage) == Audit(repaired=1)
    [again] = stage.fetch("w2")
    assert (again.lane, again.task_id, again.message) == (Lane.FRONT, entry.task_id, entry.message)
    assert (again.home, again.crashes) == (entry.home, entry.crashes)
    assert stage.complete(again) == [b"ok"]
    assert stage.counters()["repaired"] == 1
    assert audit(stage) == NOTHING


def test_entries_of_a_consumer_removed_by_hand_are_issued_again(stage: Stage) -> None:
    """B3: XGROUP DELCONSUMER takes its pending entries along; more than a page of them."""
    ids = [f"t{number}" for number in range(60)]
    stage.started(*ids)
    stage.started("held", consumer="w2")
    stage.enqueue("ready")
    stage.redis.xgroup_delconsumer(stage.queue.lanes[Lane.NORMAL], GROUP, "w1")
    assert audit(stage) == Audit(repaired=60)
    assert stage.ids(Lane.FRONT) == ids
    assert stage.find("held").state is State.ACTIVE
    assert stage.find("ready").state is State.READY
    assert stage.counters() == {"repaired": 60}


def test_a_group_moved_ahead_by_hand_loses_nothing(stage: Stage) -> None:
    """B3: XGROUP SETID $ skips what was ready."""
    stage.enqueue("a", "b")
    stage.fetch(count=1)
    stage.redis.xgroup_setid(stage.queue.lanes[Lane.NORMAL], GROUP, "$")
    assert audit(stage) == Audit(repaired=1)
    assert stage.ids(Lane.FRONT) == ["b"]


def test_what_is_ready_in_a_paused_queue_is_no_orphan(stage: Stage) -> None:
    """B3, A92: a pause moves the group to the greatest id; what had been handed out is still looked at."""
    held, lost = stage.started("held", "lost")
    stage.enqueue("ready")
    stage.pause()
    assert audit(stage) == NOTHING
    stage.redis.xack(stage.queue.lanes[Lane.NORMAL], GROUP, lost.entry_id)
    assert audit(stage) == Audit(repaired=1)
    assert stage.find("ready").state is State.READY
    assert stage.fetch("w2") == []
    stage.resume()
    assert [entry.task_id for entry in stage.fetch("w2")] == [b"lost", b"ready"]
    assert stage.complete(held) == [b"ok"]


def test_another_group_that_reads_a_lane_does_not_tell_what_was_handed_out(stage: Stage) -> None:
    """B3: a monitor's, say."""
    stage.enqueue("a", "b")
    stage.fetch(count=1)
    stage.redis.xgroup_create(stage.queue.lanes[Lane.NORMAL], "zz", "$")
    assert audit(stage) == NOTHING


def test_a_lane_of_the_wrong_type_is_a_typed_error(stage: Stage) -> None:
    """B3: never silent."""
    stage.consistent = False
    stage.redis.set(stage.queue.lanes[Lane.NORMAL], "something else")
    with pytest.raises(WrongType):
        stage.run(auditing.audit_lane(stage.queue, Lane.NORMAL, DAY, b"-"))


def test_a_paused_queue_that_lost_its_place_is_left_alone(stage: Stage) -> None:
    """B3: without knowing what had been handed out nothing can be told."""
    stage.enqueue("ready")
    stage.fetch(count=1)
    stage.enqueue("next")
    stage.pause()
    stage.redis.hdel(stage.queue.config, *(f"last:{lane}" for lane in LANES))
    assert audit(stage) == NOTHING


def test_a_second_entry_of_a_task_is_set_aside_with_its_bytes(stage: Stage) -> None:
    """B3: the one that is known goes on; the other is kept to be looked at."""
    [entry] = stage.started("a")
    lane = stage.queue.lanes[Lane.NORMAL]
    stray = stage.redis.xadd(lane, {"id": "a", "m": "copy", "c": "2"})
    stage.fetch("w2")
    stage.redis.xack(lane, GROUP, stray)
    assert audit(stage) == Audit(quarantined=1)
    body = stage.body(f"n{stray.decode()}")
    assert body is not None
    assert (body.reason, body.message, body.crashes) == (Reason.ORPHANED, b"copy", 2)
    assert stage.find("a").state is State.ACTIVE
    assert stage.complete(entry) == [b"ok"]
    assert stage.counters()["quarantined"] == 1


@pytest.mark.parametrize("zset", ZSETS)
def test_a_body_that_no_set_knows_is_archived_with_its_bytes(stage: Stage, zset: str) -> None:
    """B3: ZREM by hand. It can be seen there, and its reason says what happened."""
    every_state(stage)
    found = {name: stage.body(name) for name in stage.members(getattr(stage.queue, zset))}
    stage.redis.delete(getattr(stage.queue, zset))
    assert audit(stage) == Audit(quarantined=3)
    for name, former in found.items():
        body = stage.body(name)
        assert body is not None
        assert former is not None
        assert (body.reason, body.message) == (Reason.ORPHANED, former.message)
        assert (body.lane, body.crashes) == (former.lane, former.crashes)
        assert stage.find(name).state is State.ARCHIVED
    assert stage.counters()["quarantined"] == 3
    assert audit(stage) == NOTHING


GROUP_RULE = GroupRule("t", "g", LONG_MS, LONG_MS, 10)


def members(stage: Stage) -> None:
    """Two members of one group, one of another, and one that will join later."""
    enqueue(stage, "a", key="1", group=GROUP_RULE)
    enqueue(stage, "b", key="2", group=GROUP_RULE)
    enqueue(stage, "c", key="3", group=GroupRule("t", "other", LONG_MS))
    enqueue(stage, "later", key="4", group=GROUP_RULE, delay_ms=LONG_MS)


def test_a_member_that_lost_its_place_gets_it_again(stage: Stage) -> None:
    """B3: ZREM by hand; with the time at which it came."""
    members(stage)
    before = stage.redis.zrange(stage.queue.aggregating, 0, -1)
    stage.redis.zrem(stage.queue.aggregating, before[0])
    assert audit(stage) == Audit(repaired=1)
    assert stage.redis.zrange(stage.queue.aggregating, 0, -1) == before
    stage.redis.delete(stage.queue.aggregating)
    assert audit(stage) == Audit(repaired=3)
    assert stage.redis.zrange(stage.queue.aggregating, 0, -1) == before
    assert audit(stage) == NOTHING


def test_a_group_that_nobody_would_make_a_batch_of_is_due_now(stage: Stage) -> None:
    """B3: its time was deleted by hand."""
    members(stage)
    times = stage.members(stage.queue.groups)
    stage.redis.zrem(stage.queue.groups, "t\ng")
    assert audit(stage) == Audit(repaired=1)
    found = stage.members(stage.queue.groups)
    assert found["t\nother"] == times["t\nother"]
    assert found["t\ng"] <= stage.now_ms() < times["t\ng"]


def test_a_member_without_a_body_is_dropped_and_counted(stage: Stage) -> None:
    """B3, B36: and its lock is free."""
    members(stage)
    stage.redis.hdel(stage.queue.parked, "a")
    assert audit(stage) == Audit(vanished=1, swept=1)
    assert stage.find("a").state is None
    assert sorted(stage.redis.hkeys(stage.queue.grouped)) == [b"b", b"c", b"later"]
    assert audit(stage) == NOTHING
    stage.redis.hdel(stage.queue.parked, "c")
    assert audit(stage) == Audit(vanished=1, swept=1)
    assert list(stage.members(stage.queue.groups)) == ["t\ng"]


def test_a_place_left_in_a_group_does_not_touch_the_batch_that_its_member_is_in(stage: Stage) -> None:
    """B3: the record of the batch says where the task is."""
    members(stage)
    place = stage.redis.zrange(stage.queue.aggregating, 0, -1)[0]
    batch = {b"t\ng": 1}
    stage.redis.zadd(stage.queue.groups, batch)
    assert stage.run(flush_group(stage.queue, ["batch"])).members == 2
    stage.redis.zadd(stage.queue.aggregating, {place: 0})
    assert audit(stage) == Audit(vanished=1)
    assert stage.redis.hget(stage.queue.grouped, "a") == b"=batch"


def test_members_whose_rules_were_lost_go_with_the_others(stage: Stage) -> None:
    """B3: HDEL of the record; the body is not taken for an orphan."""
    members(stage)
    stage.redis.hdel(stage.queue.grouped, "a", "c")
    assert audit(stage) == Audit(repaired=2)
    assert stage.find("a").state is State.AGGREGATING
    assert audit(stage) == NOTHING


@pytest.mark.parametrize("lost", ["unique", "owners", "both"])
def test_who_waits_behind_a_lock_that_was_deleted_does_not_wait_for_ever(stage: Stage, lost: str) -> None:
    """B3: it is due now where the lock no longer knows of it; else the lock is found again."""
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    assert audit(stage) == NOTHING
    gone = {"unique", "owners"} if lost == "both" else {lost}
    stage.redis.delete(*(getattr(stage.queue, name) for name in gone))
    with stage.hearing(stage.queue.hints) as said:
        found = audit(stage)
    assert said == ([] if lost == "owners" else [b"due"])
    assert found == (NOTHING if lost == "owners" else Audit(repaired=1))
    assert audit(stage) == NOTHING
    if lost == "owners":
        assert stage.forward().moved == 0
        stage.complete(entry)
        assert audit(stage) == Audit(swept=1)
    else:
        stage.until(lambda: stage.forward().moved)
    assert stage.find("b").state is State.READY


def test_a_body_whose_group_is_gone_without_a_trace_is_archived(stage: Stage) -> None:
    """B3."""
    members(stage)
    stage.redis.delete(stage.queue.grouped, stage.queue.aggregating, stage.queue.groups)
    assert audit(stage) == Audit(quarantined=3, swept=3)
    assert stage.find("later").state is State.SCHEDULED
    body = stage.body("b")
    assert body is not None
    assert (body.reason, body.message) == (Reason.ORPHANED, b"m-b")


@pytest.mark.parametrize("value", [b"", b"garbage", b"x:\x00\xff", b":", b"n:", b"n1"])
def test_a_body_that_makes_no_sense_keeps_every_byte(stage: Stage, value: bytes) -> None:
    """B2, B3."""
    stage.redis.hset(stage.queue.parked, "odd", value)
    assert audit(stage) == Audit(quarantined=1)
    body = stage.body("odd")
    assert body is not None
    assert (body.reason, body.message) == (Reason.ORPHANED, value)


def test_a_body_of_a_task_in_a_lane_is_dropped(stage: Stage) -> None:
    """B3: the lane is where the task is."""
    stage.enqueue("a")
    stage.redis.hset(stage.queue.parked, "a", "n0:older")
    assert audit(stage) == Audit(repaired=1)
    assert stage.body("a") is None
    assert stage.find("a").state is State.READY


@pytest.mark.parametrize("zset", ZSETS)
def test_an_id_without_a_body_is_dropped_and_counted(stage: Stage, zset: str) -> None:
    """B3: HDEL by hand; the others of the set stay."""
    every_state(stage)
    first, *others = stage.members(getattr(stage.queue, zset))
    stage.redis.hdel(stage.queue.parked, first)
    assert audit(stage) == Audit(vanished=1)
    assert sorted(stage.members(getattr(stage.queue, zset))) == sorted(others)
    assert stage.counters()["vanished"] == 1
    assert stage.find(first).state is None
    assert audit(stage) == NOTHING


@pytest.mark.parametrize("place", [b"n", b"", b"x1-1", b"n1", b"n1-1x", b"1-1", b"n99-99"])
def test_an_index_record_that_makes_no_sense_is_dropped(stage: Stage, place: bytes) -> None:
    """B3."""
    stage.enqueue("a")
    stage.redis.hset(stage.queue.index, "odd", place)
    assert audit(stage) == Audit(vanished=1)
    assert stage.redis.hkeys(stage.queue.index) == [b"a"]


@pytest.mark.parametrize("active", [True, False])
def test_an_entry_without_a_record_gets_it_again(stage: Stage, active: bool) -> None:
    """B3: HDEL by hand; it can be found, and its id and its lock are taken. More than a page of them."""
    ids = [f"t{number}" for number in range(60)]
    stage.enqueue(*ids)
    if active:
        stage.fetch()
    stage.enqueue("other", lane=Lane.LOW)
    before = stage.redis.hgetall(stage.queue.index)
    stage.redis.hdel(stage.queue.index, *ids[:40], "other")
    assert audit(stage) == Audit(repaired=41)
    assert stage.redis.hgetall(stage.queue.index) == before
    assert stage.find("t7").state is (State.ACTIVE if active else State.READY)
    assert stage.enqueue("t7", conflict="x") == [b"conflict"]
    stage.redis.delete(stage.queue.index)
    assert audit(stage) == Audit(repaired=61)
    assert audit(stage) == NOTHING


def test_a_ready_copy_of_a_task_is_set_aside(stage: Stage) -> None:
    """B3: XADD by hand; of a task in a lane, and of one that waits elsewhere."""
    stage.enqueue("a")
    stage.enqueue("later", delay_ms=LONG_MS)
    for id_ in ("a", "later"):
        stage.redis.xadd(stage.queue.lanes[Lane.HIGH], {"id": id_, "m": f"copy of {id_}"})
    assert audit(stage) == Audit(quarantined=2)
    assert stage.find("a").state is State.READY
    assert stage.find("later").state is State.SCHEDULED
    kept = [stage.body(name) for name in stage.members(stage.queue.archived)]
    assert sorted(body.message for body in kept if body) == [b"copy of a", b"copy of later"]


def test_a_copy_that_a_worker_runs_is_left_until_that_has_ended(stage: Stage) -> None:
    """B3: its lease is kept."""
    stage.consistent = False
    stage.started("a")
    stage.redis.xadd(stage.queue.lanes[Lane.NORMAL], {"id": "a", "m": "copy"})
    [copy] = stage.fetch("w2")
    assert audit(stage) == NOTHING
    assert copy.entry_id in stage.active()
    assert len(stage.entries(Lane.NORMAL)) == 2


def test_every_lane_deleted_by_hand(stage: Stage) -> None:
    """B3: what was in them is lost and said so; what waits elsewhere is untouched, and ids are free."""
    ids = [f"t{number}" for number in range(300)]
    stage.enqueue(*ids)
    stage.enqueue("later", delay_ms=100_000)
    stage.redis.delete(*stage.queue.lanes.values())
    assert audit(stage) == Audit(vanished=300)
    assert stage.redis.hlen(stage.queue.index) == 0
    assert stage.find("later").state is State.SCHEDULED
    assert stage.enqueue("t0", conflict="x") == [b"ready"]


def test_many_large_entries_are_looked_at_in_several_calls(stage7: Stage) -> None:
    """A page of the index ends after a megabyte of messages, and goes on where it ended."""
    big = bytes(300_000)
    for number in range(12):
        stage7.enqueue(f"t{number}", message=big)
    lane = stage7.queue.lanes[Lane.NORMAL]
    rows = stage7.redis.xrange(lane)
    stage7.redis.xdel(lane, rows[1][0], rows[10][0])
    cursor, pages, vanished = b"0 0", 0, 0
    while cursor:
        page = stage7.run(auditing.audit_index(stage7.queue, DAY, cursor))
        cursor, pages, vanished = page.cursor, pages + 1, vanished + page.vanished
    assert vanished == 2
    assert pages == 3


def test_the_audit_passes_when_memory_is_full(full: Stage) -> None:
    """B3: what is issued again was there before."""
    lost, _ = full.started("lost", "held")
    full.redis.xack(full.queue.lanes[Lane.NORMAL], GROUP, lost.entry_id)
    full.redis.config_set("maxmemory", 1)
    assert audit(full) == Audit(repaired=1)
    full.redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("name", [*ZSETS, "index", "parked"])
def test_a_key_of_the_wrong_type_is_a_typed_error_and_changes_nothing(stage: Stage, name: str) -> None:
    """B3: never silent."""
    stage.consistent = False
    stage.enqueue("a")
    key = getattr(stage.queue, name)
    stage.redis.delete(key)
    stage.redis.set(key, "something else")
    before = stage.dump()
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        audit(stage)
    assert stage.dump() == before


def test_a_counter_at_its_end_does_not_stop_the_audit(stage: Stage) -> None:
    stage.redis.hset(stage.queue.stats, "vanished", 2**63 - 1)
    stage.redis.hset(stage.queue.index, "odd", "n1-1")
    assert driving.audit(stage) == Audit(vanished=1)
    assert stage.counters()["vanished"] == 1


def test_one_of_many_workers_audits_in_each_period(stage: Stage) -> None:
    """And the claim ends by itself."""
    assert stage.run(auditing.claim(stage.queue, "w1", 30))
    assert not stage.run(auditing.claim(stage.queue, "w2", 30))
    stage.until(lambda: stage.run(auditing.claim(stage.queue, "w2", 60_000)))
    assert stage.redis.get(stage.queue.audited) == b"w2"


@pytest.fixture
async def inspector(stage: Stage) -> AsyncIterator[Inspector]:
    async with Inspector(Address.parse(stage.server.unix_url), namespace=stage.keys.namespace) as inspector:
        yield inspector


async def test_an_operator_audits_at_once(stage: Stage, inspector: Inspector) -> None:
    """B3: and is told what was found."""
    stage.enqueue("gone", "stays")
    stage.redis.sadd(stage.keys.queues, "default")
    stage.redis.hset(stage.queue.parked, "lonely", "n0:bytes")
    stage.redis.xtrim(stage.queue.lanes[Lane.NORMAL], maxlen=1, approximate=False)
    found = await inspector.audit("default")
    assert found == Audit(vanished=1, quarantined=1)
    assert found.total == 2
    assert await inspector.audit("default") == NOTHING
    enqueue(stage, "locked")
    stage.complete(*[entry for entry in stage.fetch() if entry.task_id == b"locked"])
    assert await inspector.audit("default") == Audit(swept=1)
    with pytest.raises(QueueError, match="no such queue"):
        await inspector.audit("unknown")
