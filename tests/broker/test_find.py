"""Find: one task, whatever its state, told without changing anything."""

from __future__ import annotations

from streamq.broker import inspecting
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker import groups
from tests.broker.stage import LONG_MS, Stage
from tests.broker.test_delete import every_state


def test_a_task_is_found_in_each_state(stage: Stage) -> None:
    """A104: with the time that belongs to the state, and where it is at home."""
    every_state(stage)
    stage.started("active", lane=Lane.HIGH, consumer="w9")
    expected = {
        "ready": State.READY,
        "released": State.READY,
        "active": State.ACTIVE,
        "scheduled": State.SCHEDULED,
        "retry": State.RETRY,
        "completed": State.COMPLETED,
        "archived": State.ARCHIVED,
    }
    before = stage.dump()
    found = {name: stage.find(name) for name in expected}
    assert {name: task.state for name, task in found.items()} == expected
    assert stage.dump() == before
    for name, zset in (("scheduled", stage.queue.scheduled), ("archived", stage.queue.archived)):
        assert found[name].time_ms == stage.members(zset)[name]
    assert found["active"].worker == "w9"
    assert 0 <= found["active"].idle_ms < LONG_MS
    info = inspecting.task_info("default", "active", found["active"], LONG_MS)
    assert (info.priority, info.orphaned, info.type) == ("high", False, "?")


def test_a_task_that_is_nowhere_is_missing(stage: Stage) -> None:
    """A105: also in a queue that is not there; looking makes no key."""
    assert stage.find("nobody").state is None
    assert stage.all_keys() == []
    stage.complete(*stage.started("done"))
    assert stage.find("done").state is None
    assert not stage.find("done").orphan


def test_a_member_is_found_in_its_group_and_then_in_its_batch(stage: Stage) -> None:
    """Until its batch is gone."""
    groups.join(stage, "a", "b")
    found = stage.find("a")
    assert (found.state, found.group, found.batch) == (State.AGGREGATING, "g", None)
    assert found.time_ms == stage.members(stage.queue.groups)[groups.key()]
    assert found.message_bytes == b"m-a"
    groups.make_due(stage)
    groups.flush(stage)
    before = stage.dump()
    found = stage.find("a")
    assert (found.state, found.batch) == (State.READY, "batch")
    assert found.message_bytes == stage.find("batch").message_bytes
    assert stage.dump() == before
    stage.complete(*stage.fetch())
    assert stage.find("a").state is None
