"""Schedules: what a user asks for, what is stored of it, and how it is shown.

Plain values without any arithmetic: which ticks a schedule has is streamq/cron.py's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from streamq.model.call import TaskCall
from streamq.model.durations import Duration

Misfire = Literal["skip", "one", "all"]
MISFIRES = ("skip", "one", "all")
DEFAULT_MISFIRE: Misfire = "one"
"""After an outage a nightly job is wanted once, late; three days' worth of an hourly one are not."""
Gone = Literal["remove", "keep"]
DEFAULT_OWNER = "app"
OWNER_SEPARATOR = "/"
"""Between an app's name and a provider's, which together own what the provider said."""
BY_HAND = ""
"""The owner of entries that were made at run time: no deploy changes or removes them."""


@dataclass(frozen=True, slots=True)
class Cron:
    """One entry of a timetable: an id, when, and what to enqueue then.

    ``spec`` is a cron expression (five fields, or six, the sixth being seconds), ``@daily`` and the
    like, ``@every 90s``, or a timedelta. ``tz`` is the IANA time zone in which the expression is read.
    Each tick is late by a share of ``jitter`` that is drawn from id and tick. No tick is before
    ``start`` or after ``end``. ``misfire`` says what happens to ticks that nobody was there to fire.
    """

    id: str
    spec: str | timedelta
    call: TaskCall[Any]
    tz: str | ZoneInfo = field(default="UTC", kw_only=True)
    jitter: Duration = field(default=0, kw_only=True)
    start: datetime | None = field(default=None, kw_only=True)
    end: datetime | None = field(default=None, kw_only=True)
    misfire: Misfire = field(default=DEFAULT_MISFIRE, kw_only=True)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When an entry's ticks are, as it is stored: checked, and in one spelling."""

    spec: str
    tz: str = "UTC"
    jitter_ms: int = 0
    start_ms: int | None = None
    end_ms: int | None = None
    misfire: str = DEFAULT_MISFIRE

    @property
    def digest(self) -> str:
        """Tells two schedules of one entry apart, so that no tick of the old one fires under the new."""
        told = "\n".join(map(str, (self.spec, self.tz, self.jitter_ms, self.start_ms, self.end_ms)))
        return hashlib.blake2b(told.encode(), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True)
class CronEntry:
    """A stored entry: its schedule, and everything needed to enqueue without knowing the code."""

    id: str
    queue: str
    schedule: Schedule
    how: bytes
    """Lane and rules, as the enqueue script takes them."""
    message: bytes = field(repr=False)
    """The task's message but for the moments that differ from tick to tick."""
    dedup_key: bytes = b""
    expires_ms: int | None = None
    """From the enqueue on."""
    owner: str = BY_HAND
    paused: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    """What a newer version added; it is kept."""


@dataclass(frozen=True, slots=True)
class CronInfo:
    """An entry as it stands."""

    id: str
    queue: str
    spec: str
    tz: str
    jitter: timedelta
    start: datetime | None
    end: datetime | None
    misfire: str
    type: str
    """The task that it enqueues."""
    owner: str
    """Whose deploys change it; empty for an entry that was made at run time."""
    paused: bool
    next_at: datetime | None
    """None while it is paused, and after its last tick."""


@dataclass(frozen=True, slots=True)
class CronTick:
    """A tick of the past."""

    id: str
    due_at: datetime
    fired_at: datetime
    outcome: str
    """What the queue answered: ready, scheduled, aggregating; duplicate, full ...; or skipped."""
    task_id: str | None


@dataclass(frozen=True, slots=True)
class CronEvent:
    """What hooks are told of a tick: before it fires, and what came of it."""

    id: str
    queue: str
    type: str
    tick: datetime
    outcome: str | None = None
    task_id: str | None = None
    error: BaseException | None = None
    """Why nothing was enqueued."""


FireHook = Callable[[CronEvent], Awaitable[None] | None]
CronSource = Callable[[], Iterable[Cron] | Awaitable[Iterable[Cron]]]
"""A user's function that tells which entries there should be."""


@dataclass(frozen=True, slots=True)
class CronProvider:
    """A source that is polled, and what is its own among the stored entries."""

    owner: str
    every_ms: int
    poll: Callable[[], Awaitable[list[CronEntry]]]


@dataclass(frozen=True, slots=True)
class Timetable:
    """What an app tells its workers of its schedules."""

    entries: tuple[CronEntry, ...] = ()
    """Those of the code."""
    owner: str = DEFAULT_OWNER
    gone: Gone = "remove"
    """What becomes of entries of the same owner that the code no longer has."""
    providers: tuple[CronProvider, ...] = ()
    before_fire: tuple[FireHook, ...] = ()
    after_fire: tuple[FireHook, ...] = ()

    def owns(self, owner: str) -> bool:
        """Whether entries of that owner are the code's: its own, and those of providers that it had."""
        if owner == self.owner:
            return True
        of_provider = owner.startswith(f"{self.owner}{OWNER_SEPARATOR}")
        return of_provider and all(owner != provider.owner for provider in self.providers)
