"""The steps by which the entries of a timetable are added, changed, removed and listed.

Steps are generators: send each command, and hand its reply in. So the async client, the blocking one
and the workers share them. Nothing is locked: what is stored is compared with what was seen, in the
script that changes it, and whoever lost looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple, TypeVar

from streamq.broker.command import Steps
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.presence import server_time
from streamq.broker.producing import register
from streamq.broker.scheduling import member_of, next_ticks, set_cron, stored_entries, stored_entry
from streamq.codec import decode_cron, decode_message, encode_cron
from streamq.cron import Ticks
from streamq.errors import ServerRefused, StoredDataError
from streamq.model.info import moment
from streamq.model.schedule import CronEntry, CronInfo

T = TypeVar("T")

_ATTEMPTS = 20
"""Times an entry may change under one's hands."""


def revise(
    keys: Keys, queue: QueueKeys, entry_id: str, change: Callable[[CronEntry | None], CronEntry | None]
) -> Steps[CronEntry | None]:
    """Replace an entry by what ``change`` makes of it; None stands for no entry. Returns the new one.

    Where that is equal, nothing is written. Raises what ``change`` raises, StoredDataError.
    """
    for _ in range(_ATTEMPTS):
        stored: bytes = yield stored_entry(queue, entry_id)
        old = decode_cron(entry_id, queue.name, stored) if stored else None
        new = change(old)
        if new == old:
            return old
        if old is None:
            yield register(keys.queues, queue.name)
        due_ms = None if new is None else (yield from _next_tick(new))
        wanted = b"" if new is None else encode_cron(new)
        if (yield set_cron(queue, entry_id, stored, wanted, due_ms)) == b"ok":
            return new
    raise ServerRefused(f"the cron entry {entry_id!r} is changed all the time by others")


def discard(queue: QueueKeys, entry_id: str) -> Steps[bool]:
    """Remove an entry, also one that cannot be read. Returns whether it was there."""
    for _ in range(_ATTEMPTS):
        stored: bytes = yield stored_entry(queue, entry_id)
        if not stored:
            return False
        if (yield set_cron(queue, entry_id, stored, b"", None)) == b"ok":
            return True
    raise ServerRefused(f"the cron entry {entry_id!r} is changed all the time by others")


def _next_tick(entry: CronEntry) -> Steps[int | None]:
    if entry.paused:
        return None
    return Ticks.of(entry).due_after((yield server_time()))


class Followed(NamedTuple):
    """What a deploy changed."""

    written: int
    removed: int
    refused: list[str]
    """Entries that belong to somebody else, or cannot be read."""


def follow(
    keys: Keys,
    names: Iterable[str],
    owner: str,
    wished: Iterable[CronEntry],
    is_gone: Callable[[str], bool],
) -> Steps[Followed]:
    """Make the owner's entries those that are wished. Returns Followed.

    In the queues of these names, entries that are not wished are removed where ``is_gone`` says so of
    their owner. Whether an entry is paused stays as it is. Entries of others are left alone, also where one
    has an id that is wished here.
    """
    served = frozenset(names)
    by_queue: dict[str, dict[str, CronEntry]] = {name: {} for name in sorted(served)}
    for entry in wished:
        by_queue.setdefault(entry.queue, {})[entry.id] = replace(entry, owner=owner)
    written = removed = 0
    refused: list[str] = []
    for name, entries in by_queue.items():
        queue = keys.queue(name)
        stored: dict[str, bytes] = yield stored_entries(queue)
        due: dict[bytes, int] = (yield next_ticks(queue)) if stored else {}
        for entry in entries.values():
            word = yield from _write(keys, queue, entry, stored.get(entry.id, b""), due)
            written += word == "written"
            refused += [entry.id] if word == "refused" else []
        if name in served:
            removed += yield from _remove_gone(queue, is_gone, stored, entries)
    return Followed(written, removed, refused)


def _write(
    keys: Keys, queue: QueueKeys, entry: CronEntry, stored: bytes, due: Mapping[bytes, int]
) -> Steps[str]:
    """Returns a word: same, written, refused."""
    for _ in range(_ATTEMPTS):
        old = _readable(entry.id, queue, stored)
        if stored and (old is None or old.owner != entry.owner):
            return "refused"
        new = entry if old is None else replace(entry, paused=old.paused, more=old.more)
        if new == old and (new.paused or member_of(new) in due):
            return "same"
        due_ms = yield from _next_tick(new)
        if new == old and due_ms is None:
            return "same"  # its last tick is over
        if old is None:
            yield register(keys.queues, queue.name)
        if (yield set_cron(queue, entry.id, stored, encode_cron(new), due_ms)) == b"ok":
            return "written"
        stored = yield stored_entry(queue, entry.id)
    raise ServerRefused(f"the cron entry {entry.id!r} is changed all the time by others")


def _remove_gone(
    queue: QueueKeys,
    is_gone: Callable[[str], bool],
    stored: Mapping[str, bytes],
    wished: Mapping[str, CronEntry],
) -> Steps[int]:
    removed = 0
    for entry_id, value in stored.items():
        old = None if entry_id in wished else _readable(entry_id, queue, value)
        if old is not None and is_gone(old.owner):
            removed += (yield set_cron(queue, entry_id, value, b"", None)) == b"ok"
    return removed


def _readable(entry_id: str, queue: QueueKeys, stored: bytes) -> CronEntry | None:
    try:
        return decode_cron(entry_id, queue.name, stored) if stored else None
    except StoredDataError:
        return None


def listing(queue: QueueKeys) -> Steps[list[CronInfo]]:
    """What entries there are, by id. Returns a list of CronInfo; entries that cannot be read are left out."""
    stored: dict[str, bytes] = yield stored_entries(queue)
    due: dict[bytes, int] = (yield next_ticks(queue)) if stored else {}
    entries = [_readable(entry_id, queue, value) for entry_id, value in sorted(stored.items())]
    return [_info(entry, due.get(member_of(entry))) for entry in entries if entry is not None]


def _info(entry: CronEntry, next_ms: int | None) -> CronInfo:
    schedule = entry.schedule
    return CronInfo(
        id=entry.id,
        queue=entry.queue,
        spec=schedule.spec,
        tz=schedule.tz,
        jitter=timedelta(milliseconds=schedule.jitter_ms),
        start=moment(schedule.start_ms),
        end=moment(schedule.end_ms),
        misfire=schedule.misfire,
        type=_type_of(entry),
        owner=entry.owner,
        paused=entry.paused,
        next_at=moment(next_ms),
    )


def _type_of(entry: CronEntry) -> str:
    try:
        return decode_message(entry.message).type
    except StoredDataError:
        return ""
