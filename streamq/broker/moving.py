"""Commands that move tasks without running them: forward, purge, delete, and the janitor's others."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.scripts import script
from streamq.model.lanes import Lane

FORWARD_PAGE = 250
"""Tasks one forward call moves from each of scheduled and retry: about 5 ms of Redis's time."""
PURGE_PAGE = 500


class Forwarded(NamedTuple):
    """What one forward call did."""

    moved: int
    orphans: int
    """Ids without a body: dropped, and worth a loud log line."""
    next_ms: int
    """Milliseconds until the next task is due; 0: more are due now; -1: none waits."""
    paused: int
    """1 when the queue is paused."""
    unreadable: int
    """Bodies that make no sense: archived with their bytes."""
    batch_ms: int
    """Milliseconds until the next group becomes a batch; 0: now; -1: there is no group."""
    tick_ms: int
    """Milliseconds until the next tick of a schedule; 0: now; -1: there is none."""


def forward(queue: QueueKeys) -> Command[Forwarded]:
    """Make tasks ready whose time has come, or let them join their groups; say what is due next."""
    keys = (
        *_user_lanes(queue),
        queue.index,
        queue.parked,
        queue.scheduled,
        queue.retry,
        queue.config,
        queue.archived,
        queue.stats,
        queue.aggregating,
        queue.groups,
        queue.grouped,
        queue.cron_due,
    )
    return Command(script("forward"), keys, (FORWARD_PAGE,), lambda reply: Forwarded(*reply))


class Purged(NamedTuple):
    """What one purge call did."""

    purged: int
    next_ms: int
    """Milliseconds until the next retention ends; 0: more are over now; -1: nothing is kept."""


def purge(queue: QueueKeys, archive_age_ms: int, archive_size: int) -> Command[Purged]:
    """Delete completed tasks whose retention is over, and archived ones past the archive's age and size."""
    keys = (queue.parked, queue.completed, queue.archived)
    return Command(
        script("purge"), keys, (archive_age_ms, archive_size, PURGE_PAGE), lambda reply: Purged(*reply)
    )


def delete(queue: QueueKeys, task_id: str) -> Command[bytes]:
    """Delete a task that is not running. Answers ok, missing, active, or ``batched:`` and its batch."""
    keys = (*task_keys(queue), queue.unique, queue.owners, queue.aggregating, queue.groups, queue.grouped)
    return Command(script("delete"), keys, (task_id,), bytes)


def forget_producers(queue: QueueKeys, silence_ms: int, cursor: bytes = b"0") -> Command[tuple[bytes, int]]:
    """Forget producers silent for that long. Answers the next cursor (0: done) and how many."""
    keys = (queue.producers, queue.rates)
    return Command(script("forget_producers"), keys, (silence_ms, cursor, 100), tuple)


def consumers(lane: bytes) -> Command[list[str]]:
    """The names of the lane's consumers."""
    return Command(None, (lane,), ("XINFO", "CONSUMERS", lane, "w"), _parse_consumers)


def forget_consumer(lane: bytes, consumer: str) -> Command[bytes]:
    """Remove a consumer that owns nothing. Answers ok, missing or busy."""
    return Command(script("forget_consumer"), (lane,), (consumer,), bytes)


def task_keys(queue: QueueKeys) -> tuple[bytes, ...]:
    """The keys that together hold every task of a queue, in the order in which scripts take them."""
    zsets = (queue.scheduled, queue.retry, queue.completed, queue.archived)
    return (*queue.lanes.values(), queue.index, queue.parked, *zsets)


def _user_lanes(queue: QueueKeys) -> tuple[bytes, bytes, bytes]:
    return queue.lanes[Lane.HIGH], queue.lanes[Lane.NORMAL], queue.lanes[Lane.LOW]


def _parse_consumers(reply: Any) -> list[str]:
    return [dict(zip(row[::2], row[1::2], strict=True))[b"name"].decode("utf-8", "replace") for row in reply]
