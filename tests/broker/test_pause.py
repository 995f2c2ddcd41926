"""Pause and resume: Redis itself hands nothing out, and workers hear of it at once."""

from __future__ import annotations

import threading
from typing import Any

import redis

from streamq.broker import inspecting, working
from streamq.model.lanes import LANES, Lane
from tests.broker.stage import LONG_MS, Stage


def test_a_queue_is_paused_once_and_resumed_once(stage: Stage) -> None:
    """A49: the second time it says that nothing changed."""
    assert stage.resume() == b"already"
    assert stage.pause() == b"ok"
    assert stage.pause() == b"already"
    assert stage.run(inspecting.is_paused(stage.queue))
    assert stage.resume() == b"ok"
    assert stage.resume() == b"already"
    assert not stage.run(inspecting.is_paused(stage.queue))


def test_a_pause_belongs_to_one_queue(stage: Stage) -> None:
    """A47: others go on; A48: each may be paused."""
    other = stage.beside("other")
    stage.pause()
    assert not stage.run(inspecting.is_paused(other.queue))
    assert other.pause() == b"ok"
    other.resume()
    assert stage.run(inspecting.is_paused(stage.queue))


def test_workers_are_told_only_of_changes(stage: Stage) -> None:
    with stage.hearing(stage.queue.hints) as said:
        for step in (stage.pause, stage.pause, stage.resume, stage.resume):
            step()
    assert said == [b"pause", b"resume"]


def test_another_group_that_reads_a_lane_does_not_tell_where_to_go_on(stage: Stage) -> None:
    """A monitor's, say. And nothing of the pause is left behind."""
    stage.enqueue("a", "b")
    stage.fetch(count=1)
    stage.redis.xgroup_create(stage.queue.lanes[Lane.NORMAL], "a monitor", "$")
    before = stage.redis.hkeys(stage.queue.config)
    stage.pause()
    stage.resume()
    assert [entry.task_id for entry in stage.fetch()] == [b"b"]
    assert stage.redis.hkeys(stage.queue.config) == before


def test_producers_go_on_while_a_queue_is_paused(stage: Stage) -> None:
    """A47: a pause holds delivery, not intake; and removing nothing of the queue's other settings."""
    stage.pause()
    assert stage.enqueue("a") == [b"ready"]
    assert not stage.run(inspecting.is_paused(stage.beside("other").queue))
    assert stage.run(inspecting.is_paused(stage.queue))


# Nothing is handed out


class BlockedReader(threading.Thread):
    """Someone who waits in Redis for entries of any lane, as workers do."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._client: Any = redis.Redis(unix_socket_path=str(stage.server.socket_path), protocol=2)
        self._words = working.read(list(stage.queue.lanes.items()), "blocked", 10, block_ms=20_000).args
        self._stage = stage
        self.id = self._client.client_id()
        self.got: Any = "nothing yet"
        self.start()
        stage.until(lambda: any(row["id"] == str(self.id) and "b" in row["flags"] for row in self._clients()))

    def run(self) -> None:
        self.got = self._client.execute_command(*self._words)

    def give_up(self) -> None:
        self._stage.redis.client_unblock(self.id)
        self.join(20)
        self._client.close()

    def _clients(self) -> list[dict[str, str]]:
        return self._stage.redis.client_list()  # type: ignore[no-any-return]


def test_redis_hands_out_nothing_of_a_paused_queue_whoever_reads(stage: Stage) -> None:
    """A47: of no lane, also of those that nobody has read yet, and to no worker that starts meanwhile."""
    stage.enqueue("a", lane=Lane.HIGH)
    stage.pause()
    stage.enqueue("b", lane=Lane.NORMAL)
    stage.enqueue("c", lane=Lane.LOW)
    assert stage.fetch("w1") == stage.fetch("w2") == []
    stage.resume()
    assert [entry.task_id for entry in stage.fetch("w1")] == [b"a", b"b", b"c"]
    assert stage.fetch("w2") == []


def test_who_waits_in_redis_already_gets_nothing_either(stage: Stage) -> None:
    """A47"""
    stage.fetch()  # makes the groups
    reader = BlockedReader(stage)
    stage.pause()
    stage.enqueue("a")
    stage.enqueue("b", lane=Lane.HIGH)
    reader.give_up()
    assert not reader.got
    stage.resume()
    assert [entry.task_id for entry in stage.fetch()] == [b"b", b"a"]


def test_resuming_hands_everything_out_once_and_in_order(stage: Stage) -> None:
    """A48: what was active stays with its worker; what came before and during the pause comes then."""
    [held] = stage.started("held")
    stage.enqueue("before")
    stage.pause()
    stage.enqueue("during-1", "during-2")
    stage.resume()
    stage.enqueue("after")
    found = stage.fetch("w2")
    assert [entry.task_id for entry in found] == [b"before", b"during-1", b"during-2", b"after"]
    assert stage.fetch("w2") == []
    assert stage.complete(held, *found) == [b"ok"] * 5


def test_what_is_given_back_recovered_or_due_in_a_pause_comes_after_it(stage: Stage) -> None:
    """A47: tasks go on moving, but not to a worker."""
    released, crashed, retried = stage.started("released", "crashed", "retried")
    stage.enqueue("scheduled", delay_ms=1)
    stage.pause()
    stage.release(released)
    stage.let_idle(crashed)
    assert stage.recover(lease_ms=30_000).front == 1
    assert stage.retry(retried, delay_ms=0) == [b"ok"]
    stage.until(lambda: stage.forward().next_ms == -1)
    assert stage.fetch() == []
    assert stage.active() == []
    stage.resume()
    found = stage.fetch()
    assert [entry.task_id for entry in found[:2]] == [b"released", b"crashed"]
    assert sorted(entry.task_id for entry in found[2:]) == [b"retried", b"scheduled"]
    for lane in LANES:
        stage.recover(lane, lease_ms=LONG_MS)


def test_leases_are_renewed_and_tasks_settled_in_a_pause(stage: Stage) -> None:
    """The group's place is moved by neither: what comes later stays where it is."""
    first, second = stage.started("a", "b")
    stage.pause()
    kept = stage.run(working.extend(stage.queue.lanes[Lane.NORMAL], "w1", [first.entry_id, second.entry_id]))
    assert kept == {first.entry_id, second.entry_id}
    assert stage.complete(first) == [b"ok"]
    stage.enqueue("c")
    assert stage.fetch() == []
    stage.resume()
    [third] = stage.fetch()
    assert third.task_id == b"c"
    assert stage.active() == [second.entry_id, third.entry_id]


def test_a_pause_is_part_of_what_redis_saves(stage: Stage) -> None:
    """A restart or a failover resumes nothing."""
    stage.enqueue("a", "b")
    [entry] = stage.fetch(count=1)
    stage.pause()
    for key in stage.queue.lanes.values():
        saved = stage.redis.dump(key)
        stage.redis.delete(key)
        stage.redis.restore(key, 0, saved)
    assert stage.fetch() == []
    stage.resume()
    assert [found.task_id for found in stage.fetch()] == [b"b"]
    assert stage.complete(entry) == [b"ok"]


def test_a_pause_whose_notes_are_lost_still_ends(stage: Stage) -> None:
    """What is active stays where it is, and what is ready is handed out once."""
    [entry] = stage.started("a")
    stage.enqueue("b")
    stage.pause()
    stage.redis.delete(stage.queue.config)
    assert stage.pause() == b"ok"
    assert stage.resume() == b"ok"
    assert [found.task_id for found in stage.fetch("w2")] == [b"b"]
    assert stage.complete(entry) == [b"ok"]


def test_a_lane_that_is_deleted_in_a_pause_does_not_hold_the_resume_up(stage: Stage) -> None:
    stage.pause()
    stage.redis.delete(stage.queue.lanes[Lane.NORMAL])
    assert stage.resume() == b"ok"
    stage.enqueue("a")
    assert [found.task_id for found in stage.fetch()] == [b"a"]


def test_a_queue_can_be_paused_when_redis_is_full(full: Stage) -> None:
    """Then it may be wanted most; and resumed, because only running tasks makes room."""
    full.enqueue("a")
    full.redis.config_set("maxmemory", 1)
    assert full.pause() == b"ok"
    assert full.resume() == b"ok"
    full.redis.config_set("maxmemory", 0)
    assert [entry.task_id for entry in full.fetch()] == [b"a"]


def test_a_lane_of_the_wrong_type_leaves_no_other_lane_unpaused(stage: Stage) -> None:
    """B3: nothing is half paused because one key is broken."""
    stage.consistent = False
    broken = stage.queue.lanes[Lane.FRONT]
    stage.redis.set(broken, "something else")
    stage.enqueue("a", lane=Lane.LOW)
    rest = [lane for lane in LANES if lane is not Lane.FRONT]
    assert stage.pause() == b"ok"
    assert stage.fetch(lanes=rest) == []
    assert stage.resume() == b"ok"
    assert [entry.task_id for entry in stage.fetch(lanes=rest)] == [b"a"]
