"""Retain: tasks that succeeded are kept with their results for their retention."""

from __future__ import annotations

from streamq.broker import working
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.stage import DAY, LONG_MS, Stage


def test_a_retained_task_is_completed_until_its_retention_ends(stage: Stage) -> None:
    """A52: by the server's clock, never early (B21); processed counts one more."""
    [entry] = stage.started("a", lane=Lane.LOW)
    before = stage.now_ms()
    assert stage.retain(entry, retention_ms=LONG_MS, message=b"with result") == [b"ok"]
    after = stage.now_ms()
    assert before + LONG_MS <= stage.members(stage.queue.completed)["a"] <= after + LONG_MS
    found = stage.find("a")
    assert (found.state, found.message_bytes) == (State.COMPLETED, b"with result")
    assert found.parked is not None
    assert found.parked.lane is Lane.LOW
    assert stage.ids(Lane.LOW) == []
    assert stage.active(Lane.LOW) == []
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"processed": 1}


def test_each_task_of_a_batch_has_its_own_retention(stage: Stage) -> None:
    a, b = stage.started("a", "b")
    tasks = [
        working.Settle((entry.entry_id, entry.task_id, ms, b"n0:m"))
        for entry, ms in ((a, LONG_MS), (b, 2 * LONG_MS))
    ]
    stage.run(working.retain(stage.queue, Lane.NORMAL, DAY, tasks))
    due = stage.members(stage.queue.completed)
    assert due["b"] - due["a"] == LONG_MS


def test_whoever_waits_is_told(stage: Stage) -> None:
    """Only of those that were settled just now."""
    a, b = stage.started("a", "b")
    stage.complete(b)
    channels = [stage.queue.done("b").decode(), stage.queue.done("a").decode()]
    with stage.hearing(*channels) as said:
        assert stage.retain(a, b) == [b"ok", b"lost"]
    assert said == [b"completed"]


def test_a_result_that_comes_late_is_refused(stage: Stage) -> None:
    """B17: the task was removed or settled meanwhile; nothing is created."""
    settled, recovered = stage.started("settled", "recovered")
    stage.complete(settled)
    stage.let_idle(recovered)
    stage.recover(lease_ms=1000)
    stage.complete(*stage.fetch("w2"))
    before = stage.dump()
    assert stage.retain(settled, recovered, message=b"late") == [b"lost", b"lost"]
    assert stage.dump() == before


def test_a_result_for_a_removed_queue_is_refused(stage: Stage) -> None:
    """B17: not even the queue's keys come back."""
    [entry] = stage.started("a")
    stage.redis.delete(*stage.queue.every)
    assert stage.retain(entry) == [b"lost"]
    assert stage.all_keys() == []
