"""Look cron and skip cron: what is due is told, and what was missed is dropped once."""

from __future__ import annotations

from streamq.broker import scheduling
from streamq.broker.scheduling import LOOK_PAGE, member_of
from streamq.codec import encode_cron
from tests.broker.stage import LONG_MS, Stage
from tests.broker.timetables import entry, file, fire, next_of


def test_what_is_due_is_told_with_its_definition(stage: Stage) -> None:
    late, later, future = entry(id_="late"), entry(id_="later"), entry(id_="future")
    now = stage.now_ms()
    file(stage, later, now - 5)
    file(stage, late, now - 1_000)
    file(stage, future, now + LONG_MS)
    seen = stage.run(scheduling.look(stage.queue))
    assert [(row.entry_id, row.due_ms) for row in seen.due] == [("late", now - 1_000), ("later", now - 5)]
    assert [row.stored for row in seen.due] == [encode_cron(late), encode_cron(later)]
    assert [row.member for row in seen.due] == [member_of(late), member_of(later)]
    assert now <= seen.now_ms <= stage.now_ms()
    assert 0 < seen.wait_ms <= LONG_MS


def test_a_queue_without_entries_has_nothing_to_wait_for(stage: Stage) -> None:
    seen = stage.run(scheduling.look(stage.queue))
    assert (seen.wait_ms, seen.orphans, seen.due) == (-1, 0, [])


def test_a_look_brings_a_page_and_says_that_there_is_more(stage: Stage) -> None:
    for n in range(LOOK_PAGE + 1):
        file(stage, entry(id_=f"e{n:03}"), 1000 + n)
    seen = stage.run(scheduling.look(stage.queue))
    assert [row.entry_id for row in seen.due] == [f"e{n:03}" for n in range(LOOK_PAGE)]
    assert seen.wait_ms == 0


def test_ticks_without_their_entry_are_dropped(stage: Stage) -> None:
    """Of an entry that is gone, of a schedule that it no longer has, and what is no tick at all."""
    kept, changed = entry(id_="kept"), entry("@daily", "changed")
    file(stage, kept, 1000)
    file(stage, changed, stage.now_ms() + LONG_MS)
    for member in ("gone 0123abcd", "changed 0123abcd", "nonsense", "changed "):
        stage.redis.zadd(stage.queue.cron_due, {member: 500})
    seen = stage.run(scheduling.look(stage.queue))
    assert [row.entry_id for row in seen.due] == ["kept"]
    assert seen.orphans == 4
    assert set(next_of(stage)) == {"kept", "changed"}


def test_a_look_changes_nothing_else(stage: Stage) -> None:
    file(stage, entry(), 1000)
    before = stage.dump()
    stage.run(scheduling.look(stage.queue))
    assert stage.dump() == before


# Skip


def test_what_was_missed_is_dropped_once_whoever_comes(stage: Stage) -> None:
    one = entry()
    file(stage, one, 1000)
    skip = scheduling.skip_cron(stage.queue, member_of(one), 1000, 5000)
    assert stage.run(skip) == b"ok"
    assert stage.run(skip) == b"stale"
    assert next_of(stage) == {"nightly": 5000}
    assert fire(stage, one, "a", 1000, 2000) == b"stale"
    [tick] = stage.run(scheduling.history(stage.queue, 0, 10))
    assert (tick.id, tick.outcome, tick.task_id) == ("nightly", "skipped", None)
    assert tick.due_at.timestamp() == 1.0


def test_an_entry_may_have_no_tick_after_those_that_were_missed(stage: Stage) -> None:
    one = entry()
    file(stage, one, 1000)
    assert stage.run(scheduling.skip_cron(stage.queue, member_of(one), 1000, None)) == b"ok"
    assert next_of(stage) == {}


def test_an_entry_that_is_gone_has_nothing_to_skip(stage: Stage) -> None:
    assert stage.run(scheduling.skip_cron(stage.queue, b"gone 00", 1000, 2000)) == b"stale"
    assert stage.all_keys() == []


# The past


def test_the_past_is_told_newest_first_page_by_page(stage: Stage) -> None:
    """A120: fired and skipped alike, with what the queue answered."""
    one = entry()
    file(stage, one, 1000)
    fire(stage, one, "a", 1000, 2000)
    stage.run(scheduling.skip_cron(stage.queue, member_of(one), 2000, 3000))
    fire(stage, one, "c", 3000, 4000)

    def page(offset: int, limit: int) -> list[tuple[str, str | None]]:
        return [
            (tick.outcome, tick.task_id) for tick in stage.run(scheduling.history(stage.queue, offset, limit))
        ]

    assert page(0, 2) == [("ready", "c"), ("skipped", None)]
    assert page(2, 2) == [("ready", "a")]
    assert page(4, 2) == []


def test_the_oldest_tick_goes_when_there_are_a_thousand(stage7: Stage) -> None:
    """A121: by firing and by skipping."""
    one = entry()
    file(stage7, one, 1)
    for n in range(1001):
        fire(stage7, one, f"t{n}", n + 1, n + 2)
    kept = stage7.run(scheduling.history(stage7.queue, 0, 2000))
    assert len(kept) == scheduling.HISTORY_KEPT == 1000
    assert (kept[0].task_id, kept[-1].task_id) == ("t1000", "t1")
    stage7.run(scheduling.skip_cron(stage7.queue, member_of(one), 1002, 1003))
    kept = stage7.run(scheduling.history(stage7.queue, 0, 2000))
    assert len(kept) == 1000
    assert (kept[0].outcome, kept[-1].task_id) == ("skipped", "t2")
