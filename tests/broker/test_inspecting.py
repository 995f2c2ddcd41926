"""The inspector on queues brought into every state by hand: counts, lists, and removal without a trace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamq.broker import producing, steering
from streamq.broker.address import Address
from streamq.broker.command import Command
from streamq.broker.producing import GroupRule
from streamq.clock import utc_day, wall_ms
from streamq.errors import OptionError, QueueError, TaskError, TaskNotFound
from streamq.inspector import Inspector
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.locks import enqueue
from tests.broker.stage import DAY, LONG_MS, Stage
from tests.broker.test_delete import every_state


@pytest.fixture
async def inspector(stage: Stage) -> AsyncIterator[Inspector]:
    inspector = Inspector(Address.parse(stage.server.unix_url), namespace=stage.keys.namespace, lease=1)
    async with inspector:
        yield inspector


def register(stage: Stage) -> None:
    stage.run(producing.register(stage.keys.queues, stage.queue.name))


async def test_each_state_is_counted(stage: Stage, inspector: Inspector) -> None:
    """A101: with its size, counters and pause."""
    register(stage)
    every_state(stage)
    stage.started("active", "another", lane=Lane.HIGH)
    stage.pause()
    info = await inspector.queue("default")
    shown = (info.ready, info.active, info.scheduled, info.retry, info.completed, info.archived)
    assert shown == (2, 2, 1, 1, 1, 1)
    assert (info.size, info.paused, info.processed, info.failed) == (8, True, 3, 2)
    assert await inspector.counters("default") == {"processed": 3, "failed": 2, "archived": 1}
    assert await inspector.counters("default", DAY) == {"processed": 3, "failed": 2, "archived": 1}
    assert await inspector.counters("default", "20000101") == {}


async def test_an_unknown_queue_is_an_error_that_names_it(stage: Stage, inspector: Inspector) -> None:
    """A102, A105: in every call, and none makes a key."""
    calls = (
        inspector.queue("nobody"),
        inspector.task("nobody", "a"),
        inspector.active("nobody"),
        inspector.counters("nobody"),
        inspector.pause("nobody"),
        inspector.resume("nobody"),
        inspector.delete("nobody", "a"),
        inspector.remove_queue("nobody"),
    )
    for call in calls:
        with pytest.raises(QueueError, match="nobody"):
            await call
    assert stage.all_keys() == []
    with pytest.raises(OptionError, match="queue"):
        await inspector.queue("{bad}")


async def test_what_has_no_meaning_is_refused_by_name(stage: Stage, inspector: Inspector) -> None:
    """A19"""
    register(stage)
    wrong: Any
    for wrong in (0, -1, "5", True, 10_001):
        with pytest.raises(OptionError, match="limit: must be a whole number from 1 to 10,000"):
            await inspector.groups("default", limit=wrong)
        with pytest.raises(OptionError, match="limit: must be a whole number from 1 to 10,000"):
            await inspector.active("default", limit=wrong)
    for wrong in (5, "", "2026-11", "yesterda"):
        with pytest.raises(OptionError, match="day: must be a day of UTC as YYYYMMDD"):
            await inspector.counters("default", wrong)
    for wrong in (5, {"size": 5}):
        with pytest.raises(OptionError, match="limits: must be a QueueLimits or None"):
            await inspector.set_limits("default", wrong)


async def test_queues_are_listed_by_name(stage: Stage, inspector: Inspector) -> None:
    assert await inspector.queues() == []
    for name in ("default", "b", "ä"):
        register(stage.beside(name))
    assert await inspector.queues() == ["b", "default", "ä"]


async def test_active_tasks_are_listed_and_orphans_marked(stage: Stage, inspector: Inspector) -> None:
    """A82."""
    register(stage)
    [orphan] = stage.started("orphan")
    stage.started("live", lane=Lane.LOW, consumer="w2")
    stage.enqueue("ready")
    stage.let_idle(orphan, ms=1000)
    infos = {info.id: info for info in await inspector.active("default")}
    assert {name: (info.worker, info.orphaned) for name, info in infos.items()} == {
        "orphan": ("w1", True),
        "live": ("w2", False),
    }
    assert (await inspector.task("default", "orphan")).orphaned
    assert not (await inspector.task("default", "live")).orphaned


async def test_pausing_twice_and_resuming_twice_are_errors(stage: Stage, inspector: Inspector) -> None:
    """A49."""
    register(stage)
    await inspector.pause("default")
    with pytest.raises(QueueError, match="paused already"):
        await inspector.pause("default")
    await inspector.resume("default")
    with pytest.raises(QueueError, match="not paused"):
        await inspector.resume("default")


async def test_deleting_tells_what_was_wrong(stage: Stage, inspector: Inspector) -> None:
    """A113, A114, A105."""
    register(stage)
    stage.started("active")
    stage.enqueue("ready")
    await inspector.delete("default", "ready")
    with pytest.raises(TaskNotFound):
        await inspector.task("default", "ready")
    with pytest.raises(TaskNotFound):
        await inspector.delete("default", "ready")
    with pytest.raises(TaskError, match="running"):
        await inspector.delete("default", "active")
    assert (await inspector.task("default", "active")).state is State.ACTIVE


async def test_removing_a_queue_leaves_no_key_of_it(stage: Stage, inspector: Inspector) -> None:
    """B18, B36, A116: every state, counter, lane and limiter; found out by SCAN. The other queue stays."""
    stage.consistent = False  # there is nothing left to check
    register(stage)
    every_state(stage)
    stage.redis.hset(stage.queue.stats_of(utc_day(wall_ms() - 90 * 86_400_000)), "processed", 1)
    stage.pause()
    stage.redis.hset(stage.queue.cron, "nightly", "a definition")
    for key in set(stage.queue.every) - set(stage.all_keys()):
        stage.redis.set(key, "whatever stands beside tasks")
    for name in ("c0:one", "b0:two"):
        stage.redis.set(stage.queue.limiter(name), "counts")
        stage.redis.set(stage.queue.turn(name), "a turn")
    stage.redis.delete(stage.queue.limiters)
    stage.redis.zadd(stage.queue.limiters, {"c0:one": 1, "b0:two": 2**53})
    other = stage.beside("other")
    register(other)
    other.enqueue("kept")
    made = [key for key in stage.all_keys() if b"{default}" in key]
    assert set(stage.queue.every) <= set(made)
    with pytest.raises(QueueError, match="has 6 tasks and 1 schedules; give force=True"):
        await inspector.remove_queue("default")
    assert [key for key in stage.all_keys() if b"{default}" in key] == made
    await inspector.remove_queue("default", force=True)
    assert [key for key in stage.all_keys() if b"{default}" in key] == []
    assert await inspector.queues() == ["other"]
    assert other.ids(Lane.NORMAL) == ["kept"]


async def test_a_queue_whose_tasks_run_cannot_be_removed(stage: Stage, inspector: Inspector) -> None:
    """A116: not even by force."""
    register(stage)
    [entry] = stage.started("a")
    before = stage.dump()
    for force in (False, True):
        with pytest.raises(QueueError, match="running"):
            await inspector.remove_queue("default", force=force)
    assert stage.dump() == before
    stage.complete(entry)
    await inspector.remove_queue("default")
    assert stage.all_keys() == []


async def test_a_removed_queue_keeps_no_lock(stage: Stage, inspector: Inspector) -> None:
    """B36: the same unique task can be enqueued again at once."""
    register(stage)
    enqueue(stage, "a")
    enqueue(stage, "member", key="other", group=GroupRule("t", "g", LONG_MS))
    assert enqueue(stage, "b") == [b"duplicate:a"]
    with pytest.raises(QueueError, match="has 2 tasks"):
        await inspector.remove_queue("default")
    await inspector.remove_queue("default", force=True)
    assert stage.all_keys() == []
    assert enqueue(stage, "b") == [b"ready"]
    assert enqueue(stage, "c", key="other") == [b"ready"]


async def test_a_queue_with_schedules_is_not_taken_for_empty(stage: Stage, inspector: Inspector) -> None:
    """A116, B18: what enqueues into it every night is not removed by accident."""
    stage.consistent = False  # the definition of this entry is none
    register(stage)
    stage.redis.hset(stage.queue.cron, "nightly", "a definition")
    with pytest.raises(QueueError, match="has 0 tasks and 1 schedules; give force=True"):
        await inspector.remove_queue("default")
    assert stage.redis.hexists(stage.queue.cron, "nightly")
    await inspector.remove_queue("default", force=True)
    assert stage.all_keys() == []


def test_a_task_that_starts_first_is_not_removed(stage: Stage) -> None:
    """B18: what is looked at and what is removed is one step, so that no worker can start in between."""
    stage.enqueue("a")
    [entry] = stage.fetch()
    before = stage.dump()
    assert stage.run(steering.remove(stage.queue, [DAY], [], force=True)) == (b"active", 1, 0)
    assert stage.dump() == before
    stage.release(entry)
    assert stage.run(steering.remove(stage.queue, [DAY], [], force=False)) == (b"full", 1, 0)
    stage.redis.zadd(stage.queue.limiters, {"c0:new": 2**53})
    assert stage.run(steering.remove(stage.queue, [DAY], [], force=True)) == (b"changed", 1, 0)
    assert stage.find("a").state is State.READY
    assert stage.run(steering.remove(stage.queue, [DAY], ["c0:new"], force=True)) == (b"ok", 1, 0)
    assert stage.all_keys() == []
    assert stage.run(steering.remove(stage.queue, [DAY], [], force=False)) == (b"ok", 0, 0)


async def test_who_enqueues_during_the_removal_finds_the_queue_registered(
    stage: Stage, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B18: between the last key and the registry."""
    register(stage)
    stage.enqueue("old")
    unregister = steering.unregister

    def meanwhile(registry: bytes, queue: str) -> Command[int]:
        assert stage.all_keys() == [stage.keys.queues]
        stage.enqueue("new")
        return unregister(registry, queue)

    monkeypatch.setattr(steering, "unregister", meanwhile)
    await inspector.remove_queue("default", force=True)
    assert await inspector.queues() == ["default"]
    assert (await inspector.task("default", "new")).state is State.READY
