"""Complete: tasks that succeeded and are not kept leave no trace but their count."""

from __future__ import annotations

import pytest

from streamq.model.lanes import Lane
from tests.broker.stage import DAY, Stage

INT64_MAX = 2**63 - 1
DAYS_90_S = 90 * 86_400


def test_a_task_that_succeeded_is_gone_everywhere_and_counted(stage: Stage) -> None:
    """A51: entry, lease and index entry; one more processed, in total and for the day."""
    [entry] = stage.started("a")
    assert stage.complete(entry) == [b"ok"]
    assert stage.entries(Lane.NORMAL) == []
    assert stage.active() == []
    assert stage.redis.exists(stage.queue.index, stage.queue.parked) == 0
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"processed": 1}


def test_the_days_counters_expire_after_ninety_days(stage: Stage) -> None:
    """A59, for successes."""
    stage.complete(*stage.started("a"))
    ttl = stage.redis.ttl(stage.queue.stats_of(DAY))
    assert DAYS_90_S - 60 <= ttl <= DAYS_90_S
    assert stage.redis.ttl(stage.queue.stats) == -1


def test_a_second_complete_is_told_lost_and_changes_nothing(stage: Stage) -> None:
    """B6, B5: the acknowledged entry is the token, so settling may be sent twice."""
    [entry] = stage.started("a")
    stage.complete(entry)
    before = stage.dump()
    assert stage.complete(entry) == [b"lost"]
    assert stage.dump() == before


def test_a_stale_worker_cannot_complete_what_another_one_has(stage: Stage) -> None:
    """B6: A's entry was recovered and runs at B; A is refused, and B's outcome stands."""
    [old] = stage.started("a")
    stage.let_idle(old)
    stage.recover(lease_ms=1000)
    [new] = stage.fetch("w2", lanes=[Lane.FRONT])
    before = stage.dump()
    assert stage.complete(old) == [b"lost"]
    assert stage.dump() == before
    assert stage.complete(new) == [b"ok"]


@pytest.mark.parametrize("stale", [{0}, {2}, {0, 1}, {1, 3}, {0, 1, 2, 3}])
def test_in_a_mixed_batch_each_task_has_its_own_answer(stage: Stage, stale: set[int]) -> None:
    """B6: only those that were acknowledged just now are removed and counted."""
    entries = stage.started("a", "b", "c", "d")
    if stale:
        stage.retry(*[entries[i] for i in sorted(stale)], failed=0)
    words = stage.complete(*entries)
    assert words == [b"lost" if i in stale else b"ok" for i in range(4)]
    assert set(stage.members(stage.queue.retry)) == {"abcd"[i] for i in stale}
    assert stage.counters().get("processed", 0) == 4 - len(stale)
    assert stage.ids(Lane.NORMAL) == []
    assert stage.active() == []


def test_the_same_entry_id_in_another_lane_is_another_lease(stage: Stage) -> None:
    """B6: ids count the milliseconds of one stream, so two lanes may well have the same."""
    for name, lane in (("h", Lane.HIGH), ("l", Lane.LOW)):
        stage.redis.xadd(stage.queue.lanes[lane], {"id": name, "m": "m"}, id="5-1")
        stage.redis.hset(stage.queue.index, name, f"{lane}5-1")
    high, low = stage.fetch()
    assert high.entry_id == low.entry_id
    assert stage.complete(low) == [b"ok"]
    assert stage.complete(low) == [b"lost"]
    assert stage.active(Lane.HIGH) == [high.entry_id]
    assert stage.complete(high) == [b"ok"]


def test_an_entry_named_twice_in_a_batch_counts_once(stage: Stage) -> None:
    [entry, other] = stage.started("a", "b")
    assert sorted(stage.complete(entry, other, entry)) == [b"lost", b"ok", b"ok"]
    assert stage.counters() == {"processed": 2}


def test_a_full_batch_passes(stage: Stage) -> None:
    """500 tasks a call is what the header allows: 1,000 words, unpacked."""
    stage.enqueue(*(f"a{i}" for i in range(250)))
    stage.enqueue(*(f"b{i}" for i in range(250)))
    assert stage.complete(*stage.fetch(count=500)) == [b"ok"] * 500


def test_a_counter_at_its_end_starts_again(stage: Stage) -> None:
    """A63: an overflow must not fail the script, which could not be rolled back."""
    stage.redis.hset(stage.queue.stats, "processed", INT64_MAX)
    stage.redis.hset(stage.queue.stats_of(DAY), "processed", INT64_MAX)
    assert stage.complete(*stage.started("a")) == [b"ok"]
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"processed": 1}


def test_a_counter_of_a_wrong_kind_does_not_hold_the_task(stage: Stage) -> None:
    """Somebody wrote over the counters: the outcome counts more than the count."""
    stage.redis.hset(stage.queue.stats, "processed", "many")
    stage.redis.set(stage.queue.stats_of(DAY), "mine")
    assert stage.complete(*stage.started("a")) == [b"ok"]
    assert stage.entries(Lane.NORMAL) == []


def test_settling_passes_when_memory_is_full(full: Stage) -> None:
    """Otherwise a full server could never be drained."""
    complete, retain, retry, archive = (full.started(name)[0] for name in ("c", "t", "r", "a"))
    mixed = full.started("m1", "m2")
    full.complete(mixed[0])
    [released] = full.started("released")
    full.redis.config_set("maxmemory", 1)
    assert full.complete(complete) == [b"ok"]
    assert full.complete(*mixed) == [b"lost", b"ok"]
    assert full.retain(retain) == [b"ok"]
    assert full.retry(retry) == [b"ok"]
    assert full.archive(archive) == [b"ok"]
    assert full.release(released) == [b"ok"]
    full.redis.config_set("maxmemory", 0)
    assert full.ids(Lane.FRONT) == ["released"]
    assert full.ids(Lane.NORMAL) == []
