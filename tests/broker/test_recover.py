"""Recover: entries of dead workers are retired, and their tasks issued again one crash later."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from streamq.broker import inspecting, working
from streamq.errors import StoredDataError
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.broker.stage import DAY, Stage

LEASE_MS = 10_000
NOTHING: tuple[Any, ...] = (b"0-0", 0, 0, 0, 0, 0, 0, [], [])


def crash(stage: Stage, task_id: str, times: int, *, crash_limit: int = 99) -> list[bytes]:
    """Let the task's worker die that often; the last time it is recovered too.

    Answers the ids that recovery says it archived.
    """
    archived: list[bytes] = []
    for _ in range(times):
        found = stage.find(task_id)
        if found.state is State.RETRY:
            stage.redis.zadd(stage.queue.retry, {task_id: 1})
            stage.forward()
        [entry] = stage.fetch()
        stage.let_idle(entry)
        archived += stage.recover(entry.lane, lease_ms=LEASE_MS, crash_limit=crash_limit).crashed
    return archived


def test_an_expired_lease_issues_the_task_again_in_front(stage: Stage) -> None:
    """A70: under a new entry id, with one crash more; no retry is spent: the message is untouched."""
    [old] = stage.started("a", lane=Lane.LOW)
    stage.enqueue("waiting", lane=Lane.HIGH)
    stage.let_idle(old, ms=LEASE_MS)
    found = stage.recover(Lane.LOW, lease_ms=LEASE_MS)
    assert (found.front, found.retry, found.archived, found.pending, found.finished) == (1, 0, 0, 0, True)
    [new, waiting] = stage.fetch("w2")
    assert (new.lane, new.home, new.crashes, new.message) == (Lane.FRONT, Lane.LOW, 1, b"m-a")
    assert stage.complete(old) == [b"lost"]
    assert waiting.task_id == b"waiting"
    assert stage.ids(Lane.LOW) == []
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"recovered": 1}
    assert stage.find("a").state is State.ACTIVE


def test_from_the_second_crash_on_the_task_waits_longer_each_time(stage: Stage) -> None:
    """The task itself may be what kills: the fleet gets time between the blows."""
    stage.enqueue("a", lane=Lane.HIGH)
    crash(stage, "a", 1)
    for crashes in (2, 3, 4):
        before = stage.now_ms()
        crash(stage, "a", 1)
        after = stage.now_ms()
        wait_ms = 1000 * 2 ** (crashes - 2)
        assert before + wait_ms <= stage.members(stage.queue.retry)["a"] <= after + wait_ms
        body = stage.body("a")
        assert body is not None
        assert (body.lane, body.crashes, body.message) == (Lane.HIGH, crashes, b"m-a")


def test_tasks_that_crashed_together_come_back_one_after_the_other(stage: Stage) -> None:
    """B9: else the one that kills would take its companions with it each time, up to the crash limit."""
    ids = [f"t{number}" for number in range(10)]
    before = stage.now_ms()
    for _ in range(2):
        stage.let_idle(*(stage.fetch() or stage.started(*ids)))
        for lane in LANES:
            stage.recover(lane, lease_ms=LEASE_MS)
    dues = sorted(stage.members(stage.queue.retry).values())
    assert len(dues) == 10
    gaps = [later - sooner for sooner, later in pairwise(dues)]
    assert gaps == [100] * 9  # the back-off of 1000 ms is spread over as much again
    assert dues[0] >= before + 1000


def test_at_the_crash_limit_the_task_is_archived(stage: Stage) -> None:
    """A71: as crashed, bytes kept and count readable; whoever waits is told, and whoever recovers."""
    stage.enqueue("a")
    assert crash(stage, "a", 2, crash_limit=2) == []
    with stage.hearing(stage.queue.done("a").decode()) as said:
        assert crash(stage, "a", 1, crash_limit=2) == [b"a"]
    assert said == [b"archived"]
    found = stage.find("a")
    assert (found.state, found.message_bytes) == (State.ARCHIVED, b"m-a")
    assert found.parked is not None
    assert (found.parked.reason, found.parked.crashes) == (Reason.CRASHED, 3)
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"recovered": 2, "archived": 1}


def test_a_live_lease_is_left_alone(stage: Stage) -> None:
    """A72: in one lane and in another queue, only what expired moves."""
    expired, live = stage.started("expired", "live")
    other = stage.beside("other")
    [elsewhere] = other.started("elsewhere")
    stage.let_idle(expired, ms=LEASE_MS)
    stage.let_idle(live, ms=LEASE_MS // 2)
    for queue in (stage, other):
        for lane in LANES:
            queue.recover(lane, lease_ms=LEASE_MS)
    assert stage.ids(Lane.FRONT) == ["expired"]
    assert stage.active() == [live.entry_id]
    assert other.active() == [elsewhere.entry_id]
    assert stage.complete(live) == other.complete(elsewhere) == [b"ok"]


def test_with_nothing_active_nothing_changes(stage: Stage) -> None:
    """A73: no lane, no group, an empty lane, a lane of ready tasks."""
    assert stage.recover(lease_ms=0) == NOTHING
    stage.enqueue("a")
    before = stage.dump()
    assert stage.recover(lease_ms=0) == NOTHING
    assert stage.dump() == before
    stage.complete(*stage.fetch())
    stage.enqueue("b")
    before = stage.dump()
    assert stage.recover(lease_ms=0) == NOTHING
    assert stage.dump() == before


def test_extending_moves_only_the_leases_that_are_named(stage: Stage) -> None:
    """A75."""
    entries = stage.started(*"abcd")
    stage.let_idle(*entries, ms=LEASE_MS)
    extended = {entries[1].entry_id, entries[2].entry_id}
    lane = stage.queue.lanes[Lane.NORMAL]
    assert stage.run(working.extend(lane, "w1", sorted(extended))) == extended
    assert stage.recover(lease_ms=LEASE_MS).front == 2
    assert set(stage.active()) == extended


def test_what_is_not_leased_cannot_be_extended(stage: Stage) -> None:
    """A76: never delivered, settled, recovered, made up; and the worker is told which it lost."""
    settled, recovered, kept = stage.started("settled", "recovered", "kept")
    stage.complete(settled)
    stage.let_idle(recovered, ms=LEASE_MS)
    stage.recover(lease_ms=LEASE_MS)
    stage.enqueue("ready")
    lane = stage.queue.lanes[Lane.NORMAL]
    [(ready, _)] = stage.redis.xrange(lane, f"({kept.entry_id.decode()}")
    ids = [settled.entry_id, recovered.entry_id, kept.entry_id, ready, b"1-1"]
    assert stage.run(working.extend(lane, "w1", ids)) == {kept.entry_id}
    assert stage.active() == [kept.entry_id]


def test_an_extension_counts_no_delivery(stage: Stage) -> None:
    """A75: an entry is delivered once; its count must not grow with its age."""
    [entry] = stage.started("a")
    lane = stage.queue.lanes[Lane.NORMAL]
    for _ in range(3):
        stage.run(working.extend(lane, "w1", [entry.entry_id]))
    [row] = stage.redis.xpending_range(lane, "w", "-", "+", 10)
    assert row["times_delivered"] == 1


def test_an_active_task_whose_lease_ran_out_is_shown_as_orphaned(stage: Stage) -> None:
    """A82."""
    orphan, live = stage.started("orphan", "live")
    stage.let_idle(orphan, ms=LEASE_MS)
    shown = {}
    for name in ("orphan", "live"):
        found = stage.find(name)
        with_message = found.message_bytes
        assert with_message == f"m-{name}".encode()
        shown[name] = inspecting.task_info("default", name, found, LEASE_MS)
    assert (shown["orphan"].state, shown["orphan"].orphaned) == (State.ACTIVE, True)
    assert (shown["live"].state, shown["live"].orphaned, shown["live"].worker) == (State.ACTIVE, False, "w1")
    assert live.task_id == b"live"


def test_a_second_recovery_that_comes_late_finds_nothing(stage: Stage) -> None:
    """Two recoverers, or a call sent again after its reply was lost: one crash is counted, not two."""
    [entry] = stage.started("a")
    stage.let_idle(entry, ms=LEASE_MS)
    assert stage.recover(lease_ms=LEASE_MS).front == 1
    before = stage.dump()
    assert stage.recover(lease_ms=LEASE_MS) == NOTHING
    assert stage.dump() == before
    [again] = stage.fetch()
    assert again.crashes == 1


def test_a_dead_consumers_entries_are_taken_at_once(stage: Stage) -> None:
    """A supervisor saw its child die: no need to wait for the lease. Others keep theirs."""
    stage.started("a", "b", consumer="dead")
    [live] = stage.started("live", consumer="live")
    assert stage.recover(dead="dead").front == 2
    assert stage.ids(Lane.FRONT) == ["a", "b"]
    assert stage.active() == [live.entry_id]
    assert stage.recover(dead="dead").front == stage.recover(dead="nobody").front == 0


def test_a_dead_consumer_with_many_entries_is_taken_page_by_page(stage: Stage) -> None:
    ids = [f"t{i}" for i in range(250)]
    stage.started(*ids, consumer="dead")
    taken, pages = 0, 0
    while True:
        found = stage.recover(dead="dead")
        taken, pages = taken + found.front, pages + 1
        if found.finished:
            break
    assert (taken, pages) == (250, 3)
    assert stage.ids(Lane.FRONT) == ids


def test_expired_leases_behind_a_thousand_live_ones_are_found(stage: Stage) -> None:
    """The search goes on from its cursor, page by page; a page looks at a bounded number of entries."""
    for turn in range(4):
        stage.started(*(f"live{turn}-{i}" for i in range(250)), consumer="live")
    [dead] = stage.started("dead", consumer="dead")
    stage.let_idle(dead, ms=LEASE_MS, consumer="dead")
    found, calls = stage.recover(lease_ms=LEASE_MS), 1
    while not found.finished:
        found, calls = stage.recover(lease_ms=LEASE_MS, cursor=found.cursor), calls + 1
        assert calls <= 12
    assert stage.ids(Lane.FRONT) == ["dead"]
    assert found.pending == 1000


def test_more_than_a_page_of_expired_leases_is_found_in_order(stage: Stage) -> None:
    ids = [f"t{i}" for i in range(230)]
    stage.let_idle(*stage.started(*ids), ms=LEASE_MS)
    found, total = stage.recover(lease_ms=LEASE_MS), 0
    total += found.front
    assert total == working.RECOVER_PAGE
    while not found.finished:
        found = stage.recover(lease_ms=LEASE_MS, cursor=found.cursor)
        total += found.front
    assert total == 230
    assert stage.ids(Lane.FRONT) == ids


@pytest.mark.parametrize("dead", ["", "w1"])
def test_an_entry_that_vanished_is_counted_and_forgotten(stage: Stage, dead: str) -> None:
    """B3: somebody deleted the entry by hand. It cannot be saved, but is told, and holds up nobody."""
    stage.consistent = False  # the index still names the entry; nobody knows which task it was
    gone, kept = stage.started("gone", "kept")
    stage.let_idle(gone, kept, ms=LEASE_MS)
    stage.redis.xdel(stage.queue.lanes[Lane.NORMAL], gone.entry_id)
    found = stage.recover(lease_ms=LEASE_MS, dead=dead)
    assert (found.vanished, found.front, found.pending) == (1, 1, 0)
    assert stage.ids(Lane.FRONT) == ["kept"]
    assert stage.find("gone").orphan
    assert stage.counters() == {"vanished": 1, "recovered": 1}


@pytest.mark.parametrize("crash_limit", [3, 0])
def test_an_entry_that_is_no_task_holds_up_nobody(stage: Stage, crash_limit: int) -> None:
    """B2: foreign fields among expired leases; it goes the way of the others, and is archived in the end."""
    lane = stage.queue.lanes[Lane.NORMAL]
    stage.enqueue("before")
    stage.redis.xadd(lane, {"strange": "entry"})
    stage.redis.xadd(lane, {"id": "bare", "c": "many"})
    stage.enqueue("after")
    entries = stage.fetch()
    stage.let_idle(*entries, ms=LEASE_MS)
    found = stage.recover(lease_ms=LEASE_MS, crash_limit=crash_limit)
    assert (found.front, found.archived) == ((4, 0) if crash_limit else (0, 4))
    assert found.pending == 0
    assert stage.find("bare").message_bytes == b""
    assert stage.find(entries[1].task_id.decode()).message_bytes == b""
    assert stage.find("after").message_bytes == b"m-after"


def test_in_front_itself_leases_run_out_too(stage: Stage) -> None:
    """The lane searched and the lane that gets the task are the same then."""
    stage.release(*stage.started("a", lane=Lane.HIGH))
    [entry] = stage.fetch()
    assert entry.lane is Lane.FRONT
    stage.let_idle(entry)
    stage.recover(Lane.FRONT, lease_ms=LEASE_MS)
    [again] = stage.fetch()
    assert (again.lane, again.home, again.crashes) == (Lane.FRONT, Lane.HIGH, 1)


def test_recovery_passes_when_memory_is_full(full: Stage) -> None:
    """Otherwise the tasks of a dead worker would be stuck until somebody made room."""
    first, second, third = full.started("first", "second", "third", consumer="w1")
    full.let_idle(first)
    full.redis.config_set("maxmemory", 1)
    assert full.recover(lease_ms=LEASE_MS).front == 1
    assert full.recover(dead="w1", crash_limit=0).archived == 2
    full.redis.config_set("maxmemory", 0)
    assert {second.task_id, third.task_id} == {b"second", b"third"}


def test_a_counter_at_its_end_does_not_stop_recovery(stage: Stage) -> None:
    """A63: an overflow must not fail the script after entries were retired."""
    stage.redis.hset(stage.queue.stats, "recovered", 2**63 - 1)
    stage.started("a", consumer="dead")
    assert stage.recover(dead="dead").front == 1
    assert stage.counters() == {"recovered": 1}


def test_a_lane_without_a_group_has_nothing_to_find(stage: Stage) -> None:
    """FLUSHALL or a deleted lane under a running worker."""
    stage.started("a")
    stage.redis.delete(*stage.queue.every)
    assert stage.recover(lease_ms=0) == NOTHING
    assert stage.recover(dead="w1") == NOTHING
    assert stage.all_keys() == []


def test_what_was_parked_badly_is_an_error_of_its_own(stage: Stage) -> None:
    """B3: a body written over by hand is no task; looking at it says so."""
    stage.enqueue("a", delay_ms=60_000)
    stage.redis.hset(stage.queue.parked, "a", "garbage")
    with pytest.raises(StoredDataError):
        stage.find("a")


def test_it_tells_whose_locks_may_be_free(stage: Stage) -> None:
    """All that were taken, whatever became of them."""
    entries = stage.started("again", "deleted", "archived")
    stage.cancel("deleted", "delete")
    stage.cancel("archived", "archive")
    stage.let_idle(*entries)
    assert stage.recover(lease_ms=LEASE_MS).taken == [b"again", b"deleted", b"archived"]
