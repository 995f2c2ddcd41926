"""Forward: tasks whose time has come by Redis's clock move into their lanes."""

from __future__ import annotations

import pytest

from streamq.broker.moving import FORWARD_PAGE
from streamq.model.lanes import Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.broker import groups
from tests.broker.stage import LONG_MS, Stage


def make_due(stage: Stage, zset: bytes, *ids: str) -> None:
    for id_ in ids:
        stage.redis.zadd(zset, {id_: 1}, xx=True)


def test_only_what_is_due_moves(stage: Stage) -> None:
    """A83: scheduled and retry, past and future, each into its own lane, in the order of their times."""
    stage.retry(*stage.started("r-due", "r-later"))
    stage.enqueue("s-later", delay_ms=LONG_MS)
    stage.enqueue("high", lane=Lane.HIGH, delay_ms=LONG_MS)
    stage.enqueue("low", lane=Lane.LOW, delay_ms=LONG_MS)
    make_due(stage, stage.queue.scheduled, "high", "low")
    make_due(stage, stage.queue.retry, "r-due")
    found = stage.forward()
    assert (found.moved, found.orphans, found.paused) == (3, 0, 0)
    assert 0 < found.next_ms <= LONG_MS
    assert [stage.ids(lane) for lane in (Lane.HIGH, Lane.NORMAL, Lane.LOW)] == [["high"], ["r-due"], ["low"]]
    assert stage.find("high").state is State.READY
    assert stage.find("high").message_bytes == b"m-high"
    assert list(stage.members(stage.queue.scheduled)) == ["s-later"]
    assert list(stage.members(stage.queue.retry)) == ["r-later"]


def test_another_queue_is_not_touched(stage: Stage) -> None:
    """A83."""
    other = stage.beside("other")
    other.enqueue("a", delay_ms=LONG_MS)
    make_due(other, other.queue.scheduled, "a")
    assert stage.forward().moved == 0
    assert other.forward().moved == 1
    other.check()


def test_the_due_time_decides_the_order(stage: Stage) -> None:
    for id_, due in (("second", 20), ("third", 30), ("first", 10)):
        stage.enqueue(id_, delay_ms=LONG_MS)
        stage.redis.zadd(stage.queue.scheduled, {id_: due})
    stage.forward()
    assert stage.ids(Lane.NORMAL) == ["first", "second", "third"]


def test_a_task_is_never_early(stage: Stage) -> None:
    """B21: what forward says it moved was due by the server's clock, to the millisecond."""
    stage.enqueue("a", delay_ms=250)
    due = stage.members(stage.queue.scheduled)["a"]
    while not stage.forward().moved:
        assert stage.now_ms() <= due + 5_000
    assert stage.now_ms() >= due
    [(entry_id, _)] = stage.redis.xrange(stage.queue.lanes[Lane.NORMAL])
    assert int(entry_id.split(b"-")[0]) >= due


def test_the_wait_until_the_next_due_task_is_told(stage: Stage) -> None:
    """The sooner of scheduled and retry; a forwarder that sleeps so long misses nothing."""
    assert stage.forward().next_ms == -1
    stage.enqueue("a", delay_ms=LONG_MS)
    stage.retry(*stage.started("b"), delay_ms=60_000)
    before = stage.now_ms()
    due = stage.members(stage.queue.retry)["b"]
    next_ms = stage.forward().next_ms
    assert due - stage.now_ms() <= next_ms <= due - before


def test_at_most_a_page_moves_and_the_rest_follows_at_once(stage: Stage) -> None:
    ids = [f"t{i:03}" for i in range(FORWARD_PAGE)]
    for turn in range(2):
        stage.enqueue(*(f"{turn}{id_}" for id_ in ids), delay_ms=LONG_MS)
    names = list(stage.members(stage.queue.scheduled))
    stage.redis.zadd(stage.queue.scheduled, {name: place + 1 for place, name in enumerate(sorted(names))})
    found = stage.forward()
    assert (found.moved, found.next_ms) == (FORWARD_PAGE, 0)
    found = stage.forward()
    assert (found.moved, found.next_ms) == (FORWARD_PAGE, -1)
    assert stage.ids(Lane.NORMAL) == sorted(names)


@pytest.mark.parametrize("zset", ["scheduled", "retry"])
def test_an_id_without_a_body_is_dropped_and_counted(stage: Stage, zset: str) -> None:
    """B3: somebody deleted the body; the id must not be looked at for ever, nor hold up others."""
    stage.enqueue("good", delay_ms=LONG_MS)
    make_due(stage, stage.queue.scheduled, "good")
    stage.redis.zadd(getattr(stage.queue, zset), {"orphan": 1})
    found = stage.forward()
    assert (found.moved, found.orphans, found.next_ms) == (1, 1, -1)
    assert stage.find("orphan").state is None
    assert stage.forward().orphans == 0
    assert stage.counters() == {"vanished": 1}


@pytest.mark.parametrize("value", [b"", b"garbage", b":", b"n:x", b"5n:x", b"x0:x", b"f0:x"])
@pytest.mark.parametrize("zset", ["scheduled", "retry"])
def test_a_body_that_makes_no_sense_is_archived_with_its_bytes(stage: Stage, zset: str, value: bytes) -> None:
    """B2: among due tasks; the others become ready."""
    stage.enqueue("a", "b", delay_ms=LONG_MS)
    make_due(stage, stage.queue.scheduled, "a", "b")
    stage.redis.zadd(getattr(stage.queue, zset), {"odd": 1})
    stage.redis.hset(stage.queue.parked, "odd", value)
    found = stage.forward()
    assert (found.moved, found.orphans, found.unreadable, found.next_ms) == (2, 0, 1, -1)
    body = stage.body("odd")
    assert body is not None
    assert (body.reason, body.message) == (Reason.UNDECODABLE, value)
    assert stage.find("odd").state is State.ARCHIVED
    assert stage.counters() == {"quarantined": 1}
    assert stage.ids(Lane.NORMAL) == ["a", "b"]


def test_a_task_of_a_paused_queue_becomes_ready_and_the_pause_is_told(stage: Stage) -> None:
    """A47: a pause holds delivery, not time; whoever forwards sees that nothing will be read."""
    stage.enqueue("a", delay_ms=LONG_MS)
    make_due(stage, stage.queue.scheduled, "a")
    stage.pause()
    found = stage.forward()
    assert (found.moved, found.paused) == (1, 1)
    stage.resume()
    assert stage.forward().paused == 0


def test_crashes_go_along(stage: Stage) -> None:
    """A70: the crash limit counts over waits in retry."""
    stage.enqueue("a")
    for worker in ("w1", "w2"):
        [entry] = stage.fetch(worker)
        stage.recover(entry.lane, dead=worker)
    make_due(stage, stage.queue.retry, "a")
    assert stage.forward().moved == 1
    [entry] = stage.fetch("w3")
    assert (entry.crashes, entry.lane, entry.home, entry.message) == (2, Lane.NORMAL, Lane.NORMAL, b"m-a")


def test_a_message_with_any_bytes_comes_through(stage: Stage) -> None:
    """The slip before the first colon is the scripts'; colons and zeros after it are the message's."""
    message = b"::\x00!:" + bytes(range(256))
    stage.enqueue("a", delay_ms=LONG_MS, message=message)
    make_due(stage, stage.queue.scheduled, "a")
    stage.forward()
    assert stage.fetch()[0].message == message


def test_an_empty_queue_forwards_nothing_and_makes_no_key(stage: Stage) -> None:
    assert stage.forward() == (0, 0, -1, 0, 0, -1, -1)
    assert stage.all_keys() == []


def test_due_tasks_move_when_memory_is_full(full: Stage) -> None:
    """A server filled with scheduled tasks drains by running them, and they must become ready for that."""
    full.retry(*full.started("retry"), delay_ms=0)
    full.enqueue("scheduled", delay_ms=LONG_MS)
    make_due(full, full.queue.scheduled, "scheduled")
    full.until(lambda: full.now_ms() > full.members(full.queue.retry)["retry"])
    full.redis.config_set("maxmemory", 1)
    assert full.forward().moved == 2
    full.redis.config_set("maxmemory", 0)
    assert sorted(full.ids(Lane.NORMAL)) == ["retry", "scheduled"]


def test_a_due_task_with_a_group_joins_it(stage: Stage) -> None:
    """A84, B12: as one that comes now; it does not run alone."""
    groups.join(stage, "early")
    groups.join(stage, "a", "b", delay_ms=LONG_MS, grace_ms=60_000)
    stage.enqueue("plain", delay_ms=LONG_MS)
    assert stage.find("a").group == "g"
    make_due(stage, stage.queue.scheduled, "a", "b", "plain")
    before = stage.now_ms()
    found = stage.forward()
    assert (found.moved, found.orphans, found.next_ms) == (3, 0, -1)
    assert 0 < found.batch_ms <= 60_000
    assert stage.ids(Lane.NORMAL) == ["plain"]
    assert groups.waiting(stage) == ["early", "a", "b"]
    task = stage.find("a")
    assert (task.state, task.group, task.message_bytes) == (State.AGGREGATING, "g", b"m-a")
    assert before + 60_000 <= (task.time_ms or 0) <= stage.now_ms() + 60_000
    groups.make_due(stage)
    assert groups.flush(stage).members == 3


def test_a_group_that_is_full_by_a_due_task_is_due(stage: Stage) -> None:
    """A84."""
    groups.join(stage, "a", max_size=2)
    groups.join(stage, "b", delay_ms=LONG_MS, max_size=2)
    make_due(stage, stage.queue.scheduled, "b")
    assert stage.forward().batch_ms == 0


def test_a_due_task_joins_a_group_that_has_waited_long_enough(stage: Stage) -> None:
    """A84, A91: the longest delay counts from the oldest member."""
    groups.join(stage, "a")
    groups.join(stage, "b", delay_ms=LONG_MS, max_delay_ms=60_000)
    make_due(stage, stage.queue.scheduled, "b")
    assert 50_000 < stage.forward().batch_ms <= 60_000


@pytest.mark.parametrize("scheduled_ms, retry_ms", [(60_000, LONG_MS), (LONG_MS, 60_000)])
def test_the_next_is_the_first_of_what_is_scheduled_and_what_is_tried_again(
    stage: Stage, scheduled_ms: int, retry_ms: int
) -> None:
    stage.retry(*stage.started("retry"), delay_ms=retry_ms)
    stage.enqueue("scheduled", delay_ms=scheduled_ms)
    assert 50_000 < stage.forward().next_ms <= 60_000


def test_a_due_task_with_a_group_that_has_no_body_is_dropped(stage: Stage) -> None:
    groups.join(stage, "a", delay_ms=LONG_MS)
    make_due(stage, stage.queue.scheduled, "a")
    stage.redis.hdel(stage.queue.parked, "a")
    assert stage.forward().orphans == 1
    assert stage.redis.exists(stage.queue.grouped, stage.queue.groups) == 0


def test_the_next_batch_and_the_next_tick_are_told(stage: Stage) -> None:
    assert stage.forward()[-2:] == (-1, -1)
    groups.join(stage, "a")
    stage.redis.zadd(stage.queue.cron_due, {"nightly": stage.now_ms() + 60_000})
    found = stage.forward()
    assert LONG_MS - 10_000 < found.batch_ms <= LONG_MS
    assert 50_000 < found.tick_ms <= 60_000
    groups.make_due(stage)
    stage.redis.zadd(stage.queue.cron_due, {"nightly": 1})
    assert stage.forward()[-2:] == (0, 0)
