"""The entries that an app's code has: collected, checked at once, and handed to its workers.

Also the way from a user's Cron to the entry that is stored, which needs nothing of the code any more.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from streamq.client.encoding import Encoder
from streamq.client.producer import Producer
from streamq.codec import decode_message, encode_message
from streamq.cron import check_schedule
from streamq.errors import OptionError, RegistrationError
from streamq.model.call import TaskCall
from streamq.model.durations import Duration, duration_ms
from streamq.model.names import check_name
from streamq.model.options import UNSET
from streamq.model.schedule import (
    BY_HAND,
    DEFAULT_OWNER,
    OWNER_SEPARATOR,
    Cron,
    CronEntry,
    CronProvider,
    CronSource,
    FireHook,
    Gone,
    Timetable,
)

DEFAULT_POLL_S = 60.0
_LEAST_POLL_MS = 100
_ONE_TASK_ALONE = ("at", "deadline", "task_id")


def as_entry(cron: Cron, encoder: Encoder, producer: Producer, owner: str = BY_HAND) -> CronEntry:
    """What is stored of an entry. Raises OptionError and PayloadError."""
    if not isinstance(cron, Cron):
        raise OptionError("cron", f"must be a Cron, not {type(cron).__name__}")
    schedule = check_schedule(cron)
    call: Any = cron.call
    if not isinstance(call, TaskCall):
        raise OptionError("call", f"must be a call such as task.call(...), not {type(call).__name__}")
    for name in _ONE_TASK_ALONE:
        if getattr(call.options, name) not in (UNSET, None):
            raise OptionError(name, "belongs to one task; a schedule enqueues many")
    expires = call.options.expires
    if isinstance(expires, datetime):
        raise OptionError("expires", "must be a duration: it counts from each tick's enqueue")
    # In one order, so that what means the same is stored alike.
    ordered: TaskCall[Any] = TaskCall(call.type, call.args, dict(sorted(call.kwargs.items())), call.options)
    encoded = encoder.encode(ordered, producer)
    message = decode_message(encoded.message)
    return CronEntry(
        id=cron.id,
        queue=encoded.queue,
        schedule=schedule,
        how=encoded.how,
        message=encode_message(
            message.copy(
                enqueued_ms=None, expires_ms=None, headers=dict(sorted(message.headers.items())) or None
            )
        ),
        dedup_key=encoded.name.partition(b" ")[2],
        expires_ms=None if expires in (UNSET, None) else duration_ms("expires", expires),
        owner=owner,
    )


class Crontab:
    """What one app has said of its schedules."""

    def __init__(self, owner: str = DEFAULT_OWNER, gone: Gone = "remove") -> None:
        if OWNER_SEPARATOR in check_name("cron_owner", owner):
            raise OptionError("cron_owner", f"must not contain {OWNER_SEPARATOR}")
        self._owner = owner
        if gone not in ("remove", "keep"):
            raise OptionError("cron_gone", "must be 'remove' or 'keep'")
        self._gone = gone
        self._producer = Producer()
        self._entries: dict[str, CronEntry] = {}
        self._providers: list[CronProvider] = []
        self._before: list[FireHook] = []
        self._after: list[FireHook] = []

    def add(self, cron: Cron, encoder: Encoder) -> None:
        """Add an entry; an equal one once more changes nothing.

        Raises OptionError, PayloadError, and RegistrationError where another one has the id.
        """
        entry = as_entry(cron, encoder, self._producer, self._owner)
        known = self._entries.setdefault(entry.id, entry)
        if known != entry:
            raise RegistrationError(
                "id", f"the schedule {entry.id!r} is registered already, with other contents"
            )

    def provide(self, source: CronSource, encoder: Encoder, every: Duration) -> None:
        """Ask this function again and again for entries. Raises RegistrationError, OptionError."""
        if not callable(source):
            raise RegistrationError("cron_provider", "must be a function that returns Cron entries")
        every_ms = duration_ms("every", every)
        if every_ms < _LEAST_POLL_MS:
            raise OptionError("every", f"must be at least {_LEAST_POLL_MS} ms")
        named: Any = source if hasattr(source, "__qualname__") else type(source)
        name = check_name("cron_provider", f"{named.__module__}.{named.__qualname__}")
        owner = f"{self._owner}{OWNER_SEPARATOR}{name}"
        if any(provider.owner == owner for provider in self._providers):
            raise RegistrationError("cron_provider", f"{name!r} is registered already")

        async def poll() -> list[CronEntry]:
            # A plain function may ask a database; the worker's loop must not wait for it.
            told: Any = await asyncio.to_thread(_collected, source)
            if inspect.isawaitable(told):
                told = await told
            return distinct(as_entry(cron, encoder, self._producer, owner) for cron in told)

        self._providers.append(CronProvider(owner, every_ms, poll))

    def before(self, hook: FireHook) -> None:
        """Call it before each tick. Raises RegistrationError."""
        self._before.append(_checked("before_fire", hook))

    def after(self, hook: FireHook) -> None:
        """Call it after each tick. Raises RegistrationError."""
        self._after.append(_checked("after_fire", hook))

    def timetable(self) -> Timetable:
        """What a worker needs."""
        return Timetable(
            entries=tuple(self._entries.values()),
            owner=self._owner,
            gone=self._gone,
            providers=tuple(self._providers),
            before_fire=tuple(self._before),
            after_fire=tuple(self._after),
        )


def distinct(entries: Iterable[CronEntry]) -> list[CronEntry]:
    """Equal entries once. Raises RegistrationError for different ones with one id."""
    found: dict[str, CronEntry] = {}
    for entry in entries:
        if found.setdefault(entry.id, entry) != entry:
            raise RegistrationError("id", f"the schedule {entry.id!r} comes twice, with different contents")
    return list(found.values())


def _collected(source: CronSource) -> Any:
    told = source()
    return told if inspect.isawaitable(told) else list(told)


def _checked(name: str, hook: FireHook) -> FireHook:
    if not callable(hook):
        raise RegistrationError(name, f"must be a function, not {type(hook).__name__}")
    return hook
