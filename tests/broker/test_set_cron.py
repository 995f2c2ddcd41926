"""Set cron: entries are added, changed, paused and removed, by whoever saw them as they are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streamq.broker import scheduling, timetable
from streamq.codec import decode_cron, encode_cron
from streamq.errors import OptionError, OutOfMemory
from streamq.model.schedule import CronEntry
from tests.broker.driving import drive
from tests.broker.stage import Stage
from tests.broker.timetables import entry, fire, follow, make_due, next_of, put, stored

HOUR_MS = 3_600_000


def next_hour(stage: Stage) -> int:
    return (stage.now_ms() // HOUR_MS + 1) * HOUR_MS


def hourly_due(stage: Stage) -> set[int]:
    """The next full hour, should it just be passing."""
    before = next_hour(stage)
    return {before, before + HOUR_MS}


def test_an_entry_is_stored_with_its_next_tick_by_the_clock_of_redis(stage: Stage) -> None:
    made = entry()
    assert put(stage, made) == made
    assert stored(stage) == {"nightly": encode_cron(made)}
    assert next_of(stage)["nightly"] in hourly_due(stage)
    assert stage.redis.smembers(stage.keys.queues) == {b"default"}


def test_an_equal_entry_is_not_written_again(stage: Stage) -> None:
    """B26: two equal entries are one."""
    put(stage, entry())
    before = stage.dump()
    with stage.hearing(stage.queue.hints) as said:
        put(stage, entry())
    assert said == []
    assert stage.dump() == before


def test_workers_hear_of_a_change(stage: Stage) -> None:
    with stage.hearing(stage.queue.hints) as said:
        put(stage, entry())
        put(stage, entry("@daily"))
        drive(stage, timetable.discard(stage.queue, "nightly"))
    assert said == [b"due"] * 3


def test_a_change_of_the_call_alone_leaves_the_schedule_running(stage: Stage) -> None:
    """Also a tick that is late just now is not lost."""
    one = entry()
    put(stage, one)
    make_due(stage, one, 1000)
    changed = replace(one, message=b"other", schedule=replace(one.schedule, misfire="all"))
    put(stage, changed)
    assert next_of(stage) == {"nightly": 1000}
    assert decode_cron("nightly", "default", stored(stage)["nightly"]) == changed


def test_a_tick_of_the_old_schedule_never_fires_under_the_new(stage: Stage) -> None:
    """A scheduler that has read the old one comes too late, though the moment is the same."""
    old, new = entry("@hourly"), entry("0 * * * * 0")
    put(stage, old)
    make_due(stage, old, 1000)
    put(stage, new)
    make_due(stage, new, 1000)
    assert fire(stage, old, "a", 1000, None) == b"stale"
    assert fire(stage, new, "b", 1000, 5000) == b"ready"
    assert next_of(stage) == {"nightly": 5000}


def test_a_paused_entry_has_no_next_tick_until_it_is_resumed(stage: Stage) -> None:
    one = entry()
    put(stage, one)
    make_due(stage, one, 1000)
    put(stage, replace(one, paused=True))
    assert next_of(stage) == {}
    put(stage, replace(one, paused=True, message=b"other"))
    assert next_of(stage) == {}
    put(stage, one)
    assert next_of(stage)["nightly"] in hourly_due(stage)


def test_a_removed_entry_leaves_nothing(stage: Stage) -> None:
    """A139, B26: whatever was going to fire, does not."""
    one = entry()
    put(stage, one)
    put(stage, entry(id_="other"))
    make_due(stage, one, 1000)
    assert drive(stage, timetable.discard(stage.queue, "nightly"))
    assert set(stored(stage)) == set(next_of(stage)) == {"other"}
    assert fire(stage, one, "a", 1000, 2000) == b"stale"
    assert not drive(stage, timetable.discard(stage.queue, "nightly"))


def test_an_entry_that_cannot_be_read_can_be_removed(stage: Stage) -> None:
    stage.redis.hset(stage.queue.cron, "broken", b"0123abcd:\xff")
    stage.redis.zadd(stage.queue.cron_due, {"broken 0123abcd": 5})
    assert drive(stage, timetable.discard(stage.queue, "broken"))
    assert stage.redis.exists(stage.queue.cron, stage.queue.cron_due) == 0


def test_whoever_saw_another_entry_changes_nothing(stage: Stage) -> None:
    one = entry()
    put(stage, one)
    before = stage.dump()
    for expected in (b"", b"something else"):
        command = scheduling.set_cron(stage.queue, "nightly", expected, b"00:x", 77)
        assert stage.run(command) == b"changed"
        assert stage.run(scheduling.set_cron(stage.queue, "nightly", expected, b"", None)) == b"changed"
    assert stage.dump() == before


def test_a_change_that_meets_another_one_builds_on_it(stage: Stage) -> None:
    put(stage, entry())

    def pause(old: CronEntry | None) -> CronEntry:
        assert old is not None
        if not seen:
            put(stage, entry(message=b"newer"))
        seen.append(old.message)
        return replace(old, paused=True)

    seen: list[bytes] = []
    made = drive(stage, timetable.revise(stage.keys, stage.queue, "nightly", pause))
    assert made == entry(message=b"newer", paused=True)
    assert len(seen) == 2


def test_what_a_newer_version_added_is_kept(stage: Stage) -> None:
    put(stage, entry(more={"future": [1]}))
    drive(
        stage,
        timetable.revise(stage.keys, stage.queue, "nightly", lambda old: old and replace(old, paused=True)),
    )
    assert decode_cron("nightly", "default", stored(stage)["nightly"]).more == {"future": [1]}


@pytest.mark.parametrize("id_", ["a b", "a 0123abcd", "ü:1", "x" * 200])
def test_ids_may_look_like_anything(stage: Stage, id_: str) -> None:
    one = entry(id_=id_)
    put(stage, one)
    assert set(next_of(stage)) == {id_}
    make_due(stage, one, 1000)
    assert fire(stage, one, "t", 1000, None) == b"ready"
    [tick] = stage.run(scheduling.history(stage.queue, 0, 10))
    assert (tick.id, tick.task_id, tick.outcome) == (id_, "t", "ready")


def test_a_full_server_refuses_an_entry_and_lets_others_go(full: Stage) -> None:
    put(full, entry())
    before = full.dump()
    full.redis.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemory):
        put(full, entry("@daily"))
    assert full.dump() == before
    assert drive(full, timetable.discard(full.queue, "nightly"))
    full.redis.config_set("maxmemory", 0)


# Deploys


def test_a_deploy_adds_changes_and_removes_its_own(stage: Stage) -> None:
    """A144: remove one, add one, then none: the entries follow. A second worker finds nothing to do."""
    one, two, three = entry(id_="one"), entry(id_="two"), entry(id_="three")
    assert follow(stage, one, two) == (2, 0, [])
    assert follow(stage, one, two) == (0, 0, [])
    assert follow(stage, two, three) == (1, 1, [])
    assert set(stored(stage)) == set(next_of(stage)) == {"two", "three"}
    assert follow(stage, entry("@daily", "two"), three) == (1, 0, [])
    assert follow(stage) == (0, 2, [])
    assert stored(stage) == {}


def test_a_deploy_can_keep_what_its_code_no_longer_has(stage: Stage) -> None:
    follow(stage, entry(id_="one"))
    assert follow(stage, entry(id_="two"), gone="keep") == (1, 0, [])
    assert set(stored(stage)) == {"one", "two"}


def test_a_deploy_leaves_alone_what_is_not_its_own(stage: Stage) -> None:
    """Neither an entry of another app, nor one made by hand, nor one that cannot be read."""
    follow(stage, entry(id_="theirs"), owner="them")
    put(stage, entry(id_="by hand"))
    stage.redis.hset(stage.queue.cron, "broken", b"00:\xff")
    before = stage.dump()
    wished = [entry("@daily", id_) for id_ in ("theirs", "by hand", "broken")]
    written, removed, refused = follow(stage, *wished)
    assert (written, removed, refused) == (0, 0, ["theirs", "by hand", "broken"])
    assert stage.dump() == before


def test_a_deploy_leaves_a_pause_as_it_is(stage: Stage) -> None:
    follow(stage, entry())
    put(stage, entry(owner="app", paused=True))
    assert follow(stage, entry()) == (0, 0, [])
    assert follow(stage, entry("@daily")) == (1, 0, [])
    assert decode_cron("nightly", "default", stored(stage)["nightly"]).paused
    assert next_of(stage) == {}


def test_a_deploy_keeps_a_late_tick_unless_the_schedule_changed(stage: Stage) -> None:
    follow(stage, entry())
    make_due(stage, entry(), 1000)
    follow(stage, entry(message=b"other"))
    assert next_of(stage) == {"nightly": 1000}
    follow(stage, entry("@daily"))
    assert next_of(stage)["nightly"] > stage.now_ms()


def test_a_deploy_gives_an_entry_the_next_tick_that_somebody_lost(stage: Stage) -> None:
    follow(stage, entry())
    stage.redis.delete(stage.queue.cron_due)
    assert follow(stage, entry()) == (1, 0, [])
    assert next_of(stage)["nightly"] in hourly_due(stage)


def test_an_entry_whose_last_tick_is_over_is_not_written_again(stage: Stage) -> None:
    over = entry(end=datetime(2020, 1, 1, tzinfo=UTC))
    assert follow(stage, over) == (1, 0, [])
    assert follow(stage, over) == (0, 0, [])
    assert next_of(stage) == {}


def test_an_entry_that_moved_to_another_queue_leaves_the_old_one(stage: Stage) -> None:
    follow(stage, entry())
    other = stage.beside("other")
    names = ["default", "other"]
    moved = entry(queue="other")
    assert drive(stage, timetable.follow(stage.keys, names, "app", [moved], "app".__eq__)) == (1, 1, [])
    assert stored(stage) == {}
    assert set(stored(other)) == {"nightly"}


def test_nothing_is_removed_in_a_queue_that_is_not_served(stage: Stage) -> None:
    """An entry of the code may go into any queue; who serves that one may have other code."""
    other = stage.beside("other")
    put(other, entry(id_="old", queue="other", owner="app"))
    wished = [entry(queue="other")]
    steps = timetable.follow(stage.keys, ["default"], "app", wished, "app".__eq__)
    assert drive(stage, steps) == (1, 0, [])
    assert set(stored(other)) == {"nightly", "old"}


# Listing


def test_a_listing_tells_each_entry_and_when_it_is_next(stage: Stage) -> None:
    """A120: what there is, with its next tick; what cannot be read is left out."""
    put(stage, entry(id_="b", tz="Europe/Berlin", jitter=5, misfire="all"))
    put(stage, entry(id_="a", paused=True))
    stage.redis.hset(stage.queue.cron, "broken", b"00:\xff")
    first, second = drive(stage, timetable.listing(stage.queue))
    assert (first.id, first.paused, first.next_at) == ("a", True, None)
    assert (second.id, second.tz, second.type, second.misfire) == ("b", "Europe/Berlin", "report", "all")
    assert second.jitter.total_seconds() == 5
    assert second.next_at is not None
    assert second.next_at.timestamp() * 1000 == next_of(stage)["b"]


def test_listing_a_queue_without_entries_takes_one_command(stage: Stage) -> None:
    steps = timetable.listing(stage.queue)
    reply = stage.run(next(steps))
    with pytest.raises(StopIteration) as done:
        steps.send(reply)
    assert done.value.value == []


def test_an_unknown_zone_is_refused_before_anything_is_stored(stage: Stage) -> None:
    broken = replace(entry(), schedule=replace(entry().schedule, tz="Nowhere/Land"))
    with pytest.raises(OptionError, match="tz"):
        put(stage, broken)
    assert stored(stage) == {}
