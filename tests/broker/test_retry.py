"""Retry: tasks whose attempt ended wait for another one."""

from __future__ import annotations

import pytest

from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.stage import DAY, LONG_MS, Stage

DAYS_90_S = 90 * 86_400
MINUTE_MS = 60_000


def test_a_failed_task_waits_for_its_next_attempt(stage: Stage) -> None:
    """A53: due after the delay by the server's clock, with the message its worker wrote (error, count)."""
    [entry] = stage.started("a", lane=Lane.HIGH)
    before = stage.now_ms()
    assert stage.retry(entry, delay_ms=MINUTE_MS, message=b"failed once") == [b"ok"]
    after = stage.now_ms()
    assert before + MINUTE_MS <= stage.members(stage.queue.retry)["a"] <= after + MINUTE_MS
    found = stage.find("a")
    assert (found.state, found.message_bytes) == (State.RETRY, b"failed once")
    assert found.parked is not None
    assert (found.parked.lane, found.parked.crashes) == (Lane.HIGH, 0)
    assert stage.ids(Lane.HIGH) == []
    assert stage.active(Lane.HIGH) == []


def test_a_failure_counts_as_processed_and_failed(stage: Stage) -> None:
    """A59: in total and for the day, whose counters expire after 90 days."""
    stage.retry(*stage.started("a", "b"))
    both = {"processed": 2, "failed": 2}
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == both
    assert DAYS_90_S - 60 <= stage.redis.ttl(stage.queue.stats_of(DAY)) <= DAYS_90_S


def test_what_is_no_failure_counts_nothing(stage: Stage) -> None:
    """A58: the worker's predicate said so; the task waits all the same."""
    stage.retry(*stage.started("a"), failed=0)
    assert list(stage.members(stage.queue.retry)) == ["a"]
    assert stage.counters() == {}


def test_a_second_retry_is_told_lost_and_changes_nothing(stage: Stage) -> None:
    """B6: no retry is spent twice, and no due time moves."""
    [entry] = stage.started("a")
    stage.retry(entry)
    before = stage.dump()
    assert stage.retry(entry, delay_ms=1, message=b"stale") == [b"lost"]
    assert stage.dump() == before


def test_a_stale_failure_does_not_touch_the_second_run(stage: Stage) -> None:
    """B6: what a worker says that was taken for dead is refused."""
    [old] = stage.started("a")
    stage.let_idle(old)
    stage.recover(lease_ms=1000)
    before = stage.dump()
    assert stage.retry(old, message=b"stale") == [b"lost"]
    assert stage.dump() == before


def test_workers_are_told_of_the_next_due_time(stage: Stage) -> None:
    """Only when it is sooner than what forwarders wait for anyway."""
    first, later, sooner = stage.started("a", "b", "c")
    with stage.hearing(stage.queue.hints) as said:
        stage.retry(first, delay_ms=LONG_MS)
        stage.retry(later, delay_ms=2 * LONG_MS)
        stage.retry(sooner, delay_ms=MINUTE_MS)
        stage.retry(sooner, delay_ms=1)
    assert said == [b"due", b"due"]


@pytest.mark.parametrize("crashes", [0, 2])
def test_a_retry_keeps_the_count_of_crashes(stage: Stage, crashes: int) -> None:
    """Failures and crashes are different counters; a failure does not forgive a crash."""
    entry = stage.started("a")[0]._replace(crashes=crashes)
    stage.retry(entry, delay_ms=0)
    stage.until(lambda: stage.forward().moved)
    [again] = stage.fetch()
    assert again.crashes == crashes
