"""Forget: consumers that left, and producers that are silent, in forget_consumer and forget_producers."""

from __future__ import annotations

import pytest

from streamq.broker import moving
from streamq.broker.producing import how
from streamq.errors import SequenceConflict
from streamq.model.lanes import Lane
from tests.broker.stage import Stage

DAY_MS = 86_400_000


def names(stage: Stage) -> list[str]:
    consumers = stage.run(moving.consumers(stage.queue.lanes[Lane.NORMAL]))
    return sorted(consumers)


def forget(stage: Stage, consumer: str) -> bytes:
    return stage.run(moving.forget_consumer(stage.queue.lanes[Lane.NORMAL], consumer))


def test_a_consumer_that_owns_nothing_is_forgotten(stage: Stage) -> None:
    stage.complete(*stage.started("a", consumer="gone"))
    stage.complete(*stage.started("b", consumer="other"))
    assert names(stage) == ["gone", "other"]
    assert forget(stage, "gone") == b"ok"
    assert names(stage) == ["other"]
    assert forget(stage, "gone") == b"ok", "asking twice is harmless"


def test_a_consumer_that_owns_entries_stays(stage: Stage) -> None:
    """Its entries would be lost with it: Redis drops them from the group without a word."""
    [entry] = stage.started("a", consumer="busy")
    before = stage.dump()
    assert forget(stage, "busy") == b"busy"
    assert stage.dump() == before
    assert stage.complete(entry) == [b"ok"]
    assert forget(stage, "busy") == b"ok"


def test_a_lane_without_a_group_has_no_consumer(stage: Stage) -> None:
    assert forget(stage, "nobody") == b"missing"
    stage.enqueue("a")
    assert forget(stage, "nobody") == b"missing"


def test_a_recovered_consumer_can_be_forgotten_and_its_tasks_live(stage: Stage) -> None:
    stage.started("a", "b", consumer="dead")
    assert forget(stage, "dead") == b"busy"
    stage.recover(dead="dead")
    assert forget(stage, "dead") == b"ok"
    assert stage.ids(Lane.FRONT) == ["a", "b"]


def sweep(stage: Stage, silence_ms: int) -> int:
    cursor, total = b"0", 0
    while True:
        cursor, forgotten = stage.run(moving.forget_producers(stage.queue, silence_ms, cursor))
        total += forgotten
        if cursor == b"0":
            return total


def test_only_silent_producers_are_forgotten(stage: Stage) -> None:
    stage.send(1, (how(Lane.NORMAL), "a", b"m"), producer="silent")
    stage.send(5, (how(Lane.NORMAL), "b", b"m"), producer="busy")
    assert sweep(stage, DAY_MS) == 0
    said = stage.redis.hget(stage.queue.producers, "silent").split(b" ")
    said[1] = str(int(said[1]) - 2 * DAY_MS).encode()
    stage.redis.hset(stage.queue.producers, "silent", b" ".join(said))
    assert sweep(stage, DAY_MS) == 1
    assert stage.redis.hkeys(stage.queue.producers) == [b"busy"]
    with pytest.raises(SequenceConflict):
        stage.send(5, (how(Lane.NORMAL), "c", b"m"), producer="busy")


def test_a_thousand_producers_are_searched_in_pages(stage: Stage) -> None:
    old = {f"p{i}": f"1 1 t{i} ready" for i in range(1000)}
    stage.redis.hset(stage.queue.producers, mapping=old)
    stage.send(1, (how(Lane.NORMAL), "a", b"m"), producer="busy")
    cursor, forgotten = stage.run(moving.forget_producers(stage.queue, DAY_MS))
    assert 0 < forgotten < 1000, "one call looks at about a hundred"
    assert forgotten + sweep(stage, DAY_MS) == 1000
    assert cursor != b"0"
    assert stage.redis.hkeys(stage.queue.producers) == [b"busy"]


def test_a_record_that_is_not_ours_is_left_alone(stage: Stage) -> None:
    stage.redis.hset(stage.queue.producers, "odd", "garbage")
    assert sweep(stage, 0) == 0
    assert stage.redis.hkeys(stage.queue.producers) == [b"odd"]
