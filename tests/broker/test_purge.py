"""Purge: finished tasks whose time is over are deleted with their bodies."""

from __future__ import annotations

from streamq.broker.moving import PURGE_PAGE
from tests.broker.stage import LONG_MS, Stage

DAY_MS = 86_400_000


def test_only_what_is_past_its_retention_goes(stage: Stage) -> None:
    """A85: with its body; the wait until the next one ends is told."""
    over, kept = stage.started("over", "kept")
    stage.retain(over, retention_ms=0)
    stage.retain(kept, retention_ms=LONG_MS)
    stage.until(lambda: stage.purge().purged)
    assert list(stage.members(stage.queue.completed)) == ["kept"]
    assert stage.find("over").state is None
    assert stage.body("kept") is not None
    assert 0 < stage.purge().next_ms <= LONG_MS


def test_a_retention_is_never_cut_short(stage: Stage) -> None:
    """B21: 500 ms are 500 ms by the server's clock."""
    stage.retain(*stage.started("a"), retention_ms=500)
    ends = stage.members(stage.queue.completed)["a"]
    while not stage.purge().purged:
        assert stage.now_ms() <= ends + 5_000
    assert stage.now_ms() >= ends


def test_archived_tasks_go_by_the_archives_age(stage: Stage) -> None:
    """A88: also while nothing new is archived."""
    stage.archive(*stage.started("old", "young"))
    stage.redis.zincrby(stage.queue.archived, -91 * DAY_MS, "old")
    assert stage.purge(90 * DAY_MS) == (1, -1)
    assert list(stage.members(stage.queue.archived)) == ["young"]
    assert stage.body("old") is None


def test_tasks_in_other_states_stay(stage: Stage) -> None:
    stage.enqueue("scheduled", delay_ms=1)
    stage.retry(*stage.started("retry"), delay_ms=0)
    stage.started("active")
    stage.enqueue("ready")
    before = stage.dump()
    assert stage.purge(archive_age_ms=0) == (0, -1)
    assert stage.dump() == before


def test_a_large_pile_goes_page_by_page(stage: Stage) -> None:
    """B20: no call holds Redis for long; 0 asks to come again at once."""
    names = [f"t{i}" for i in range(PURGE_PAGE + 100)]
    stage.redis.zadd(stage.queue.completed, dict.fromkeys(names, 1))
    stage.redis.hset(stage.queue.parked, mapping=dict.fromkeys(names, b"n0:m"))
    assert stage.purge() == (PURGE_PAGE, 0)
    assert stage.purge() == (100, -1)
    assert stage.redis.exists(stage.queue.parked) == 0


def test_an_empty_queue_has_nothing_to_purge(stage: Stage) -> None:
    assert stage.purge() == (0, -1)
    assert stage.all_keys() == []


def test_purging_makes_room_when_memory_is_full(full: Stage) -> None:
    full.archive(*full.started("a"))
    full.redis.config_set("maxmemory", 1)
    full.until(lambda: full.purge(archive_age_ms=0).purged)
    full.redis.config_set("maxmemory", 0)


def test_an_archive_that_grew_past_its_size_is_trimmed_from_its_oldest_end(stage: Stage) -> None:
    """A89: also what recovery archived, which trims nothing itself."""
    ids = [f"t{number}" for number in range(5)]
    stage.archive(*stage.started(*ids))
    assert stage.purge(archive_size=2).purged == 3
    assert [task_id for task_id in ids if stage.find(task_id).state] == ids[3:]
