"""Commands of the producing side: enqueue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamq.broker.command import Command, Word
from streamq.broker.keys import QueueKeys
from streamq.broker.moving import task_keys
from streamq.broker.scripts import script
from streamq.model.lanes import Lane

MAX_BATCH_TASKS = 250
"""Tasks of one enqueue call: about 2 ms of Redis's time."""
MAX_BATCH_BYTES = 1 << 20

OWN_ID = "-"
"""Conflict letter of an id that StreamQ made, which cannot belong to another task."""
CONFLICT_LETTERS = {"raise": "x", "return": "r", "replace": "p"}
_OWN_ID_CHECKED = "+"
"""The same for a task of which something else is checked."""
_PLAIN = OWN_ID.encode()[0]


@dataclass(frozen=True, slots=True)
class LockRule:
    """The lock that a task takes. Its dedup key follows the task id, after a space."""

    mode: str
    """Mode letter: s, d, w, b, k; upper case where an archived task keeps the lock."""
    on_conflict: str = "x"
    """Conflict letter: x refuse, r return the holder, p replace a holder that waits."""
    window_ms: int = 0


@dataclass(frozen=True, slots=True)
class GroupRule:
    """The group that a task joins, and when the group becomes a batch."""

    task_type: str
    group: str
    grace_ms: int
    """After the last member came."""
    max_delay_ms: int = 0
    """After the first member came; 0: no limit."""
    max_size: int = 0
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class TickGuard:
    """The task is stored only if the cron entry's next tick is the expected one; then the next is set.

    The history notes it, with what became of it.
    """

    entry_id: str
    expected_ms: int
    """0: it is fired by hand, whenever the next tick is, and the schedule goes on as it is."""
    next_ms: int | None
    """None: the entry has no further tick."""


def how(
    lane: Lane,
    conflict: str = OWN_ID,
    delay_ms: int | None = None,
    at_ms: int | None = None,
    *,
    lock: LockRule | None = None,
    group: GroupRule | None = None,
    tick: TickGuard | None = None,
) -> bytes:
    """The first word of a task in an enqueue call: its lane, when it is due, and what is to be checked."""
    when = f"D{delay_ms}" if delay_ms is not None else f"A{at_ms}" if at_ms is not None else ""
    parts = ""
    if lock:
        parts += f"\tu{lock.mode}{lock.on_conflict}{lock.window_ms}"
    if group:
        rule = f"{group.grace_ms},{group.max_delay_ms},{group.max_size}"
        parts += f"\tg{rule},{group.task_type}\n{group.group}"
    if parts and conflict == OWN_ID:
        conflict = _OWN_ID_CHECKED
    words = f"{lane}{conflict}{when}{parts}".encode()
    return with_tick(words, tick) if tick else words


def with_tick(words: bytes, tick: TickGuard) -> bytes:
    """A ``how`` without tick, and the guard of one."""
    part = f"\tc{tick.expected_ms},{tick.next_ms or 0},{tick.entry_id}".encode()
    if words[1] == _PLAIN:
        words = words[:1] + _OWN_ID_CHECKED.encode() + words[2:]
    return words + part


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The answer to one enqueue call."""

    words: Sequence[bytes]
    """One per task, in order; the headers of the two scripts list them."""
    new_queue: bool
    """Nobody has enqueued into this queue since it was last removed: the registry must be told."""
    limited: bool = False
    """The queue has limits. Without words: the call must be sent again, checked."""


def enqueue(
    queue: QueueKeys, producer: str, sequence: int, tasks: Sequence[Word], *, checked: bool = False
) -> Command[Enqueued]:
    """Store tasks, exactly once per (producer, sequence).

    ``tasks`` is flat, three words per task: ``how``, task id, message. At most ``MAX_BATCH_TASKS``.
    ``checked`` where the queue is known to have limits. Otherwise a call of nothing but plain tasks
    takes the quick script, which answers ``limited`` without words, and has done nothing, when the
    queue does have some.
    """
    count = len(tasks) // 3
    runs, plain = _runs(tasks)

    def parse(reply: Any) -> Enqueued:
        if len(reply) == 1:
            return Enqueued((), new_queue=False, limited=True)
        words = reply[1].split()
        if len(words) != count:
            words = words * count
        return Enqueued(words, new_queue=reply[0] == b"new", limited=len(reply) == 3 and bool(reply[2]))

    args = (producer, sequence, queue.hints, *runs)
    if plain and not checked:
        return Command(script("enqueue"), _plain_keys(queue), args, parse)
    return Command(script("enqueue_checked"), _checked_keys(queue), args, parse)


def _runs(tasks: Sequence[Word]) -> tuple[list[Word], bool]:
    """The tasks by runs of the same ``how``, and whether all are plain.

    A run is how, count, ids, messages. Mostly there is one.
    """
    hows = tasks[0::3]
    runs: list[Word] = []
    start, plain = 0, True
    while start < len(hows):
        first = hows[start]
        end = start + 1
        if hows.count(first) == len(hows):
            end = len(hows)
        while end < len(hows) and hows[end] == first:
            end += 1
        plain = plain and first[1] == _PLAIN  # type: ignore[index]  # a how is bytes
        runs += (first, end - start)
        runs += tasks[3 * start + 1 : 3 * end : 3]
        runs += tasks[3 * start + 2 : 3 * end : 3]
        start = end
    return runs, plain


def register(registry: bytes, queue: str) -> Command[int]:
    """Put the queue's name into the registry of queues."""
    return Command(script=None, keys=(registry,), args=("SADD", registry, queue), parse=int)


def _plain_keys(queue: QueueKeys) -> tuple[bytes, ...]:
    lanes = queue.lanes
    return (
        lanes[Lane.HIGH],
        lanes[Lane.NORMAL],
        lanes[Lane.LOW],
        queue.index,
        queue.parked,
        queue.scheduled,
        queue.config,
        queue.producers,
    )


def _checked_keys(queue: QueueKeys) -> tuple[bytes, ...]:
    return (
        *task_keys(queue),
        queue.aggregating,
        queue.groups,
        queue.grouped,
        queue.unique,
        queue.owners,
        queue.progress,
        queue.rates,
        queue.cron_due,
        queue.ticks,
        queue.config,
        queue.producers,
    )
