"""Commands about schedules: store entries, look what is due, fire, skip, and tell of the past."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamq.broker.command import Command, Word
from streamq.broker.keys import QueueKeys
from streamq.broker.producing import TickGuard, with_tick
from streamq.broker.scripts import script
from streamq.codec import decode_message, encode_message
from streamq.model.info import instant
from streamq.model.schedule import CronEntry, CronTick

LOOK_PAGE = 50
"""Due entries that one look brings."""
HISTORY_KEPT = 1000


class Due(NamedTuple):
    """An entry that is due."""

    member: bytes
    due_ms: int
    stored: bytes

    @property
    def entry_id(self) -> str:
        return _entry_id(self.member)


class Looked(NamedTuple):
    """What is due."""

    now_ms: int
    wait_ms: int
    """Until the next tick of entries that are not listed; 0: more are due now; -1: there is none."""
    orphans: int
    due: list[Due]


def look(queue: QueueKeys) -> Command[Looked]:
    """The entries that are due, with their definitions."""

    def parse(reply: Any) -> Looked:
        now_ms, wait_ms, orphans, rows = reply
        due = zip(rows[::3], map(_integer, rows[1::3]), rows[2::3], strict=True)
        return Looked(now_ms, wait_ms, orphans, [Due(*row) for row in due])

    return Command(script("look_cron"), (queue.cron, queue.cron_due), (LOOK_PAGE,), parse)


def set_cron(
    queue: QueueKeys, entry_id: str, expected: bytes, wanted: bytes, due_ms: int | None
) -> Command[bytes]:
    """Store an entry, if what is stored is as expected (empty: nothing). Answers ok or changed."""
    args = (entry_id, expected, wanted, due_ms or 0, queue.hints)
    return Command(script("set_cron"), (queue.cron, queue.cron_due), args, bytes)


def skip_cron(queue: QueueKeys, member: bytes, expected_ms: int, next_ms: int | None) -> Command[bytes]:
    """Drop what was missed. Answers ok or stale."""
    args = (member, expected_ms, next_ms or 0)
    return Command(script("skip_cron"), (queue.cron_due, queue.ticks), args, bytes)


def stored_entry(queue: QueueKeys, entry_id: str) -> Command[bytes]:
    """One entry as it is stored; empty: there is none."""
    return Command(None, (queue.cron,), ("HGET", queue.cron, entry_id), lambda reply: reply or b"")


def stored_entries(queue: QueueKeys) -> Command[dict[str, bytes]]:
    """All entries of a queue as they are stored."""

    def parse(reply: Any) -> dict[str, bytes]:
        names = (name.decode("utf-8", "replace") for name in reply[::2])
        return dict(zip(names, reply[1::2], strict=True))

    return Command(None, (queue.cron,), ("HGETALL", queue.cron), parse)


def next_ticks(queue: QueueKeys) -> Command[dict[bytes, int]]:
    """Member to next tick in ms."""
    words = ("ZRANGE", queue.cron_due, 0, -1, "WITHSCORES")
    return Command(
        None,
        (queue.cron_due,),
        words,
        lambda reply: dict(zip(reply[::2], map(_integer, reply[1::2]), strict=True)),
    )


def history(queue: QueueKeys, offset: int, limit: int) -> Command[list[CronTick]]:
    """Ticks of the past, the newest first."""
    words = ("LRANGE", queue.ticks, offset, offset + limit - 1)
    return Command(None, (queue.ticks,), words, lambda reply: [_parse_tick(line) for line in reply])


def _parse_tick(line: bytes) -> CronTick:
    size, _, rest = line.partition(b":")
    member, rest = rest[: int(size)], rest[int(size) + 1 :]
    due_ms, fired_ms, word, task_id = rest.split(b" ")
    outcome = word.partition(b":")[0].decode()
    return CronTick(
        _entry_id(member),
        instant(int(due_ms)),
        instant(int(fired_ms)),
        outcome,
        None if task_id == b"-" else task_id.decode(),
    )


def _entry_id(member: bytes) -> str:
    return member.rpartition(b" ")[0].decode("utf-8", "replace")


def _integer(score: bytes) -> int:
    return int(float(score))


def member_of(entry: CronEntry) -> bytes:
    """How the entry's next tick is filed. An entry with another schedule is filed anew."""
    return f"{entry.id} {entry.schedule.digest}".encode()


# What an entry enqueues


def task_words(
    entry: CronEntry, task_id: str, now_ms: int, tick_ms: int, guard: TickGuard | None = None
) -> list[Word]:
    """The three words of an enqueue call for one tick. Raises StoredDataError."""
    message = decode_message(entry.message).copy(
        enqueued_ms=now_ms,
        expires_ms=None if entry.expires_ms is None else now_ms + entry.expires_ms,
        tick=[entry.id, tick_ms],
    )
    name = task_id.encode() + (b" " + entry.dedup_key if entry.dedup_key else b"")
    return [entry.how if guard is None else with_tick(entry.how, guard), name, encode_message(message)]
