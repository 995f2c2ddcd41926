"""Release: unfinished tasks go back to the front, and nothing is spent."""

from __future__ import annotations

from streamq.broker import working
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.stage import Stage


def test_a_released_task_is_ready_again_at_the_head(stage: Stage) -> None:
    """A69: the next worker gets it before anything that waits; its lease is gone, no counter moved."""
    [entry] = stage.started("a", lane=Lane.LOW)
    stage.enqueue("waiting", lane=Lane.HIGH)
    assert stage.release(entry) == [b"ok"]
    assert stage.active(Lane.LOW) == []
    assert stage.counters() == {}
    first, second = stage.fetch("w2")
    assert (first.task_id, second.task_id) == (b"a", b"waiting")
    assert (first.lane, first.home, first.crashes) == (Lane.FRONT, Lane.LOW, 0)
    assert first.message == b"m-a"


def test_released_tasks_keep_their_order(stage: Stage) -> None:
    stage.release(*stage.started("a", "b", "c"))
    assert stage.ids(Lane.FRONT) == ["a", "b", "c"]


def test_a_released_task_can_be_found(stage: Stage) -> None:
    stage.release(*stage.started("a"))
    found = stage.find("a")
    assert found.state is State.READY
    assert found.entry is not None
    assert found.entry.lane is Lane.FRONT


def test_a_task_may_be_released_again_and_again(stage: Stage) -> None:
    """Out of the front lane too: home lane and crashes stay what they were."""
    [entry] = stage.started("a", lane=Lane.HIGH)
    stage.let_idle(entry)
    stage.recover(Lane.HIGH, lease_ms=1000)
    for worker in ("w2", "w3", "w4"):
        [entry] = stage.fetch(worker)
        assert (entry.lane, entry.home, entry.crashes) == (Lane.FRONT, Lane.HIGH, 1)
        assert stage.release(entry) == [b"ok"]
    assert stage.ids(Lane.FRONT) == ["a"]


def test_a_release_that_comes_late_is_told_lost_and_changes_nothing(stage: Stage) -> None:
    """B6: it must not bring back a task that ended, nor double one that another worker has."""
    ended, taken, twice = stage.started("ended", "taken", "twice")
    stage.complete(ended)
    stage.let_idle(taken)
    stage.recover(lease_ms=1000)
    stage.release(twice)
    before = stage.dump()
    assert stage.release(ended, taken, twice) == [b"lost"] * 3
    assert stage.dump() == before


def test_what_nobody_holds_cannot_be_released(stage: Stage) -> None:
    """The acknowledged entry is the token: a ready one has none to give back."""
    stage.started("active")
    stage.enqueue("ready")
    [_, (ready, _)] = stage.redis.xrange(stage.queue.lanes[Lane.NORMAL])
    before = stage.dump()
    assert stage.run(working.release(stage.queue, Lane.NORMAL, [ready])) == [b"lost"]
    assert stage.dump() == before


def test_each_task_of_a_batch_has_its_own_answer(stage: Stage) -> None:
    a, b, c = stage.started("a", "b", "c")
    stage.complete(b)
    assert stage.release(a, b, c) == [b"ok", b"lost", b"ok"]
    assert stage.ids(Lane.FRONT) == ["a", "c"]


def test_an_entry_without_the_expected_fields_survives_a_release(stage: Stage) -> None:
    """B2: foreign data in a lane is carried along until a worker archives it; its neighbours too."""
    stage.redis.xadd(stage.queue.lanes[Lane.NORMAL], {"strange": "entry"})
    stage.enqueue("good")
    odd, good = stage.fetch()
    assert stage.release(odd, good) == [b"ok", b"ok"]
    again, neighbour = stage.fetch("w2")
    assert (again.task_id, again.message, again.home) == (odd.task_id, b"", Lane.NORMAL)
    assert neighbour.task_id == b"good"
    assert stage.active() == []
