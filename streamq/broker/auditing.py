"""The consistency audit: finds what of a queue does not fit together, and repairs or sets it aside.

StreamQ's own scripts keep everything together, since each is one atomic step. What is found here was
done by others: keys or entries deleted by hand, entries acknowledged in passing, consumers removed,
data restored in part. Each page of the audit is one script, so it never sees a task between two places.

Owns the commands and the order in which they are sent; who sends them, and how fast, is the caller's.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, NamedTuple

from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.scripts import script
from streamq.broker.sweeping import sweep
from streamq.clock import utc_day
from streamq.model.info import Audit
from streamq.model.lanes import LANES, Lane

_RECORDS = 100
"""Index records and ids in sets of one page."""
_BODIES = 25
"""Entries and bodies of one page: they are copied to be looked at."""
_BYTES = 1 << 20
"""Bytes of entries after which a page of the index ends."""
_ZSETS = 4


class Page(NamedTuple):
    """What one call found."""

    cursor: bytes
    """Where to go on; empty when everything is searched."""
    vanished: int
    repaired: int
    quarantined: int


def claim(queue: QueueKeys, worker_id: str, period_ms: int) -> Command[bool]:
    """Whether this worker is the one to audit the queue in this period: one of all that ask."""
    words = ("SET", queue.audited, worker_id, "NX", "PX", period_ms)
    return Command(None, (queue.audited,), words, lambda reply: reply is not None)


def audit(queue: QueueKeys, now_ms: int) -> Generator[Command[Any], Any, Audit]:
    """Every step of an audit, one after the other: send each command, and hand its reply in.

    The sweep belongs to it: it must not look at tasks before they are where they belong, and who waits
    behind a lock can be judged only when the locks are in order. ``now_ms`` is Redis's time.
    """
    day = utc_day(now_ms)
    found = yield from _walk(_parts(queue, day), Audit())
    swept = yield from sweep(queue, now_ms)
    found = replace(found, swept=sum(swept))
    return (yield from _walk([(b"0", lambda cursor: audit_behind(queue, day, cursor))], found))


def _walk(parts: list[tuple[bytes, Any]], found: Audit) -> Generator[Command[Page], Page, Audit]:
    for first, page_of in parts:
        cursor = first
        while cursor:
            page = yield page_of(cursor)
            cursor = page.cursor
            found = replace(
                found,
                vanished=found.vanished + page.vanished,
                repaired=found.repaired + page.repaired,
                quarantined=found.quarantined + page.quarantined,
            )
    return found


def _parts(queue: QueueKeys, day: str) -> list[tuple[bytes, Any]]:
    """First cursor and command of each part.

    Lanes come before the index, which gets what they find; groups before the bodies of their members.
    """
    return [
        *((b"-", lambda cursor, lane=lane: audit_lane(queue, lane, day, cursor)) for lane in LANES),
        (b"0 0", lambda cursor: audit_index(queue, day, cursor)),
        *((b"-", lambda cursor, lane=lane: audit_entries(queue, lane, day, cursor)) for lane in LANES),
        *(
            (b"0", lambda cursor, which=which: audit_sets(queue, which, day, cursor))
            for which in range(_ZSETS)
        ),
        (b"0", lambda cursor: audit_groups(queue, day, cursor)),
        (b"0", lambda cursor: audit_parked(queue, day, cursor)),
    ]


def audit_lane(queue: QueueKeys, lane: Lane, day: str, cursor: bytes) -> Command[Page]:
    """Issue again what was handed out and is nobody's."""
    keys = (
        queue.lanes[lane], queue.lanes[Lane.FRONT], queue.index, queue.parked, queue.archived, queue.config,
        queue.stats, queue.stats_of(day),
    )  # fmt: skip
    return Command(script("audit_lane"), keys, (lane.value, cursor, _BODIES), _parse)


def audit_index(queue: QueueKeys, day: str, cursor: bytes) -> Command[Page]:
    """Drop records that point to no entry."""
    keys = (*queue.lanes.values(), queue.index, queue.stats, queue.stats_of(day))
    return Command(script("audit_index"), keys, (cursor, _RECORDS, _BYTES), _parse)


def audit_entries(queue: QueueKeys, lane: Lane, day: str, cursor: bytes) -> Command[Page]:
    """Give entries a record in the index, if it has fewer than there are entries. After ``audit_index``."""
    kept = (queue.index, queue.parked, queue.archived)
    keys = (*queue.lanes.values(), *kept, queue.stats, queue.stats_of(day))
    return Command(script("audit_entries"), keys, (lane.value, cursor, _BODIES), _parse)


def audit_sets(queue: QueueKeys, which: int, day: str, cursor: bytes) -> Command[Page]:
    """Drop ids without a body from one of the sorted sets, counted from 0."""
    keys = (*_zsets(queue), queue.parked, queue.stats, queue.stats_of(day))
    return Command(script("audit_sets"), keys, (which + 1, cursor, _RECORDS), _parse)


def audit_groups(queue: QueueKeys, day: str, cursor: bytes) -> Command[Page]:
    """Drop members without a body, and make again what a group needs to become a batch."""
    groups = (queue.aggregating, queue.groups, queue.grouped)
    keys = (*groups, queue.parked, queue.stats, queue.stats_of(day))
    return Command(script("audit_groups"), keys, (cursor, _RECORDS), _parse)


def audit_behind(queue: QueueKeys, day: str, cursor: bytes) -> Command[Page]:
    """Make those due that wait behind a lock that does not know of them. After the sweep."""
    keys = (queue.scheduled, queue.unique, queue.owners, queue.stats, queue.stats_of(day))
    return Command(script("audit_behind"), keys, (cursor, _RECORDS, queue.hints), _parse)


def audit_parked(queue: QueueKeys, day: str, cursor: bytes) -> Command[Page]:
    """Set aside bodies that belong to no task."""
    groups = (queue.aggregating, queue.groups, queue.grouped)
    keys = (queue.parked, queue.index, *_zsets(queue), *groups, queue.stats, queue.stats_of(day))
    return Command(script("audit_parked"), keys, (cursor, _BODIES), _parse)


def _zsets(queue: QueueKeys) -> tuple[bytes, bytes, bytes, bytes]:
    return queue.scheduled, queue.retry, queue.completed, queue.archived


def _parse(reply: Any) -> Page:
    return Page(*reply)
