"""Tasks with locks, as the tests of the scripts send and see them."""

from __future__ import annotations

from typing import Any

from streamq.broker import working
from streamq.broker.producing import LockRule, how
from streamq.broker.working import Tidied
from streamq.model.lanes import Lane
from tests.broker.stage import Stage

KEY = "K"


def enqueue(
    stage: Stage,
    *ids: str,
    mode: str = "d",
    clash: str = "x",
    window_ms: int = 0,
    key: str = KEY,
    message: bytes | None = None,
    lane: Lane = Lane.NORMAL,
    **options: Any,
) -> list[bytes]:
    """One call of tasks with the lock ``key``; the message of each is ``m-<id>`` unless given."""
    first = how(lane, lock=LockRule(mode, clash, window_ms), **options)
    tasks = [(first, f"{id_} {key}", message or f"m-{id_}".encode()) for id_ in ids]
    return list(stage.send(stage.next_sequence(), *tasks).words)


def tidy(stage: Stage, *ids: str, marks: tuple[bytes, ...] = ()) -> Tidied:
    return stage.run(working.tidy(stage.queue, [id_.encode() for id_ in ids], marks))


def holder(stage: Stage, key: str = KEY) -> str | None:
    """Whose lock it is, by what is stored."""
    record: Any = stage.redis.hget(stage.queue.unique, key)
    return None if record is None else record.decode().partition(" ")[2]


def window_end(stage: Stage, key: str = KEY) -> int:
    record: Any = stage.redis.hget(stage.queue.unique, key)
    return int(record.decode().partition(" ")[0][1:])


def nothing_left(stage: Stage) -> bool:
    """No lock and no owner is stored."""
    count: int = stage.redis.exists(stage.queue.unique, stage.queue.owners)
    return count == 0
