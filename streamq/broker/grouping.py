"""Commands of groups: make batches of them, and look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamq.broker.command import Command, Word
from streamq.broker.keys import QueueKeys
from streamq.broker.scripts import script
from streamq.model.groups import MAX_BATCH_SIZE
from streamq.model.lanes import Lane

MAX_BATCH_BYTES = 1 << 20
"""Of the messages in one batch; a larger one goes alone."""

FLUSH_PAGE = 32
"""Batches that one flush call may make: with their members about 5 ms of Redis's time."""


class Flushed(NamedTuple):
    """What one flush call did."""

    batches: int
    members: int
    """Tasks that went into these batches."""
    orphans: int
    """Members without a body: dropped, and worth a loud log line."""
    next_ms: int
    """Milliseconds until the next group is due; 0: more are due now; -1: there is none."""


def flush_group(queue: QueueKeys, batch_ids: Sequence[str]) -> Command[Flushed]:
    """Make batches of groups that are due, at most one for each id. No task may ever have had these ids."""
    lanes = queue.lanes
    keys = (
        lanes[Lane.HIGH],
        lanes[Lane.NORMAL],
        lanes[Lane.LOW],
        queue.index,
        queue.parked,
        queue.aggregating,
        queue.groups,
        queue.grouped,
    )
    args: tuple[Word, ...] = (queue.done(""), MAX_BATCH_SIZE, MAX_BATCH_BYTES, *batch_ids)
    return Command(script("flush_group"), keys, args, lambda reply: Flushed(*reply))


@dataclass(frozen=True, slots=True)
class Due:
    """A group, and when it becomes a batch."""

    name: bytes
    """Task type, LF, group."""
    due_ms: int


def groups(queue: QueueKeys, limit: int) -> Command[list[Due]]:
    """The groups that become batches next."""
    words = ("ZRANGE", queue.groups, 0, limit - 1, "WITHSCORES")

    def parse(reply: Any) -> list[Due]:
        return [Due(name, int(float(score))) for name, score in zip(reply[::2], reply[1::2], strict=True)]

    return Command(None, (queue.groups,), words, parse)


def group_size(queue: QueueKeys, name: bytes) -> Command[int]:
    """How many members a group has."""
    words: tuple[Word, ...] = ("ZLEXCOUNT", queue.aggregating, b"[%b\0" % name, b"(%b\1" % name)
    return Command(None, (queue.aggregating,), words, int)


def oldest_member(queue: QueueKeys, name: bytes) -> Command[int | None]:
    """When the oldest member of a group came, in ms; None when it has none."""
    bounds = (b"[%b\0" % name, b"(%b\1" % name)
    words: tuple[Word, ...] = ("ZRANGEBYLEX", queue.aggregating, *bounds, "LIMIT", 0, 1)

    def parse(reply: Any) -> int | None:
        return int(reply[0].split(b"\0")[1]) // 1000 if reply else None

    return Command(None, (queue.aggregating,), words, parse)
