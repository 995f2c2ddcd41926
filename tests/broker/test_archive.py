"""Archive: tasks that failed for good are kept as dead letters, within the archive's limits."""

from __future__ import annotations

from streamq.model.lanes import Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.broker.stage import DAY, Stage

DAY_MS = 86_400_000


def test_a_task_that_failed_for_good_is_kept_with_its_error(stage: Stage) -> None:
    """A54: archived now, with the message its worker wrote, the reason beside it."""
    [entry] = stage.started("a")
    before = stage.now_ms()
    assert stage.archive(entry, message=b"with error") == [b"ok"]
    assert before <= stage.members(stage.queue.archived)["a"] <= stage.now_ms()
    found = stage.find("a")
    assert (found.state, found.message_bytes) == (State.ARCHIVED, b"with error")
    assert found.parked is not None
    assert found.parked.reason is Reason.FAILED
    assert stage.entries(Lane.NORMAL) == []
    assert stage.active() == []
    counted = {"processed": 1, "failed": 1, "archived": 1}
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == counted


def test_what_was_never_attempted_counts_as_archived_only(stage: Stage) -> None:
    """What expired or cannot be read did not fail."""
    expired, unreadable = stage.started("expired", "unreadable")
    stage.archive(expired, reason=Reason.EXPIRED)
    stage.archive(unreadable, reason=Reason.UNDECODABLE)
    assert stage.counters() == {"archived": 2, "expired": 1}


def test_a_second_archive_is_told_lost_and_changes_nothing(stage: Stage) -> None:
    """B6."""
    [entry] = stage.started("a")
    stage.archive(entry)
    before = stage.dump()
    assert stage.archive(entry, message=b"stale") == [b"lost"]
    assert stage.dump() == before


def test_whoever_waits_is_told(stage: Stage) -> None:
    a, b = stage.started("a", "b")
    stage.complete(b)
    with stage.hearing(stage.queue.done("b").decode(), stage.queue.done("a").decode()) as said:
        assert stage.archive(a, b) == [b"ok", b"lost"]
    assert said == [b"archived"]


def test_what_is_past_the_archives_age_goes_with_its_body(stage: Stage) -> None:
    """A88: when the next task is archived."""
    old, young, newest = stage.started("old", "young", "newest")
    stage.archive(old, young)
    stage.redis.zincrby(stage.queue.archived, -91 * DAY_MS, "old")
    stage.redis.zincrby(stage.queue.archived, -89 * DAY_MS, "young")
    stage.archive(newest, age_ms=90 * DAY_MS)
    assert list(stage.members(stage.queue.archived)) == ["young", "newest"]
    assert stage.body("old") is None


def test_a_full_archive_drops_its_oldest_with_their_bodies(stage: Stage) -> None:
    """A89: the newest are kept."""
    entries = stage.started(*"abcde")
    for back, entry in enumerate(reversed(entries[:4])):
        stage.archive(entry, size=4)
        stage.redis.zincrby(stage.queue.archived, -1000 * back, entry.task_id)
    stage.archive(entries[4], size=4)
    assert list(stage.members(stage.queue.archived)) == ["b", "c", "d", "e"]
    assert stage.find("a").state is None


def test_trimming_far_too_many_is_spread_over_calls(stage: Stage) -> None:
    """Somebody lowered the limit: one call trims at most 1,000, so that Redis is not held."""
    names = [f"old{i}" for i in range(1500)]
    stage.redis.zadd(stage.queue.archived, {name: i for i, name in enumerate(names)})
    stage.redis.hset(stage.queue.parked, mapping=dict.fromkeys(names, b"n0:m"))
    first, second = stage.started("first", "second")
    stage.archive(first, size=10, age_ms=10**13)
    assert stage.redis.zcard(stage.queue.archived) == 501
    stage.archive(second, size=10, age_ms=10**13)
    assert stage.redis.zcard(stage.queue.archived) == 10


def test_twenty_thousand_archived_by_every_route_leave_no_orphan_body(stage7: Stage) -> None:
    """B16: by failures and by crashes, with trimming on the way: bodies = index size."""
    stage, size = stage7, 5_000
    for turn in range(40):
        entries = stage.started(*(f"f{turn}-{i}" for i in range(250)))
        assert stage.archive(*entries, size=size) == [b"ok"] * 250
    assert stage.redis.hlen(stage.queue.parked) == stage.redis.zcard(stage.queue.archived) == size
    for turn in range(40):
        stage.started(*(f"c{turn}-{i}" for i in range(250)), consumer="dead")
        found = stage.recover(crash_limit=0, dead="dead")
        while not found.finished:
            found = stage.recover(crash_limit=0, dead="dead")
    assert stage.redis.hlen(stage.queue.parked) == stage.redis.zcard(stage.queue.archived)
    stage.archive(*stage.started("last"), size=size)
    assert stage.purge(archive_age_ms=0).purged == 500
    assert stage.redis.hlen(stage.queue.parked) == stage.redis.zcard(stage.queue.archived)
    assert stage.counters()["archived"] == 20_001
