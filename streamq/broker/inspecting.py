"""Commands that look at tasks, queues and workers, and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamq.broker.command import Command
from streamq.broker.keys import GROUP, Keys, QueueKeys
from streamq.broker.moving import task_keys
from streamq.broker.scripts import script
from streamq.broker.working import Entry, length, parse_entries
from streamq.codec import decode_message
from streamq.errors import MessageError, StoredDataError
from streamq.model.info import TaskInfo, due_moment, effective_max_retries, effective_timeout_s, moment
from streamq.model.lanes import PRIORITIES, Lane
from streamq.model.message import Message
from streamq.model.parked import Parked
from streamq.model.progress import Progress, unpacked
from streamq.model.queue_limits import QueueLimits
from streamq.model.states import State


@dataclass(frozen=True, slots=True)
class Found:
    """Where a task was found; ``state`` is None when it is nowhere."""

    state: State | None
    entry: Entry | None = None
    worker: str | None = None
    idle_ms: int = 0
    time_ms: int | None = None
    parked: Parked | None = None
    orphan: bool = False
    group: str | None = None
    """The group that it waits in, or will join when it is due."""
    progress: Progress | None = None
    batch: str | None = None
    """The batch that it went into: all else said here is that batch's."""

    @property
    def message_bytes(self) -> bytes:
        """The stored message, wherever it was."""
        return self.entry.message if self.entry else self.parked.message if self.parked else b""


def find(queue: QueueKeys, task_id: str) -> Command[Found]:
    """Find one task in whatever state it is."""
    keys = (*task_keys(queue), queue.groups, queue.grouped, queue.progress)
    return Command(script("find"), keys, (task_id,), _parse_answer)


def _parse_answer(reply: Any) -> Found:
    found, said = reply
    return replace(_parse_found(found), progress=unpacked(said)) if said else _parse_found(found)


def _parse_found(reply: Any) -> Found:
    match reply:
        case [b"missing"]:
            return Found(None)
        case [b"orphan"]:
            return Found(None, orphan=True)
        case [b"ready", place, fields]:
            return Found(State.READY, entry=_entry(place, fields))
        case [b"active", place, fields, worker, idle_ms]:
            return Found(State.ACTIVE, entry=_entry(place, fields), worker=worker.decode(), idle_ms=idle_ms)
        case [b"batch", batch, found]:
            return replace(_parse_found(found), batch=batch.decode())
        case [state, score, value, *group]:
            return Found(
                State(state.decode()),
                time_ms=int(float(score)),
                parked=Parked.unpack(value),
                group=group[0].decode().partition("\n")[2] if group else None,
            )
    raise MessageError("an answer of find that this version does not know")


def _entry(place: bytes, fields: list[bytes]) -> Entry:
    return parse_entries(Lane(place[:1].decode()), [(place[1:], fields)])[0]


_WAITING = frozenset({State.SCHEDULED, State.RETRY, State.AGGREGATING})


def task_info(queue: str, task_id: str, found: Found, lease_ms: int) -> TaskInfo:
    """What was found, as the snapshot that users see. ``found.state`` must not be None."""
    try:
        message = decode_message(found.message_bytes)
    except StoredDataError:
        message = None
    shown = message or Message.new(type="?", payload=b"")
    home = found.entry.home if found.entry else found.parked.lane if found.parked else Lane.NORMAL
    crashes = found.entry.crashes if found.entry else found.parked.crashes if found.parked else 0
    state = found.state or State.READY
    return TaskInfo(
        id=task_id,
        type=shown.type,
        queue=queue,
        priority=next((name for name, lane in PRIORITIES.items() if lane is home), "normal"),
        state=state,
        retried=shown.retried,
        crashes=crashes,
        max_retries=effective_max_retries(shown),
        timeout=effective_timeout_s(shown),
        deadline=moment(shown.deadline_ms),
        expires=moment(shown.expires_ms),
        retention=(shown.retention_ms or 0) / 1000,
        headers=shown.headers,
        enqueued_at=moment(shown.enqueued_ms),
        next_at=due_moment(found.time_ms) if state in _WAITING else None,
        error=shown.error,
        failed_at=moment(shown.failed_ms),
        completed_at=moment(shown.completed_ms),
        reason=found.parked.reason if found.parked else None,
        worker=found.worker,
        progress=found.progress,
        orphaned=state is State.ACTIVE and found.idle_ms >= lease_ms,
        group=found.group if shown.group is None else shown.group,
        batch=found.batch,
        message=message,
    )


def queue_names(keys: Keys) -> Command[list[str]]:
    """The registered queues, sorted."""
    return Command(None, (keys.queues,), ("SMEMBERS", keys.queues), _parse_names)


def _parse_names(reply: Any) -> list[str]:
    # A name that others put there and that is no text is no queue's.
    texts = (name.decode("utf-8", "replace") for name in reply)
    return sorted(text for text in texts if "\ufffd" not in text)


@dataclass(frozen=True, slots=True)
class Pending:
    """One active entry: who holds it and for how long it has been idle."""

    lane: Lane
    entry_id: bytes
    worker: str
    idle_ms: int


def lane_lengths(queue: QueueKeys) -> list[Command[int]]:
    """Entries of each lane, ready and active together; one command a lane."""
    return [length(key) for key in queue.lanes.values()]


def pending_counts(queue: QueueKeys) -> list[Command[int]]:
    """Active entries of each lane; a lane without group answers with an error, which means none."""
    return [
        Command(None, (key,), ("XPENDING", key, GROUP), lambda reply: int(reply[0]))
        for key in queue.lanes.values()
    ]


def pending(queue: QueueKeys, lane: Lane, count: int, start: str = "-") -> Command[list[Pending]]:
    """The oldest active entries of a lane, from ``start`` on."""
    key = queue.lanes[lane]

    def parse(reply: Any) -> list[Pending]:
        return [Pending(lane, row[0], row[1].decode(), row[2]) for row in reply]

    return Command(None, (key,), ("XPENDING", key, GROUP, start, "+", count), parse)


def cardinalities(queue: QueueKeys) -> list[Command[int]]:
    """Scheduled, retry, completed, archived and aggregating tasks; one command each."""
    zsets = (queue.scheduled, queue.retry, queue.completed, queue.archived, queue.aggregating)
    return [Command(None, (key,), ("ZCARD", key), int) for key in zsets]


def counters(key: bytes) -> Command[dict[str, int]]:
    """The counters of a stats hash."""
    return Command(None, (key,), ("HGETALL", key), _parse_counters)


def _parse_counters(reply: Any) -> dict[str, int]:
    pairs: Sequence[bytes] = reply
    return {name.decode(): int(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def is_paused(queue: QueueKeys) -> Command[bool]:
    """Whether the queue hands nothing out."""
    return Command(None, (queue.config,), ("HEXISTS", queue.config, "paused"), bool)


def limits(queue: QueueKeys) -> Command[QueueLimits]:
    """What the queue takes from producers."""
    return Command(None, (queue.config,), ("HGET", queue.config, "limits"), QueueLimits.unpack)


def is_registered(keys: Keys, queue: str) -> Command[bool]:
    """Whether the registry knows the queue."""
    return Command(None, (keys.queues,), ("SISMEMBER", keys.queues, queue), bool)


def entry(queue: QueueKeys, row: Pending) -> Command[Entry | None]:
    """The content of one entry; None when it is gone."""
    key = queue.lanes[row.lane]

    def parse(reply: Any) -> Entry | None:
        return parse_entries(row.lane, reply)[0] if reply else None

    return Command(None, (key,), ("XRANGE", key, row.entry_id, row.entry_id), parse)
