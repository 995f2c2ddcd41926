"""Snapshots of what is stored: one task, one queue, one worker. Read-only views, true when they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from streamq.model.message import NO_TIMEOUT, Message
from streamq.model.options import DEFAULT_TIMEOUT_MS
from streamq.model.parked import Reason
from streamq.model.progress import Progress
from streamq.model.queue_limits import NO_LIMITS, QueueLimits
from streamq.model.retry import DEFAULT_MAX_RETRIES
from streamq.model.states import State


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task as it was when asked. Times are UTC; durations are seconds."""

    id: str
    type: str
    queue: str
    priority: str
    state: State
    retried: int
    """Failures so far."""
    crashes: int
    """Times its worker died while it ran."""
    max_retries: int
    timeout: float | None
    """Longest run of one attempt; None: no limit, or only the deadline."""
    deadline: datetime | None
    expires: datetime | None
    retention: float
    headers: Mapping[str, str]
    enqueued_at: datetime | None
    """By the producer's clock."""
    next_at: datetime | None
    """When it is due (scheduled, retry), or its group is (aggregating).

    None for a unique task that waits until another one has ended.
    """
    error: str | None
    failed_at: datetime | None
    completed_at: datetime | None
    reason: Reason | None
    """Why it was archived; or ``limited`` where it waits (retry) because of a limit."""
    worker: str | None = None
    """Who runs it (active)."""
    progress: Progress | None = None
    """What its handler said last of how far it is; None once it has succeeded."""
    orphaned: bool = False
    """Active, but its lease has run out and it waits to be recovered."""
    group: str | None = None
    """The group that it waits in or will join, or of which it is a batch."""
    batch: str | None = None
    """Id of the batch that it went into: state and all else are that batch's."""
    message: Message | None = field(default=None, repr=False, compare=False)
    """What is stored; None when it cannot be decoded."""


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """One queue as it was when asked."""

    name: str
    ready: int
    active: int
    scheduled: int
    retry: int
    completed: int
    archived: int
    paused: bool
    processed: int
    """Attempts that ended, over all time."""
    failed: int
    """Those of them that failed."""
    limits: QueueLimits = NO_LIMITS
    """What the queue takes from producers."""
    aggregating: int = 0
    """Tasks that wait in groups."""

    @property
    def size(self) -> int:
        """Tasks in any state."""
        waiting = self.scheduled + self.retry + self.aggregating
        return self.ready + self.active + waiting + self.completed + self.archived


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit of a queue found, and did about it. All 0 unless others changed the data by hand."""

    vanished: int = 0
    """Tasks of which nothing was left but their id: forgotten."""
    repaired: int = 0
    """Tasks that stood where no worker would have found them: put where they belong."""
    quarantined: int = 0
    """Bytes that belong to no task any more: kept in the archive, with the reason ``orphaned``."""
    swept: int = 0
    """Locks and waiting tasks that outlived the task they hung on: freed, or made ready. Not a fault."""

    @property
    def total(self) -> int:
        """Everything that did not fit together."""
        return self.vanished + self.repaired + self.quarantined


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker process by its last heartbeat."""

    id: str
    host: str
    pid: int
    queues: Mapping[str, int]
    """Queue to weight; all 0 for strict order."""
    concurrency: int
    active: int
    """Tasks it runs."""
    status: str
    """running, quiet, draining or stopping."""
    started_at: datetime


def moment(ms: int | None) -> datetime | None:
    """Milliseconds since the epoch as a UTC datetime."""
    return None if ms is None else instant(ms)


def instant(ms: int) -> datetime:
    """The same of what is given for certain."""
    return datetime.fromtimestamp(ms / 1000, UTC)


NEVER_MS = 2**53 - 1
"""The due time of a task that waits behind another one with the same lock: tidy.lua moves it, no clock."""


def due_moment(ms: int | None) -> datetime | None:
    """When a waiting task is due; None when that is not decided by time."""
    return None if ms == NEVER_MS else moment(ms)


def effective_timeout_s(message: Message) -> float | None:
    """The limit of one attempt, where the worker's definition adds none.

    The default limit applies unless a deadline is given.
    """
    if message.timeout_ms == NO_TIMEOUT:
        return None
    if message.timeout_ms is not None:
        return message.timeout_ms / 1000
    return None if message.deadline_ms is not None else DEFAULT_TIMEOUT_MS / 1000


def effective_max_retries(message: Message) -> int:
    """How often a failure may be tried again, where the worker's definition says nothing else."""
    return DEFAULT_MAX_RETRIES if message.max_retries is None else message.max_retries
