"""Cron entries on a stage: made, stored, fired by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamq.broker import scheduling, timetable
from streamq.broker.producing import TickGuard, how
from streamq.codec import encode_cron, encode_message, encode_payload
from streamq.cron import check_schedule
from streamq.model.call import TaskCall
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.schedule import Cron, CronEntry
from tests.broker.driving import drive
from tests.broker.stage import Stage

MESSAGE = encode_message(Message.new(type="report", payload=encode_payload((), {})))


def entry(spec: Any = "@hourly", id_: str = "nightly", queue: str = "default", **more: Any) -> CronEntry:
    """An entry of that schedule; ``more`` are fields of the entry or of Cron."""
    own = {
        name: more.pop(name) for name in ("owner", "paused", "message", "more", "expires_ms") if name in more
    }
    schedule = check_schedule(Cron(id_, spec, TaskCall("report"), **more))
    made = CronEntry(id_, queue, schedule, how(Lane.NORMAL), MESSAGE)
    return replace(made, **own)


def put(stage: Stage, one: CronEntry) -> CronEntry | None:
    """Store it, whatever was there."""
    return drive(stage, timetable.revise(stage.keys, stage.queue, one.id, lambda _old: one))


def follow(stage: Stage, *wished: CronEntry, owner: str = "app", gone: Any = "remove") -> timetable.Followed:
    names = [stage.queue.name]
    is_gone = {owner} if gone == "remove" else set()
    return drive(stage, timetable.follow(stage.keys, names, owner, wished, is_gone.__contains__))


def next_of(stage: Stage) -> dict[str, int]:
    """Entry id to its next tick."""
    return {name.rpartition(" ")[0]: due for name, due in stage.members(stage.queue.cron_due).items()}


def stored(stage: Stage) -> dict[str, bytes]:
    return stage.run(scheduling.stored_entries(stage.queue))


def make_due(stage: Stage, one: CronEntry, due_ms: int) -> None:
    """Set its next tick by hand."""
    stage.redis.zadd(stage.queue.cron_due, {scheduling.member_of(one): due_ms})


def file(stage: Stage, one: CronEntry, due_ms: int) -> None:
    """Store it as if its next tick were that one."""
    stage.redis.hset(stage.queue.cron, one.id, encode_cron(one))
    make_due(stage, one, due_ms)


def fire(stage: Stage, one: CronEntry, task_id: str, expected_ms: int, next_ms: int | None) -> bytes:
    guard = TickGuard(scheduling.member_of(one).decode(), expected_ms, next_ms)
    words = scheduling.task_words(one, task_id, stage.now_ms(), expected_ms, guard)
    first, name, message = words
    assert isinstance(first, bytes)
    assert isinstance(name, bytes)
    assert isinstance(message, bytes)
    return stage.send(stage.next_sequence(), (first, name.decode(), message)).words[0]
