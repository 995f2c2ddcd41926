"""Groups and batches, as the tests of the scripts make and see them."""

from __future__ import annotations

from typing import Any

from streamq.broker.grouping import Flushed, flush_group
from streamq.broker.producing import GroupRule, how
from streamq.codec import decode_batch, decode_message
from streamq.model.lanes import Lane
from streamq.model.message import Message
from tests.broker.stage import LONG_MS, Stage

TYPE = "t"


def key(group: str = "g", task_type: str = TYPE) -> str:
    """The name of a group as it is stored."""
    return f"{task_type}\n{group}"


def join(
    stage: Stage,
    *ids: str,
    group: str = "g",
    task_type: str = TYPE,
    lane: Lane = Lane.NORMAL,
    message: bytes | None = None,
    delay_ms: int | None = None,
    **rule: int,
) -> list[bytes]:
    """One call of tasks that join a group; due in an hour unless ``rule`` says something else."""
    first = how(lane, delay_ms=delay_ms, group=GroupRule(task_type, group, **{"grace_ms": LONG_MS, **rule}))
    tasks = [(first, id_, message or f"m-{id_}".encode()) for id_ in ids]
    return list(stage.send(stage.next_sequence(), *tasks).words)


def make_due(stage: Stage, group: str = "g", task_type: str = TYPE) -> None:
    stage.redis.zadd(stage.queue.groups, {key(group, task_type): 1}, xx=True)


def flush(stage: Stage, *batch_ids: str) -> Flushed:
    return stage.run(flush_group(stage.queue, batch_ids or ("batch",)))


def batched(stage: Stage, *ids: str, batch: str = "batch", **options: Any) -> None:
    """Tasks that are a batch now, ready."""
    assert set(join(stage, *ids, **options)) == {b"aggregating"}
    make_due(stage, options.get("group", "g"))
    assert flush(stage, batch).members == len(ids)


def message_of(stage: Stage, batch: str = "batch") -> Message:
    return decode_message(stage.find(batch).message_bytes)


def members_of(stage: Stage, batch: str = "batch") -> dict[str, bytes]:
    """Id -> message, in order."""
    return {id_.decode(): body for id_, body in decode_batch(message_of(stage, batch).payload)}


def due_in(stage: Stage, group: str = "g") -> int:
    """Milliseconds until the group is due, by what is stored."""
    return stage.members(stage.queue.groups)[key(group)] - stage.now_ms()


def waiting(stage: Stage) -> list[str]:
    """The members of all groups, in order."""
    names: Any = stage.redis.zrange(stage.queue.aggregating, 0, -1)
    return [name.split(b"\0")[2].decode() for name in names]


def nothing_waits(stage: Stage) -> bool:
    """No member, no group, and no body is stored."""
    count: int = stage.redis.exists(stage.queue.aggregating, stage.queue.groups, stage.queue.parked)
    return count == 0
