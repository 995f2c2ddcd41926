"""Commands of the working side: read entries, hold their leases, settle them, recover the dead's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamq.broker.command import Command, Word
from streamq.broker.keys import GROUP, QueueKeys
from streamq.broker.moving import task_keys
from streamq.broker.scripts import script
from streamq.model.lanes import LANES, Lane

MAX_SETTLE_TASKS = 250
"""Tasks of one settling call: about 2 ms of Redis's time."""

RECOVER_PAGE = 100
"""Entries one recover call looks at."""


class Entry(NamedTuple):
    """One delivered stream entry. Its id is the fencing token of everything done to the task."""

    lane: Lane
    entry_id: bytes
    task_id: bytes
    message: bytes
    home: Lane
    """The lane the task was enqueued to; differs from ``lane`` only in front."""
    crashes: int


@dataclass(frozen=True, slots=True)
class Settle:
    """One task to be settled by retain, retry or archive: the words that each script takes per task."""

    words: tuple[Word, ...]


def make_group(lane: bytes) -> Command[bool]:
    """Create the lane's consumer group at its very beginning; True also when it is there already.

    Never ``$``: tasks enqueued before the first worker started must be delivered.
    """
    return Command(None, (lane,), ("XGROUP", "CREATE", lane, GROUP, "0", "MKSTREAM"), lambda _: True)


def read(
    queue_lanes: Sequence[tuple[Lane, bytes]], consumer: str, count: int, block_ms: int | None = None
) -> Command[list[list[Entry]]]:
    """Take at most ``count`` undelivered entries of *each* lane (XREADGROUP counts per key).

    Answers one list per lane, in order. With ``block_ms`` waits that long when all are empty.
    """
    keys = tuple(key for _, key in queue_lanes)
    block: tuple[Word, ...] = () if block_ms is None else ("BLOCK", block_ms)
    streams: tuple[Word, ...] = (*keys, *(">" for _ in keys))
    words: tuple[Word, ...] = (
        "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, *block, "STREAMS", *streams,
    )  # fmt: skip

    def parse(reply: Any) -> list[list[Entry]]:
        if not reply:
            return [[] for _ in keys]
        found = dict(reply)
        return [parse_entries(lane, found.get(key, ())) for lane, key in queue_lanes]

    return Command(None, keys, words, parse)


def length(lane: bytes) -> Command[int]:
    """Entries in a lane, active ones included."""
    return Command(None, (lane,), ("XLEN", lane), int)


def read_own(lane: Lane, key: bytes, consumer: str, after: bytes) -> Command[list[list[Entry]]]:
    """Entries that were delivered to this consumer before and are still active, after the id ``after``."""
    words = ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", RECOVER_PAGE, "STREAMS", key, after)

    def parse(reply: Any) -> list[list[Entry]]:
        return [parse_entries(lane, reply[0][1] if reply else ())]

    return Command(None, (key,), words, parse)


def client_id() -> Command[int]:
    """Redis's number of the connection that asks."""
    return Command(None, (), ("CLIENT", "ID"), int)


def unblock(client: int) -> Command[int]:
    """Wake the connection of that number from a blocking read, as if its time were up."""
    return Command(None, (), ("CLIENT", "UNBLOCK", client, "TIMEOUT"), int)


def parse_entries(lane: Lane, rows: Iterable[Any]) -> list[Entry]:
    """Entries as Redis lists them.

    A row without the expected fields becomes an entry with an empty message, so that the executor
    archives it instead of the reader falling over it.
    """
    entries = []
    for entry_id, fields in rows:
        # What enqueue wrote: id, m. Anything longer or odd takes the slow way.
        if fields is not None and len(fields) == 4 and fields[0] == b"id" and fields[2] == b"m":
            entries.append(Entry(lane, entry_id, fields[1], fields[3], lane, 0))
        else:
            entries.append(_odd_entry(lane, entry_id, fields or ()))
    return entries


def _odd_entry(lane: Lane, entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    crashes = named.get(b"c", b"0")
    home = named.get(b"l", lane.encode()).decode("ascii", "replace")
    return Entry(
        lane=lane,
        entry_id=entry_id,
        task_id=named.get(b"id", entry_id),
        message=named.get(b"m", b""),
        home=Lane(home) if home in set(LANES) else Lane.NORMAL,
        crashes=int(crashes) if crashes.isdigit() else 0,
    )


def extend(lane: bytes, consumer: str, entry_ids: Sequence[bytes]) -> Command[set[bytes]]:
    """Renew the leases of these entries; answers those that are still there. The others are lost.

    XCLAIM with idle 0 by the present owner resets the idle time, and JUSTID leaves the delivery
    count alone. An entry that was recovered no longer exists under its id, so nothing is stolen back.
    """
    words: tuple[Word, ...] = ("XCLAIM", lane, GROUP, consumer, 0, *entry_ids, "JUSTID")
    return Command(None, (lane,), words, set)


def complete(
    queue: QueueKeys, lane: Lane, day: str, entry_ids: Sequence[bytes], task_ids: Sequence[bytes]
) -> Command[list[bytes]]:
    """Settle tasks that succeeded and are not kept. Answers one word per task: ok or lost."""
    keys = (queue.lanes[lane], queue.index, queue.stats, queue.stats_of(day))
    count = len(entry_ids)

    def parse(reply: Any) -> list[bytes]:
        return [b"ok"] * count if reply == b"ok" else reply.split()

    return Command(script("complete"), keys, (*entry_ids, *task_ids), parse)


def retain(queue: QueueKeys, lane: Lane, day: str, tasks: Sequence[Settle]) -> Command[list[bytes]]:
    """Settle tasks that succeeded and are kept.

    Words per task: entry id, task id, retention in ms, parked value.
    """
    keys = (*_settle_keys(queue, lane), queue.completed, queue.stats, queue.stats_of(day))
    return Command(script("retain"), keys, (queue.done(""), *_flat(tasks)), _parse_words)


def retry(queue: QueueKeys, lane: Lane, day: str, tasks: Sequence[Settle]) -> Command[list[bytes]]:
    """Settle tasks to be tried again.

    Words per task: entry id, task id, delay in ms, why (1 a failure, 0 none, c a cancel), parked value.
    Answers one word per task: ok, lost, or ``cancelled:`` and a mark.
    """
    keys = (*_settle_keys(queue, lane), queue.retry, queue.cancels, queue.stats, queue.stats_of(day))
    return Command(script("retry"), keys, (queue.hints, lane.value, *_flat(tasks)), _parse_words)


def archive(
    queue: QueueKeys, lane: Lane, day: str, tasks: Sequence[Settle], size: int, age_ms: int
) -> Command[list[bytes]]:
    """Settle tasks that failed for good. Words per task: entry id, task id, parked value.

    Answers one word per task: ok, lost, or ``cancelled:`` and a mark.
    """
    keys = (*_settle_keys(queue, lane), queue.archived, queue.cancels, queue.stats, queue.stats_of(day))
    args = (queue.done(""), size, age_ms, lane.value, *_flat(tasks))
    return Command(script("archive"), keys, args, _parse_words)


def discard(queue: QueueKeys, lane: Lane, day: str, tasks: Sequence[Settle]) -> Command[list[bytes]]:
    """Settle tasks that are forgotten without a result. Words per task: entry id, task id, counter."""
    keys = (queue.lanes[lane], queue.index, queue.cancels, queue.stats, queue.stats_of(day))
    return Command(script("discard"), keys, (lane.value, queue.done(""), *_flat(tasks)), _parse_words)


def marks(queue: QueueKeys, lane: Lane, entry_ids: Sequence[bytes]) -> Command[dict[bytes, bytes]]:
    """The marks of those entries that are to be cancelled, by entry id."""
    letter = lane.value.encode()
    words: tuple[Word, ...] = ("HMGET", queue.cancels, *(letter + entry_id for entry_id in entry_ids))

    def parse(reply: Any) -> dict[bytes, bytes]:
        return {entry_id: mark for entry_id, mark in zip(entry_ids, reply, strict=True) if mark is not None}

    return Command(None, (queue.cancels,), words, parse)


def settle_batch(
    queue: QueueKeys, lane: Lane, day: str, batch: Settle, aside: Sequence[tuple[bytes, bytes]]
) -> Command[list[bytes]]:
    """Settle a batch that succeeded without some members, which are archived by themselves.

    Words of the batch: entry id, task id, retention in ms (0: not kept), parked value. ``aside`` has
    the task id and the parked value of each such member.
    """
    keys = (
        *_settle_keys(queue, lane),
        queue.completed,
        queue.archived,
        queue.grouped,
        queue.stats,
        queue.stats_of(day),
    )
    members = [word for pair in aside for word in pair]
    return Command(script("settle_batch"), keys, (queue.done(""), *batch.words, *members), _parse_words)


def release(queue: QueueKeys, lane: Lane, entry_ids: Sequence[bytes]) -> Command[list[bytes]]:
    """Give tasks back unfinished, at the front.

    Answers one word per task: ok, lost, or ``cancelled:`` and a mark.
    """
    keys = (queue.lanes[lane], queue.lanes[Lane.FRONT], queue.index, queue.cancels)
    return Command(script("release"), keys, (lane.value, *entry_ids), _parse_words)


class Said(NamedTuple):
    """What the handler of one entry says of its progress, packed."""

    entry: Entry
    said: bytes


def progress(queue: QueueKeys, consumer: str, tasks: Sequence[Said]) -> Command[list[bytes]]:
    """Note the progress of tasks that this consumer holds. Answers one word per task: ok or lost.

    At most ``MAX_SETTLE_TASKS``.
    """
    words = [
        word for entry, said in tasks for word in (entry.lane.encode() + entry.entry_id, entry.task_id, said)
    ]
    return Command(
        script("progress"), (*queue.lanes.values(), queue.progress), (consumer, *words), _parse_words
    )


class Tidied(NamedTuple):
    """What one tidy call did."""

    freed: int
    """Locks of tasks that have ended."""
    woken: int
    """Tasks that waited behind a keep-last lock and have it now."""
    outdated: int
    """Tasks dropped, because a newer one waited behind them while they were to be tried again."""


def tidy(queue: QueueKeys, task_ids: Sequence[bytes], marks: Sequence[bytes] = ()) -> Command[Tidied]:
    """Free what stands beside these tasks, where they have ended; leaves the others alone.

    ``marks`` are lane letters and entry ids of which a cancel mark may be left. At most
    ``MAX_SETTLE_TASKS`` of both.
    """
    keys = (
        *task_keys(queue),
        queue.grouped,
        queue.unique,
        queue.owners,
        queue.cancels,
        queue.progress,
    )
    args: tuple[Word, ...] = (queue.hints, len(task_ids), *task_ids, *marks)
    return Command(script("tidy"), keys, args, lambda reply: Tidied(*reply), follows=True)


class Recovered(NamedTuple):
    """What one recover call did to one lane."""

    cursor: bytes
    front: int
    retry: int
    archived: int
    vanished: int
    pending: int
    """Entries of the lane that are still active, whoever holds them."""
    deleted: int
    """Tasks that are gone because their cancel asked for it."""
    crashed: Sequence[bytes]
    """Ids of the tasks that were archived for their crashes."""
    taken: Sequence[bytes]
    """Ids of all tasks that were taken, whatever became of them."""

    @property
    def finished(self) -> bool:
        """The whole lane has been searched."""
        return self.cursor == b"0-0"


def recover(
    queue: QueueKeys,
    lane: Lane,
    day: str,
    consumer: str,
    *,
    lease_ms: int,
    crash_limit: int,
    backoff_ms: int,
    dead: str = "",
    cursor: bytes = b"0-0",
) -> Command[Recovered]:
    """Take entries whose lease ran out, or all of the consumer ``dead``, and issue their tasks again."""
    keys = (
        queue.lanes[lane],
        queue.lanes[Lane.FRONT],
        queue.index,
        queue.parked,
        queue.retry,
        queue.archived,
        queue.cancels,
        queue.stats,
        queue.stats_of(day),
    )
    args = (
        lane.value,
        consumer,
        dead,
        lease_ms,
        cursor,
        RECOVER_PAGE,
        crash_limit,
        backoff_ms,
        queue.hints,
        queue.done(""),
    )
    return Command(script("recover"), keys, args, lambda reply: Recovered(*reply))


def _settle_keys(queue: QueueKeys, lane: Lane) -> tuple[bytes, ...]:
    return queue.lanes[lane], queue.index, queue.parked


def _flat(tasks: Sequence[Settle]) -> list[Word]:
    return [word for task in tasks for word in task.words]


def _parse_words(reply: Any) -> list[bytes]:
    return reply.split()  # type: ignore[no-any-return]
