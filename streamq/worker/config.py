"""The settings of a worker, validated in one place."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from streamq.broker.dial import Timeouts
from streamq.errors import OptionError, ServerError
from streamq.model.durations import Duration, duration_ms
from streamq.model.hooks import Hooks
from streamq.model.limits import DEFAULT_LIMITS, Limits
from streamq.model.names import check_key_name
from streamq.model.options import DEFAULT_QUEUE
from streamq.model.parked import Reason
from streamq.model.schedule import Timetable

if TYPE_CHECKING:
    from streamq.worker.context import TaskContext
    from streamq.worker.home import Home

OnError = Callable[["TaskContext", BaseException], Awaitable[None] | None]
OnSuccess = Callable[["TaskContext", Any], Awaitable[None] | None]
OnArchive = Callable[["TaskContext", BaseException | Reason], Awaitable[None] | None]
OnHealth = Callable[[ServerError | None], Awaitable[None] | None]
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

MAX_CONCURRENCY = 10_000


class WorkerSettings(TypedDict, total=False):
    """What ``app.worker(...)`` takes; each is explained at the field of WorkerConfig with its name."""

    queues: Mapping[str, int]
    strict: bool
    concurrency: int
    lease: Duration
    grace: Duration
    crash_limit: int
    worker_id: str | None
    on_health: OnHealth | None


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything that a worker can be told. Units stand in the names: ``_s`` seconds, ``_ms`` ms."""

    queues: Mapping[str, int] = field(default_factory=lambda: {DEFAULT_QUEUE: 1})
    """Queue to weight."""
    strict: bool = False
    """Empty the queues in the order given, instead of drawing by weight."""
    namespace: str | None = None
    concurrency: int = 100
    """Handlers at once: the slots."""
    lease_ms: int = 10_000
    """A worker that has not renewed for so long, by Redis's clock, has lost its entries."""
    grace_s: float = 20.0
    """How long running handlers may go on after a stop, before they are cancelled and released."""
    crash_limit: int = 3
    """Crashes after which a task is archived."""
    crash_backoff_ms: int = 5_000
    """Wait before a task that crashed twice is tried again; doubles with each further crash."""
    archive_size: int = 10_000
    """Most archived tasks a queue keeps; the oldest go first."""
    archive_age_ms: int = 90 * 86_400_000
    block_ms: int = 5_000
    """How long an idle read waits in Redis before it asks again."""
    max_unsettled: int = 10_000
    """Outcomes that may wait for Redis before no more tasks are fetched."""
    presence_s: float = 5.0
    """Time between heartbeats."""
    care_s: float = 20.0
    """Time between looks for queues that no worker serves."""
    limits: Limits = DEFAULT_LIMITS
    timeouts: Timeouts = field(default_factory=Timeouts)
    worker_id: str | None = None
    """The consumer name; made at random unless given, and never shared by two live workers."""
    on_health: OnHealth | None = None
    """Called after each heartbeat: with None, or with why it failed. What it raises changes nothing."""
    on_error: OnError | None = None
    """Called after each attempt that raised; what it raises itself is logged and changes nothing."""
    on_success: OnSuccess | None = None
    """Called after each attempt that returned, with what it returned."""
    on_archive: OnArchive | None = None
    """Called when a task was archived, with the error, or the reason where no handler had raised."""
    timetable: Timetable = field(default_factory=Timetable)
    """The app's schedules."""
    home: Home | None = None
    """Where child processes find the app; None when no task wants one."""
    lifespan: Lifespan | None = None
    """Entered before the first task; what it yields is ``current_task().state``."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], **others: Any) -> WorkerConfig:
        """A config from what the user said, durations as users give them, and the app's own values.

        Raises OptionError for a setting that is unknown or has no meaning.
        """
        given = dict(settings)
        if "lease" in given:
            given["lease_ms"] = duration_ms("lease", given.pop("lease"))
        if "grace" in given:
            given["grace_s"] = duration_ms("grace", given.pop("grace")) / 1000
        names = {item.name for item in fields(cls)}
        for name in given.keys() - names:
            close = difflib.get_close_matches(name, names | {"lease", "grace"}, n=1)
            raise OptionError(name, f"unknown setting{f'; did you mean {close[0]}?' if close else ''}")
        return cls(**{**others, **given})

    @property
    def hooks(self) -> Hooks:
        """The app's hooks, called for all tasks."""
        return Hooks(self.on_error, self.on_success, self.on_archive)

    def __post_init__(self) -> None:
        if not isinstance(self.queues, Mapping):
            raise OptionError("queues", "must be a map from queue to weight, as in {'default': 1}")
        if not self.queues:
            raise OptionError("queues", "name at least one queue")
        for name, weight in self.queues.items():
            check_key_name("queues", name)
            if type(weight) is not int or not 1 <= weight <= 1_000_000:
                raise OptionError(f"queues[{name}]", "the weight must be a whole number from 1 to 1,000,000")
        if self.namespace is not None:
            check_key_name("namespace", self.namespace)
        if self.worker_id is not None:
            check_key_name("worker_id", self.worker_id)
            if self.worker_id == "*":
                raise OptionError("worker_id", "must not be *, which means all workers")
        _check_range("concurrency", self.concurrency, 1, MAX_CONCURRENCY)
        # By the names and in the units in which users give them.
        _check_range("lease", self.lease_ms / 1000, 0.3, 86_400)
        _check_range("grace", self.grace_s, 0, 86_400)
        _check_range("crash_limit", self.crash_limit, 0, 1_000)
        _check_range("crash_backoff_ms", self.crash_backoff_ms, 1, 86_400_000)
        _check_range("archive_size", self.archive_size, 0, 10_000_000)
        _check_range("archive_age_ms", self.archive_age_ms, 1, 10 * 366 * 86_400_000)
        _check_range("block_ms", self.block_ms, 10, 60_000)
        _check_range("max_unsettled", self.max_unsettled, 1, 1_000_000)
        _check_range("presence_s", self.presence_s, 0.1, 3_600)
        _check_range("care_s", self.care_s, 0.1, 3_600)


def _check_range(field_name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise OptionError(field_name, f"must be a number from {low} to {high}")
