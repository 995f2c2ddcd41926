"""Commands of the producing side: enqueue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamq.broker.command import Command, Word
from streamq.broker.keys import QueueKeys
from streamq.broker.scripts import script
from streamq.model.lanes import Lane

MAX_BATCH_TASKS = 250
"""Tasks of one enqueue call: about 2 ms of Redis's time."""
MAX_BATCH_BYTES = 1 << 20

OWN_ID = "-"
"""Conflict letter of an id that StreamQ made, which cannot belong to another task."""
CONFLICT_LETTERS = {"raise": "x", "return": "r", "replace": "p"}


def how(lane: Lane, conflict: str = OWN_ID, delay_ms: int | None = None, at_ms: int | None = None) -> bytes:
    """The first word of a task in an enqueue call: its lane, what to do about its id, and when it is due."""
    when = f"D{delay_ms}" if delay_ms is not None else f"A{at_ms}" if at_ms is not None else ""
    return f"{lane}{conflict}{when}".encode()


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The answer to one enqueue call."""

    words: Sequence[bytes]
    """One per task, in order: ready, scheduled, exists or conflict."""
    new_queue: bool
    """Nobody has enqueued into this queue since it was last removed: the registry must be told."""


def enqueue(queue: QueueKeys, producer: str, sequence: int, tasks: Sequence[Word]) -> Command[Enqueued]:
    """Store tasks, exactly once per (producer, sequence).

    ``tasks`` is flat, three words per task: ``how``, task id, message. At most ``MAX_BATCH_TASKS``.
    """
    count = len(tasks) // 3

    def parse(reply: Any) -> Enqueued:
        words = reply[1].split()
        return Enqueued(words if len(words) == count else words * count, new_queue=reply[0] == b"new")

    return Command(
        script=script("enqueue"),
        keys=_enqueue_keys(queue),
        args=(producer, sequence, queue.hints, *_runs(tasks)),
        parse=parse,
    )


def _runs(tasks: Sequence[Word]) -> list[Word]:
    """The tasks by runs of the same ``how``: how, count, ids, messages. Mostly there is one run."""
    hows = tasks[0::3]
    runs: list[Word] = []
    start = 0
    while start < len(hows):
        end = start + 1
        if hows.count(hows[start]) == len(hows):
            end = len(hows)
        while end < len(hows) and hows[end] == hows[start]:
            end += 1
        runs += (hows[start], end - start)
        runs += tasks[3 * start + 1 : 3 * end : 3]
        runs += tasks[3 * start + 2 : 3 * end : 3]
        start = end
    return runs


def register(registry: bytes, queue: str) -> Command[int]:
    """Put the queue's name into the registry of queues."""
    return Command(script=None, keys=(registry,), args=("SADD", registry, queue), parse=int)


def _enqueue_keys(queue: QueueKeys) -> tuple[bytes, ...]:
    lanes = queue.lanes
    return (
        lanes[Lane.HIGH],
        lanes[Lane.NORMAL],
        lanes[Lane.LOW],
        queue.index,
        queue.parked,
        queue.scheduled,
        queue.completed,
        queue.archived,
        queue.config,
        queue.producers,
    )
