"""Flush: the oldest members of a due group become one task, in one step."""

from __future__ import annotations

import pytest

from streamq.broker.grouping import MAX_BATCH_BYTES
from streamq.model.groups import MAX_BATCH_SIZE
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.groups import (
    batched,
    due_in,
    flush,
    join,
    key,
    make_due,
    members_of,
    message_of,
    nothing_waits,
    waiting,
)
from tests.broker.stage import LONG_MS, Stage


def test_a_group_that_is_due_becomes_one_task(stage: Stage) -> None:
    """A90: three members, in the order in which they came; its message is like that of any task."""
    join(stage, "c", "a", "b")
    found = flush(stage)
    assert found[:3] == (0, 0, 0)
    assert LONG_MS - 10_000 < found.next_ms <= LONG_MS
    make_due(stage)
    before = stage.now_ms()
    assert flush(stage) == (1, 3, 0, -1)
    assert nothing_waits(stage)
    message = message_of(stage)
    assert (message.type, message.group, message.retried) == ("t", "g", 0)
    assert message.enqueued_ms is not None
    assert before <= message.enqueued_ms <= stage.now_ms()
    assert list(members_of(stage).items()) == [("c", b"m-c"), ("a", b"m-a"), ("b", b"m-b")]
    assert stage.ids(Lane.NORMAL) == ["batch"]
    assert stage.find("batch").state is State.READY


def test_members_point_to_their_batch(stage: Stage) -> None:
    batched(stage, "a", "b")
    found = stage.find("a")
    assert (found.state, found.batch) == (State.READY, "batch")
    [entry] = stage.fetch()
    assert stage.find("b").state is State.ACTIVE
    stage.retain(entry)
    assert (stage.find("a").state, stage.find("a").message_bytes) == (State.COMPLETED, b"done")


def test_a_member_of_a_batch_that_is_gone_is_missing(stage: Stage) -> None:
    batched(stage, "a")
    stage.complete(*stage.fetch())
    assert stage.find("a").state is None
    assert not stage.find("a").orphan


def test_a_full_group_is_flushed_without_waiting(stage: Stage) -> None:
    """A92."""
    join(stage, "a", "b", "c", "d", max_size=5)
    assert flush(stage).batches == 0
    join(stage, "e", max_size=5)
    assert flush(stage).members == 5


def test_what_is_over_the_size_stays(stage: Stage) -> None:
    """A93: the five oldest go, one stays, the group stays listed, due by its own rule."""
    join(stage, *"abcdef", max_size=5, grace_ms=60_000)
    found = flush(stage, "one", "two")
    assert (found.batches, found.members) == (1, 5)
    assert list(members_of(stage, "one")) == list("abcde")
    assert waiting(stage) == ["f"]
    assert 50_000 < due_in(stage) <= 60_000
    assert 50_000 < found.next_ms <= 60_000


def test_a_rest_that_is_full_again_is_due_at_once(stage: Stage) -> None:
    join(stage, *"abcdefg", max_size=3)
    assert flush(stage, "one").next_ms == 0
    assert flush(stage, "two").members == 3
    assert flush(stage, "three").batches == 0
    assert waiting(stage) == ["g"]


def test_the_longest_delay_counts_from_the_oldest_that_stays(stage: Stage) -> None:
    """A91."""
    join(stage, "a", "b", max_size=2, max_delay_ms=30_000)
    join(stage, "c", max_size=2, max_delay_ms=30_000)
    flush(stage)
    assert waiting(stage) == ["c"]
    assert 20_000 < due_in(stage) <= 30_000


def test_limits_of_zero_are_none(stage: Stage) -> None:
    """A95."""
    join(stage, *(f"m{number}" for number in range(200)), max_size=0, max_delay_ms=0)
    assert due_in(stage) > LONG_MS - 10_000
    make_due(stage)
    assert flush(stage).members == 200


def test_a_batch_is_bounded_whatever_the_rule_says(stage: Stage) -> None:
    """A95: what is left of a group that has fallen quiet is due at once."""
    ids = [f"m{number:04}" for number in range(MAX_BATCH_SIZE + 1)]
    for start in range(0, len(ids), 250):
        join(stage, *ids[start : start + 250], grace_ms=0)
    assert flush(stage, "one")[:2] == (1, MAX_BATCH_SIZE)
    assert flush(stage, "two") == (1, 1, 0, -1)
    assert [*members_of(stage, "one"), *members_of(stage, "two")] == ids


def test_a_batch_has_a_megabyte_at_most_or_one_member(stage7: Stage) -> None:
    large, huge = b"x" * (MAX_BATCH_BYTES // 2), b"y" * (2 * MAX_BATCH_BYTES)
    for id_, message in (("a", large), ("b", large), ("c", large), ("d", huge), ("e", b"small")):
        join(stage7, id_, message=message, grace_ms=0)
    batches = ["one", "two", "three", "four"]
    assert [flush(stage7, batch).members for batch in batches] == [2, 1, 1, 1]
    assert [list(members_of(stage7, batch)) for batch in batches] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert members_of(stage7, "three") == {"d": huge}


def test_a_call_makes_a_batch_of_each_due_group_for_which_it_has_an_id(stage: Stage) -> None:
    for group in ("x", "y", "z"):
        join(stage, group, group=group)
        make_due(stage, group)
    join(stage, "later", group="later")
    assert flush(stage, "one", "two")[:2] == (2, 2)
    found = flush(stage, "three", "four")
    assert (found.batches, found.members) == (1, 1)
    assert LONG_MS - 10_000 < found.next_ms <= LONG_MS
    assert stage.find("four").state is None
    assert sorted(stage.ids(Lane.NORMAL)) == ["one", "three", "two"]


def test_a_call_ends_when_it_has_moved_enough(stage7: Stage) -> None:
    """However many groups are due: a huge one leaves the others to the next call, which is due at once."""
    for group in ("x", "y", "z"):
        join(stage7, group, group=group, message=b"x" * (2 * MAX_BATCH_BYTES // 3))
        make_due(stage7, group)
    assert flush(stage7, "one", "two", "three") == (2, 2, 0, 0)
    assert flush(stage7, "three") == (1, 1, 0, -1)


def test_groups_of_one_name_are_apart_by_task_and_by_name(stage: Stage) -> None:
    """Also where one name begins with the other."""
    for group, task_type in (("g", "t"), ("g", "t2"), ("g2", "t"), ("g\N{SNOWMAN}", "t")):
        join(stage, f"{task_type}-{group}", group=group, task_type=task_type)
    make_due(stage)
    assert flush(stage).members == 1
    assert list(members_of(stage)) == ["t-g"]
    make_due(stage, "g\N{SNOWMAN}")
    assert flush(stage, "other").members == 1
    assert message_of(stage, "other").group == "g\N{SNOWMAN}"


def test_the_batch_goes_into_the_lane_of_its_oldest_member(stage: Stage) -> None:
    join(stage, "a", lane=Lane.LOW)
    join(stage, "b", lane=Lane.HIGH)
    make_due(stage)
    flush(stage)
    assert stage.ids(Lane.LOW) == ["batch"]


def test_a_group_without_members_is_none(stage: Stage) -> None:
    """A94, A96: its name goes, and no batch is made."""
    stage.redis.zadd(stage.queue.groups, {key(): 1})
    assert flush(stage) == (0, 0, 0, -1)
    assert stage.all_keys() == []


def test_nothing_happens_without_groups(stage: Stage) -> None:
    """A94."""
    assert flush(stage) == (0, 0, 0, -1)
    assert stage.all_keys() == []


def test_a_flush_that_is_sent_twice_makes_no_second_batch(stage: Stage) -> None:
    """B14: the members left the group in the step that made the batch; there is nothing to clean up."""
    join(stage, "a", "b")
    make_due(stage)
    flush(stage, "one")
    before = stage.dump()
    assert flush(stage, "two").batches == 0
    assert stage.dump() == before


def test_a_member_without_a_body_is_dropped_and_counted(stage: Stage) -> None:
    """B3."""
    join(stage, "a", "b")
    stage.redis.hdel(stage.queue.parked, "a")
    make_due(stage)
    assert flush(stage) == (1, 1, 1, -1)
    assert list(members_of(stage)) == ["b"]
    assert stage.redis.hget(stage.queue.grouped, "a") is None


def test_names_that_make_no_sense_are_dropped_and_hold_nobody_up(stage: Stage) -> None:
    """B3: somebody else wrote them."""
    join(stage, "a")
    make_due(stage)
    for name in (f"{key()}\0junk", f"{key()}\0", f"{key()}\0999\0", "no type\0" + "1" * 16 + "\0b"):
        stage.redis.zadd(stage.queue.aggregating, {name: 0})
    stage.redis.zadd(stage.queue.groups, {"no type": 1})
    stage.redis.hset(stage.queue.parked, "b", b"n0:m-b")
    found = flush(stage, "one", "two")
    assert (found.batches, found.members, found.orphans, found.next_ms) == (2, 2, 3, -1)
    kept = {**members_of(stage, "one"), **members_of(stage, "two")}
    assert kept == {"a": b"m-a", "b": b"m-b"}


def test_a_body_that_makes_no_sense_goes_along_whole(stage: Stage) -> None:
    """The worker that cannot read it keeps it."""
    join(stage, "a", "b")
    stage.redis.hset(stage.queue.parked, "a", b"?\x00:nonsense")
    make_due(stage)
    assert flush(stage).members == 2
    assert members_of(stage) == {"a": b"?\x00:nonsense", "b": b"m-b"}


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536, 70_000])
def test_messages_of_any_length_come_through(stage7: Stage, size: int) -> None:
    """The heads of CBOR change at these lengths."""
    message = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    join(stage7, "a" * min(size, 200) or "b", message=message or b"?")
    make_due(stage7)
    flush(stage7)
    assert list(members_of(stage7).values()) == [message or b"?"]


def test_names_of_any_length_come_through(stage7: Stage) -> None:
    names = ["x" * length for length in (1, 23, 24, 200)]
    for name in names:
        batched(stage7, f"m{name}", batch=f"b{name}", group=name)
        assert message_of(stage7, f"b{name}").group == name


def test_who_waits_for_a_member_is_told_to_look(stage: Stage) -> None:
    join(stage, "a")
    make_due(stage)
    with stage.hearing(stage.queue.done("a").decode()) as said:
        flush(stage)
    assert said == [b"batched"]


def test_groups_drain_when_memory_is_full(full: Stage) -> None:
    """Members alone may fill a server, and room is made only by running them."""
    join(full, "a", "b")
    make_due(full)
    full.redis.config_set("maxmemory", 1)
    assert flush(full).members == 2
    full.redis.config_set("maxmemory", 0)
    assert list(members_of(full)) == ["a", "b"]


def test_a_batch_lives_like_any_task(stage: Stage) -> None:
    """B13: it is recovered from a worker that died, released, retried, archived, with all members."""
    batched(stage, "a", "b")
    first = members_of(stage)
    [entry] = stage.fetch("dead")
    stage.recover(entry.lane, dead="dead")
    assert members_of(stage) == first
    [entry] = stage.fetch("w2")
    assert (entry.lane, entry.crashes) == (Lane.FRONT, 1)
    assert stage.release(entry) == [b"ok"]
    [entry] = stage.fetch("w3")
    message = entry.message
    assert stage.retry(entry, delay_ms=0, message=message) == [b"ok"]
    assert stage.find("a").state is State.RETRY
    stage.until(lambda: stage.forward().moved)
    assert members_of(stage) == first
    [entry] = stage.fetch("w4")
    assert stage.archive(entry, message=message) == [b"ok"]
    assert stage.find("b").state is State.ARCHIVED
    assert members_of(stage) == first
