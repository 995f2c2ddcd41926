"""Enqueue of tasks that something is checked for: ids, locks, groups, ticks, limits of the queue."""

from __future__ import annotations

from typing import Any

import pytest

from streamq.broker.grouping import flush_group
from streamq.broker.producing import MAX_BATCH_TASKS, GroupRule, LockRule, TickGuard, how
from streamq.errors import OutOfMemory, SequenceConflict
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.locks import KEY, enqueue, holder, nothing_left, tidy, window_end
from tests.broker.stage import LONG_MS, Stage

GROUP = GroupRule("t", "g", LONG_MS)
MEMBER = "t\ng"

# Locks: who is a duplicate


@pytest.mark.parametrize("mode", ["s", "d", "w"])
@pytest.mark.parametrize("delay_ms", [None, LONG_MS])
def test_the_second_task_with_a_key_is_refused_and_leaves_no_trace(
    stage: Stage, mode: str, delay_ms: int | None
) -> None:
    """A29: the answer names the task that holds the lock; another key is another lock."""
    options: Any = {"mode": mode, "window_ms": LONG_MS, "delay_ms": delay_ms}
    enqueue(stage, "a", **options)
    before = stage.dump()
    assert enqueue(stage, "b", **options) == [b"duplicate:a"]
    before.pop(stage.queue.producers)
    assert {key: value for key, value in stage.dump().items() if key in before} == before
    assert enqueue(stage, "c", key="other", **options) == [b"scheduled" if delay_ms else b"ready"]


def test_a_duplicate_is_found_within_its_own_call(stage: Stage) -> None:
    """A29: of 250 tasks with one key the first is stored; one of another key is not in the way."""
    ids = [f"t{i}" for i in range(MAX_BATCH_TASKS)]
    assert enqueue(stage, *ids) == [b"ready"] + [b"duplicate:t0"] * (MAX_BATCH_TASKS - 1)
    assert stage.ids(Lane.NORMAL) == ["t0"]


def test_the_holder_is_returned_where_the_caller_asks_for_it(stage: Stage) -> None:
    enqueue(stage, "a")
    assert enqueue(stage, "b", clash="r") == [b"existing:a"]
    assert stage.ids(Lane.NORMAL) == ["a"]


def test_a_window_begins_when_the_task_is_due(stage: Stage) -> None:
    """A29, A30: in an hour, unique for ten minutes, stands for an hour and ten minutes."""
    before = stage.now_ms()
    enqueue(stage, "now", mode="w", window_ms=LONG_MS)
    enqueue(stage, "later", mode="w", window_ms=600_000, delay_ms=LONG_MS, key="L")
    after = stage.now_ms()
    assert before + LONG_MS <= window_end(stage) <= after + LONG_MS
    assert before + LONG_MS + 600_000 <= window_end(stage, "L") <= after + LONG_MS + 600_000


def test_a_task_with_a_lock_is_due_at_its_moment_and_workers_hear_of_the_next(stage: Stage) -> None:
    """A later one is no news to them."""
    at_ms = stage.now_ms() + LONG_MS
    with stage.hearing(stage.queue.hints) as said:
        assert enqueue(stage, "a", at_ms=at_ms) == [b"scheduled"]
        enqueue(stage, "later", key="L", at_ms=at_ms + 1)
    assert stage.members(stage.queue.scheduled)["a"] == at_ms
    assert said == [b"due"]
    assert enqueue(stage, "past", key="P", at_ms=1) == [b"ready"]


def test_workers_hear_of_the_soonest_of_a_call(stage: Stage) -> None:
    """Of what is scheduled, and of the groups; though others of the call come later."""
    lock = LockRule("d", "x", 0)
    scheduled = [
        (how(Lane.NORMAL, delay_ms=delay_ms, lock=lock), f"t{delay_ms} k{delay_ms}", b"m")
        for delay_ms in (LONG_MS, 2 * LONG_MS)
    ]
    members = [
        (how(Lane.NORMAL, group=GroupRule("t", f"g{grace_ms}", grace_ms)), f"m{grace_ms}", b"m")
        for grace_ms in (LONG_MS, 3 * LONG_MS)
    ]
    stage.send(1, (how(Lane.NORMAL, group=GroupRule("t", "known", 2 * LONG_MS)), "known", b"m"))
    for sequence, tasks in enumerate((scheduled, members), start=2):
        with stage.hearing(stage.queue.hints) as said:
            stage.send(sequence, *tasks)
        assert said == [b"due"]


def test_a_window_stands_though_its_task_is_gone_and_ends_by_itself(stage: Stage) -> None:
    enqueue(stage, "a", mode="w", window_ms=LONG_MS)
    stage.complete(*stage.fetch())
    assert enqueue(stage, "b", mode="w", window_ms=LONG_MS) == [b"duplicate:a"]
    stage.redis.hset(stage.queue.unique, KEY, f"w{stage.now_ms() - 1} a")
    assert enqueue(stage, "b", mode="w", window_ms=LONG_MS) == [b"ready"]
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}


def test_a_window_that_has_ended_still_stands_while_its_task_lives(stage: Stage) -> None:
    """B35: retries that take longer than the window do not make a second task possible."""
    enqueue(stage, "a", mode="w", window_ms=1)
    stage.until(lambda: stage.now_ms() > window_end(stage))
    assert enqueue(stage, "b", mode="w", window_ms=1) == [b"duplicate:a"]
    stage.retry(*stage.fetch())
    assert enqueue(stage, "b", mode="w", window_ms=1) == [b"duplicate:a"]


def test_until_it_is_done_means_in_every_state_before_that(stage: Stage) -> None:
    """B35: ready, active, waiting for a retry, due again, given back, recovered from a dead worker."""
    enqueue(stage, "a", mode="d")

    def refused() -> bool:
        return enqueue(stage, "b") == [b"duplicate:a"]

    assert refused()
    [entry] = stage.fetch()
    assert refused()
    stage.retry(entry, delay_ms=0)
    assert refused()
    stage.until(lambda: stage.forward().moved)
    assert refused()
    stage.release(*stage.fetch())
    assert refused()
    [entry] = stage.fetch("dead")
    stage.recover(Lane.FRONT, dead="dead")
    assert refused()
    stage.complete(*stage.fetch())
    assert enqueue(stage, "b") == [b"ready"]


@pytest.mark.parametrize("mode", ["s", "b"])
def test_until_it_starts_means_until_a_worker_has_it(stage: Stage, mode: str) -> None:
    """Tried again it waits again, and its lock stands again unless another task has taken it."""
    enqueue(stage, "a", mode="s")
    [entry] = stage.fetch()
    stage.retry(entry)
    assert enqueue(stage, "b", mode="s") == [b"duplicate:a"]
    stage.delete("a")
    enqueue(stage, "c", mode="s")
    stage.fetch()
    assert enqueue(stage, "d", mode=mode) == [b"ready"]
    assert holder(stage) == "d"
    assert stage.redis.hgetall(stage.queue.owners) == {b"d": KEY.encode()}


# Locks: how they end


def settle_done(stage: Stage) -> None:
    stage.complete(*stage.fetch())


def settle_kept(stage: Stage) -> None:
    stage.retain(*stage.fetch())


def settle_dead(stage: Stage) -> None:
    stage.archive(*stage.fetch())


def crash(stage: Stage) -> None:
    stage.fetch("dead")
    stage.recover(crash_limit=0, dead="dead")


def delete(stage: Stage) -> None:
    assert stage.delete("a") == b"ok"


def remove_queue(stage: Stage) -> None:
    stage.redis.unlink(*stage.queue.every)


@pytest.mark.parametrize(
    "end", [settle_done, settle_kept, settle_dead, crash, delete, remove_queue], ids=lambda end: end.__name__
)
@pytest.mark.parametrize("mode", ["s", "d", "b", "k"])
def test_no_way_in_which_a_task_ends_leaves_its_lock_behind(stage: Stage, mode: str, end: Any) -> None:
    """B36, A33, A34, A36: the next task with the key is taken at once, though nobody has tidied up."""
    enqueue(stage, "a", mode=mode)
    end(stage)
    assert enqueue(stage, "b", mode=mode) == [b"ready"]
    assert holder(stage) == "b"
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}


def test_a_purged_archive_holds_no_lock(stage: Stage) -> None:
    """A37, B36: also not those that were asked to outlive the archiving."""
    enqueue(stage, "a", mode="D")
    stage.archive(*stage.fetch())
    assert enqueue(stage, "b", mode="D") == [b"duplicate:a"]
    assert stage.purge(archive_size=0).purged == 1
    assert enqueue(stage, "b", mode="D") == [b"ready"]


def test_a_deleted_task_gives_its_window_back(stage: Stage) -> None:
    """A36: in every state in which it can be deleted, also long after it was completed."""
    for step in ("ready", "scheduled", "completed"):
        enqueue(stage, step, mode="w", window_ms=LONG_MS, delay_ms=LONG_MS if step == "scheduled" else None)
        if step == "completed":
            stage.retain(*stage.fetch())
            assert enqueue(stage, "b", mode="w", window_ms=LONG_MS) == [b"duplicate:completed"]
        assert stage.delete(step) == b"ok"
        assert nothing_left(stage)


def test_only_the_owner_frees_a_lock(stage: Stage) -> None:
    """A35: the lock went to another task before the first one was done."""
    enqueue(stage, "a", mode="s")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="s", delay_ms=LONG_MS)
    stage.complete(entry)
    tidy(stage, "a")
    assert holder(stage) == "b"
    assert enqueue(stage, "c", mode="s") == [b"duplicate:b"]


# Locks: instead of refusing


def test_a_holder_that_waits_makes_way(stage: Stage) -> None:
    """Whether it is ready, scheduled, waits for a retry or in a group; nothing is left of it."""
    enqueue(stage, "ready")
    assert enqueue(stage, "scheduled", clash="p", delay_ms=LONG_MS) == [b"scheduled"]
    assert stage.find("ready").state is None
    assert enqueue(stage, "again", clash="p") == [b"ready"]
    stage.retry(*stage.fetch())
    assert enqueue(stage, "member", clash="p", group=GROUP) == [b"aggregating"]
    assert enqueue(stage, "last", clash="p") == [b"ready"]
    assert stage.ids(Lane.NORMAL) == ["last"]
    for key in (stage.queue.parked, stage.queue.aggregating, stage.queue.groups, stage.queue.grouped):
        assert stage.redis.exists(key) == 0
    assert stage.redis.hgetall(stage.queue.owners) == {b"last": KEY.encode()}


def test_the_other_members_of_a_holders_group_stay_in_it(stage: Stage) -> None:
    enqueue(stage, "a", group=GROUP)
    enqueue(stage, "other", key="other", group=GROUP)
    assert enqueue(stage, "b", clash="p") == [b"ready"]
    assert list(stage.members(stage.queue.groups)) == [MEMBER]


def test_a_holder_that_runs_does_not_make_way(stage: Stage) -> None:
    enqueue(stage, "a")
    stage.fetch()
    assert enqueue(stage, "b", clash="p") == [b"duplicate:a"]


def test_a_window_of_a_task_that_is_gone_makes_way(stage: Stage) -> None:
    enqueue(stage, "a", mode="w", window_ms=LONG_MS)
    stage.complete(*stage.fetch())
    assert enqueue(stage, "b", mode="w", window_ms=LONG_MS, clash="p") == [b"ready"]


def test_an_archived_holder_that_keeps_its_lock_makes_way(stage: Stage) -> None:
    """It stays archived; the lock is the newcomer's."""
    enqueue(stage, "a", mode="D")
    stage.archive(*stage.fetch())
    assert enqueue(stage, "b", mode="D") == [b"duplicate:a"]
    assert enqueue(stage, "b", mode="D", clash="p") == [b"ready"]
    assert stage.find("a").state is State.ARCHIVED
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}


def test_debounce_puts_the_newest_in_the_waiting_ones_place_and_moves_its_time(stage: Stage) -> None:
    enqueue(stage, "a", mode="b", delay_ms=LONG_MS)
    assert enqueue(stage, "b", mode="b", delay_ms=2 * LONG_MS, lane=Lane.LOW) == [b"merged:a"]
    assert stage.members(stage.queue.scheduled)["a"] > stage.now_ms() + LONG_MS
    body = stage.body("a")
    assert body is not None
    assert (body.message, body.lane) == (b"m-b", Lane.LOW)
    assert enqueue(stage, "c", mode="b") == [b"merged:a"]
    assert [entry.message for entry in stage.fetch()] == [b"m-c"]
    assert enqueue(stage, "d", mode="b", delay_ms=LONG_MS) == [b"scheduled"], "one that runs is let run"


def test_debounced_tasks_of_one_call_become_one(stage: Stage) -> None:
    assert enqueue(stage, "a", "b", "c", mode="b") == [b"ready", b"merged:a", b"merged:a"]
    assert [entry.message for entry in stage.fetch()] == [b"m-c"]


def test_keep_last_has_one_that_runs_and_one_that_waits(stage: Stage) -> None:
    """The newest arguments win; the one that waits is ready the moment the running one has ended."""
    enqueue(stage, "a", mode="k")
    assert enqueue(stage, "b", mode="k") == [b"merged:a"]
    [entry] = stage.fetch()
    assert entry.message == b"m-b"
    assert enqueue(stage, "c", mode="k") == [b"scheduled"]
    assert enqueue(stage, "d", mode="k") == [b"merged:c"]
    assert stage.forward().moved == 0
    assert stage.find("c").state is State.SCHEDULED
    stage.complete(entry)
    assert tidy(stage, "a").woken == 1
    assert [entry.message for entry in stage.fetch()] == [b"m-d"]
    assert holder(stage) == "c"


def test_keep_last_replaces_at_the_front_what_it_replaces_in_a_lane(stage: Stage) -> None:
    """It had its place; at the end of the lane again and again it might never run."""
    enqueue(stage, "a", mode="k", lane=Lane.LOW)
    stage.enqueue("other", lane=Lane.LOW)
    enqueue(stage, "b", mode="k", lane=Lane.LOW)
    [first, second] = stage.fetch()
    assert (first.task_id, first.home, first.message) == (b"a", Lane.LOW, b"m-b")
    assert second.task_id == b"other"


def test_keep_last_is_right_though_nobody_tidied_up(stage: Stage) -> None:
    """The running one has ended and its worker died: the one that waits is the holder for who comes now."""
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    stage.complete(entry)
    assert enqueue(stage, "other", mode="d") == [b"duplicate:b"]
    assert enqueue(stage, "c", mode="k") == [b"merged:b"]
    assert holder(stage) == "b"
    assert [entry.message for entry in stage.fetch()] == [b"m-c"]


def test_keep_last_keeps_the_result_of_the_one_that_has_ended(stage: Stage) -> None:
    """And nothing of its lock, though nobody tidied up."""
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    stage.retain(entry)
    assert enqueue(stage, "c", mode="k") == [b"merged:b"]
    assert stage.find("a").state is State.COMPLETED
    assert stage.redis.hkeys(stage.queue.unique) == [KEY.encode()]
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}


def test_keep_last_drops_the_one_to_be_tried_again_when_a_newer_one_comes(stage: Stage) -> None:
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    stage.retry(entry)
    assert enqueue(stage, "c", mode="k") == [b"merged:b"]
    assert stage.find("a").state is None
    assert [entry.message for entry in stage.fetch()] == [b"m-c"]


def test_keep_last_starts_anew_when_the_waiting_one_was_deleted(stage: Stage) -> None:
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    stage.delete("b")
    assert enqueue(stage, "c", mode="k") == [b"scheduled"]
    stage.complete(entry)
    tidy(stage, "a")
    assert [entry.message for entry in stage.fetch()] == [b"m-c"]


def test_keep_last_starts_anew_when_the_waiting_one_was_lost(stage: Stage) -> None:
    """Its body was deleted by hand, and the running one has ended."""
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    stage.redis.hdel(stage.queue.parked, "b")
    stage.redis.zrem(stage.queue.scheduled, "b")
    stage.complete(entry)
    assert enqueue(stage, "c", mode="k") == [b"ready"]


# Ids of the caller's choice


def test_an_id_is_refused_on_every_path_and_takes_no_lock_with_it(stage: Stage) -> None:
    """A18, B36: ready, scheduled, with a lock and into a group; the key is free for the next one."""
    stage.enqueue("taken")
    for options in ({}, {"delay_ms": LONG_MS}, {"group": GROUP}):
        assert enqueue(stage, "taken", conflict="x", **options) == [b"conflict"]
        assert enqueue(stage, "taken", conflict="r", **options) == [b"exists"]
    assert nothing_left(stage)
    assert stage.redis.exists(stage.queue.grouped) == 0
    assert enqueue(stage, "free", conflict="x") == [b"ready"]


@pytest.mark.parametrize("conflict", ["x", "r", "p"])
def test_a_record_of_a_lock_that_another_task_holds_frees_nothing(stage: Stage, conflict: str) -> None:
    """A35: it is left over from a task that had the id before."""
    enqueue(stage, "a")
    stage.redis.hset(stage.queue.owners, "b", KEY)
    assert stage.enqueue("b", conflict=conflict) == [b"ready"]
    assert holder(stage) == "a"
    assert stage.redis.hkeys(stage.queue.owners) == [b"a"]


@pytest.mark.parametrize("conflict", ["x", "r", "p"])
def test_records_that_point_nowhere_hold_no_id(stage: Stage, conflict: str) -> None:
    """B37: an index entry without its stream entry, a body in no set, a place in a group without a body."""
    stage.redis.hset(stage.queue.index, "index", "n1-1")
    stage.redis.hset(stage.queue.parked, "body", "n0:m")
    stage.redis.hset(stage.queue.grouped, "member", "=gone")
    stage.redis.hset(stage.queue.grouped, "later", f"0 1,0,0,{MEMBER}")
    ids = ["index", "body", "member", "later"]
    assert stage.enqueue(*ids, conflict=conflict) == [b"ready"] * 4
    assert stage.ids(Lane.NORMAL) == ids
    assert stage.redis.exists(stage.queue.parked, stage.queue.grouped) == 0


def test_finished_tasks_are_kept_returned_or_replaced_as_asked(stage: Stage) -> None:
    """B37: archived and completed; what is replaced leaves its lock and its progress behind nowhere."""
    enqueue(stage, "archived", mode="D", key="A")
    enqueue(stage, "completed", mode="w", window_ms=LONG_MS, key="C")
    archived, completed = stage.fetch()
    stage.archive(archived)
    stage.retain(completed)
    stage.redis.hset(stage.queue.progress, "completed", "x")
    both = ("archived", "completed")
    assert stage.enqueue(*both, conflict="x") == [b"conflict"] * 2
    assert stage.enqueue(*both, conflict="r") == [b"exists"] * 2
    assert enqueue(stage, "archived", conflict="p", mode="D", key="A") == [b"ready"]
    assert enqueue(stage, "completed", conflict="p", key="other") == [b"ready"]
    assert stage.redis.hkeys(stage.queue.unique) == [b"A", b"other"]
    assert stage.redis.exists(stage.queue.progress, stage.queue.parked) == 0


@pytest.mark.parametrize("end", ["archive", "retain"])
def test_a_member_of_a_finished_batch_is_a_finished_task(stage: Stage, end: str) -> None:
    """B37: its id is free again when the batch is gone, or when it is to be replaced."""
    enqueue(stage, "a", mode="D", group=GroupRule("t", "g", 1))
    stage.until(lambda: stage.run(flush_group(stage.queue, ["batch"])).batches)
    getattr(stage, end)(*stage.fetch())
    assert stage.enqueue("a", conflict="x") == [b"conflict"]
    assert stage.enqueue("a", conflict="r") == [b"exists"]
    # A lock that outlasts archiving does so in a batch, too.
    assert enqueue(stage, "b", mode="D") == [b"duplicate:a" if end == "archive" else b"ready"]
    assert stage.enqueue("a", conflict="p") == [b"ready"]


# Groups


def test_a_member_waits_in_its_group(stage: Stage) -> None:
    before = stage.now_ms()
    assert stage.send(1, (how(Lane.LOW, group=GROUP), "a", b"m")).words == [b"aggregating"]
    [name] = stage.redis.zrange(stage.queue.aggregating, 0, -1)
    group, arrival, task_id = name.split(b"\0")
    assert (group, task_id) == (MEMBER.encode(), b"a")
    assert before <= int(arrival) // 1000 <= stage.now_ms()
    assert stage.redis.hget(stage.queue.grouped, "a") == arrival + f" {LONG_MS},0,0,{MEMBER}".encode()
    assert before + LONG_MS <= stage.members(stage.queue.groups)[MEMBER] <= stage.now_ms() + LONG_MS
    body = stage.body("a")
    assert body is not None
    assert (body.lane, body.message) == (Lane.LOW, b"m")


def group_due(stage: Stage, *ids: str, **rule: int) -> int:
    """When the group is due after these came, in ms from now."""
    first = how(Lane.NORMAL, group=GroupRule("t", "g", **{"grace_ms": LONG_MS, **rule}))
    stage.send(stage.next_sequence(), *[(first, id_, b"m") for id_ in ids])
    return stage.members(stage.queue.groups)[MEMBER] - stage.now_ms()


def test_each_member_puts_the_batch_off_by_the_grace_period(stage: Stage) -> None:
    assert group_due(stage, "a", grace_ms=LONG_MS) <= LONG_MS
    assert LONG_MS < group_due(stage, "b", grace_ms=2 * LONG_MS) <= 2 * LONG_MS


def test_the_longest_delay_counts_from_the_first_member(stage: Stage) -> None:
    group_due(stage, "a")
    assert group_due(stage, "b", max_delay_ms=1000) <= 1000


def test_a_full_group_is_due_at_once(stage: Stage) -> None:
    with stage.hearing(stage.queue.hints) as said:
        assert group_due(stage, "a", "b", max_size=3) > 0
        assert group_due(stage, "c", max_size=3) <= 0
    assert said == [b"due", b"due"]


def test_members_keep_the_order_in_which_they_came_also_within_a_call(stage: Stage) -> None:
    group_due(stage, *"zyx")
    group_due(stage, "w")
    names = stage.redis.zrange(stage.queue.aggregating, 0, -1)
    assert [name.split(b"\0")[2] for name in names] == [b"z", b"y", b"x", b"w"]


@pytest.mark.parametrize("mode", ["s", "d"])
def test_a_member_has_started_when_its_batch_has(stage: Stage, mode: str) -> None:
    """A38: until then its lock stands, and one that stands until the end does so afterwards."""
    assert enqueue(stage, "a", mode=mode, group=GROUP) == [b"aggregating"]
    stage.redis.zadd(stage.queue.groups, {MEMBER: 1})
    stage.run(flush_group(stage.queue, ["batch"]))
    assert enqueue(stage, "b", mode=mode, group=GROUP) == [b"duplicate:a"]
    stage.fetch()
    expected = b"aggregating" if mode == "s" else b"duplicate:a"
    assert enqueue(stage, "b", mode=mode, group=GROUP) == [expected]


def test_workers_are_told_of_a_group_that_is_due_sooner_than_any_before(stage: Stage) -> None:
    """A steady flow that puts its group off wakes nobody; a full group does."""

    def told(*ids: str, group: str = "g", **rule: int) -> list[bytes]:
        first = how(Lane.NORMAL, group=GroupRule("t", group, **{"grace_ms": LONG_MS, **rule}))
        with stage.hearing(stage.queue.hints) as said:
            stage.send(stage.next_sequence(), *((first, id_, b"m") for id_ in ids))
        return said

    assert told("a") == [b"due"]
    assert told("b", "c") == []
    assert told("d", group="later", grace_ms=2 * LONG_MS) == []
    assert told("e", group="sooner", grace_ms=1000) == [b"due"]
    assert told("f", max_size=4) == [b"due"]


def test_a_delayed_member_is_scheduled_and_remembers_its_group(stage: Stage) -> None:
    words = stage.send(1, (how(Lane.NORMAL, delay_ms=LONG_MS, group=GROUP), "a", b"m")).words
    assert words == [b"scheduled"]
    assert stage.redis.hget(stage.queue.grouped, "a") == f"0 {LONG_MS},0,0,{MEMBER}".encode()
    assert stage.redis.exists(stage.queue.aggregating, stage.queue.groups) == 0


def test_the_same_member_twice_is_a_duplicate(stage: Stage) -> None:
    """A38: in its group, and in the batch that was made of it, until that one has ended."""
    assert enqueue(stage, "a", group=GROUP) == [b"aggregating"]
    assert enqueue(stage, "b", group=GROUP) == [b"duplicate:a"]
    assert stage.redis.zcard(stage.queue.aggregating) == 1
    stage.redis.delete(stage.queue.aggregating, stage.queue.groups, stage.queue.parked)
    stage.redis.hset(stage.queue.grouped, "a", "=batch")
    stage.enqueue("batch")
    assert enqueue(stage, "b", group=GROUP) == [b"duplicate:a"]
    stage.retry(*stage.fetch())
    assert enqueue(stage, "b", group=GROUP) == [b"duplicate:a"]
    stage.delete("batch")
    assert enqueue(stage, "b", group=GROUP) == [b"aggregating"]


# Ticks


def tick(stage: Stage, id_: str, expected_ms: int, next_ms: int | None, entry: str = "nightly") -> bytes:
    first = how(Lane.NORMAL, tick=TickGuard(entry, expected_ms, next_ms))
    return stage.send(stage.next_sequence(), (first, id_, b"m")).words[0]


def test_a_tick_fires_once_whoever_comes(stage: Stage) -> None:
    """The entry's next tick is compared and set in the call that stores the task."""
    stage.redis.zadd(stage.queue.cron_due, {"nightly": 1000})
    assert tick(stage, "a", 1000, 2000) == b"ready"
    assert tick(stage, "b", 1000, 2000) == b"stale"
    assert tick(stage, "c", 2000, None) == b"ready"
    assert tick(stage, "d", 2000, None) == b"stale"
    assert stage.redis.exists(stage.queue.cron_due) == 0
    assert stage.ids(Lane.NORMAL) == ["a", "c"]


def test_ticks_are_noted_with_what_became_of_them(stage: Stage) -> None:
    stage.redis.zadd(stage.queue.cron_due, {"one: two": 1000})
    enqueue(stage, "holder")
    first = how(Lane.NORMAL, lock=LockRule("d", "r"), tick=TickGuard("one: two", 1000, 2000))
    stage.send(stage.next_sequence(), (first, f"b {KEY}", b"m"))
    tick(stage, "c", 2000, 3000, "one: two")
    last, before = (row.decode().split(" ") for row in stage.redis.lrange(stage.queue.ticks, 0, -1))
    assert (last[:3], last[4:]) == (["8:one:", "two", "2000"], ["ready", "c"])
    assert (before[:3], before[4:]) == (["8:one:", "two", "1000"], ["existing:holder", "b"])
    assert abs(int(last[3]) - stage.now_ms()) < LONG_MS
    assert stage.members(stage.queue.cron_due) == {"one: two": 3000}


def test_a_thousand_ticks_are_kept(stage7: Stage) -> None:
    stage7.redis.rpush(stage7.queue.ticks, *range(1000))
    stage7.redis.zadd(stage7.queue.cron_due, {"nightly": 1000})
    tick(stage7, "a", 1000, 2000)
    assert stage7.redis.llen(stage7.queue.ticks) == 1000


# Any call


def test_a_resend_gets_the_first_answer_and_adds_nothing(stage: Stage) -> None:
    """B5: also where the answer names a task, and where a newer state would give another one."""
    first = how(Lane.NORMAL, lock=LockRule("k"))
    tasks = [(first, f"a {KEY}", b"m"), (first, f"b {KEY}", b"m")]
    words = stage.send(1, *tasks).words
    assert words == [b"ready", b"merged:a"]
    stage.complete(*stage.fetch())
    before = stage.dump()
    assert stage.send(1, *tasks).words == words
    assert stage.dump() == before
    with pytest.raises(SequenceConflict):
        stage.send(1, (first, f"c {KEY}", b"m"))


def test_plain_and_checked_calls_share_one_sequence(stage: Stage) -> None:
    stage.send(1, (how(Lane.NORMAL), "a", b"m"))
    stage.send(2, (how(Lane.NORMAL, "x"), "b", b"m"))
    assert stage.send(2, (how(Lane.NORMAL, "x"), "b", b"m")).words == [b"ready"]
    stage.send(3, (how(Lane.NORMAL), "c", b"m"))
    assert stage.ids(Lane.NORMAL) == ["a", "b", "c"]


def test_the_first_checked_call_says_that_the_queue_is_new(stage: Stage) -> None:
    """B19."""
    task = (how(Lane.NORMAL, "x"), "a", b"m")
    assert stage.send(1, task).new_queue
    assert not stage.send(2, (how(Lane.NORMAL, "x"), "b", b"m")).new_queue


def test_every_task_of_a_call_has_its_own_answer(stage: Stage) -> None:
    """A26: whatever is checked for its neighbours."""
    stage.enqueue("taken")
    answer = stage.send(
        stage.next_sequence(),
        (how(Lane.HIGH), "plain", b"m"),
        (how(Lane.NORMAL, lock=LockRule("d")), f"one {KEY}", b"m"),
        (how(Lane.NORMAL, "x"), "taken", b"m"),
        (how(Lane.LOW, lock=LockRule("d", "r")), f"two {KEY}", b"m"),
        (how(Lane.LOW, group=GROUP), "member", b"m"),
        (how(Lane.LOW, delay_ms=LONG_MS), "later", b"m"),
        (how(Lane.NORMAL, "r"), "plain", b"m"),
    )
    assert answer.words == [
        b"ready", b"ready", b"conflict", b"existing:one", b"aggregating", b"scheduled", b"exists",
    ]  # fmt: skip


def test_out_of_memory_is_typed_and_nothing_was_written(full: Stage) -> None:
    """Back-pressure: no part of the call is left behind, so that it can be sent again."""
    enqueue(full, "before")
    before = full.dump()
    full.redis.config_set("maxmemory", 1)
    for options in ({"key": "one"}, {"key": "two", "delay_ms": LONG_MS}, {"key": "three", "group": GROUP}):
        with pytest.raises(OutOfMemory, match="maxmemory"):
            enqueue(full, *[f"t{i}" for i in range(10)], **options)
        assert full.dump() == before
    full.redis.config_set("maxmemory", 0)


def test_a_batch_of_unique_tasks_is_one_script_call(stage: Stage) -> None:
    """The checks ride in the call that stores; what they read and write is gathered."""
    ids = [(how(Lane.NORMAL, lock=LockRule("d")), f"t{i} k{i}", b"m") for i in range(100)]
    stage.send(1, *ids[:1])
    stage.redis.config_resetstat()
    stage.send(2, *ids[1:])
    calls = {
        name.removeprefix("cmdstat_"): stats["calls"]
        for name, stats in stage.redis.info("commandstats").items()
    }
    assert calls["evalsha"] == 1
    assert calls["xadd"] == 99
    assert (calls["hmget"], calls["hset"]) == (1, 4)
    assert "xrange" not in calls
