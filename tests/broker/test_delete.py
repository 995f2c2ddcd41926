"""Delete: one task that is not running goes, with everything kept of it."""

from __future__ import annotations

import pytest

from streamq.model.lanes import Lane
from tests.broker import groups, locks
from tests.broker.stage import LONG_MS, Stage

STATES = ("ready", "released", "scheduled", "retry", "completed", "archived")


def every_state(stage: Stage) -> None:
    """One task in each state that can be deleted, named after it."""
    stage.release(*stage.started("released"))
    stage.retry(*stage.started("retry"))
    stage.retain(*stage.started("completed"))
    stage.archive(*stage.started("archived"))
    stage.enqueue("scheduled", delay_ms=LONG_MS)
    stage.enqueue("ready", lane=Lane.LOW)


@pytest.mark.parametrize("state", STATES)
def test_a_task_goes_with_its_body_and_the_others_stay(stage: Stage, state: str) -> None:
    """A113: in each state; nothing of it is left, its id is free again."""
    every_state(stage)
    assert stage.delete(state) == b"ok"
    assert stage.find(state).state is None
    assert not stage.find(state).orphan
    for other in set(STATES) - {state}:
        assert stage.find(other).state is not None
    assert stage.delete(state) == b"missing"
    assert stage.enqueue(state, conflict="x") == [b"ready"]


def test_a_task_that_runs_is_refused(stage: Stage) -> None:
    """A114: whoever holds it; its lease and its outcome stand."""
    [entry] = stage.started("a", lane=Lane.HIGH)
    before = stage.dump()
    assert stage.delete("a") == b"active"
    assert stage.dump() == before
    assert stage.complete(entry) == [b"ok"]


def test_who_waits_behind_a_lock_leaves_it_to_its_holder(stage: Stage) -> None:
    """Nothing is left that would wait for it."""
    locks.enqueue(stage, "a", mode="k")
    stage.fetch()
    locks.enqueue(stage, "b", mode="k")
    assert stage.delete("b") == b"ok"
    assert stage.redis.hkeys(stage.queue.unique) == [locks.KEY.encode()]
    assert stage.redis.hgetall(stage.queue.owners) == {b"a": locks.KEY.encode()}


def test_a_deleted_task_does_not_free_the_lock_of_another(stage: Stage) -> None:
    """A35: its record of the lock is an old one."""
    locks.enqueue(stage, "a")
    stage.enqueue("b")
    stage.redis.hset(stage.queue.owners, "b", locks.KEY)
    assert stage.delete("b") == b"ok"
    assert locks.holder(stage) == "a"
    assert stage.redis.hkeys(stage.queue.owners) == [b"a"]


def test_an_unknown_task_is_missing_and_nothing_is_made(stage: Stage) -> None:
    """A105."""
    assert stage.delete("nobody") == b"missing"
    assert stage.all_keys() == []


def test_a_deleted_task_is_not_delivered(stage: Stage) -> None:
    stage.enqueue("a", "b")
    stage.fetch(count=1)
    stage.enqueue("c")
    assert stage.delete("b") == b"ok"
    assert [entry.task_id for entry in stage.fetch("w2")] == [b"c"]


def test_what_a_broken_index_points_to_can_be_deleted(stage: Stage) -> None:
    """B3: an index entry whose stream entry is gone, and a body that no set names."""
    stage.enqueue("gone")
    stage.redis.delete(stage.queue.lanes[Lane.NORMAL])
    stage.redis.hset(stage.queue.parked, "lonely", b"n0:m")
    assert stage.find("gone").orphan
    assert stage.find("lonely").orphan
    assert stage.delete("gone") == stage.delete("lonely") == b"ok"
    assert not stage.find("gone").orphan


def test_a_member_leaves_its_group_and_the_last_one_ends_it(stage: Stage) -> None:
    """A113, A96: the others stay, and so does what they wait for."""
    groups.join(stage, "a", "b", group="one")
    groups.join(stage, "c", group="two")
    before = stage.members(stage.queue.groups)
    assert stage.delete("a") == b"ok"
    assert stage.find("a").state is None
    assert stage.members(stage.queue.groups) == before
    assert stage.delete("b") == b"ok"
    assert list(stage.members(stage.queue.groups)) == [groups.key("two")]
    assert stage.delete("c") == b"ok"
    assert groups.nothing_waits(stage)


def test_a_scheduled_task_with_a_group_goes_with_what_is_kept_of_it(stage: Stage) -> None:
    groups.join(stage, "a", delay_ms=LONG_MS)
    assert stage.delete("a") == b"ok"
    assert stage.redis.exists(stage.queue.grouped) == 0


def test_a_task_inside_of_a_batch_is_refused(stage: Stage) -> None:
    """In whatever state the batch is: its message is part of that one's."""
    groups.batched(stage, "a", "b")
    [entry] = stage.fetch()
    assert stage.delete("a") == b"batched:batch"
    stage.archive(entry, message=entry.message)
    assert stage.delete("a") == b"batched:batch"
    assert list(groups.members_of(stage)) == ["a", "b"]
    assert stage.delete("batch") == b"ok"
    assert stage.delete("a") == b"missing"
    assert stage.redis.hget(stage.queue.grouped, "a") is None
