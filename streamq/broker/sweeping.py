"""The sweep: records that stand beside tasks and outlived them.

Whoever ends a task tidies up behind it; what a worker that died, a purge or a recovery left is found
here: locks, owners, marks, progress, places in batches, counters of limits. A task that waits behind
the lock of one that has ended is made ready. Nothing is decided here: ``tidy`` does that, in one script
that sees task and record together. The sweep only reads which ids there are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.working import MAX_SETTLE_TASKS, Tidied, tidy

Steps = Generator[Command[Any], Any, Tidied]

_PAGE = 100
"""Records that one look brings, about; a small hash comes whole."""


class _Scanned(NamedTuple):
    cursor: bytes
    fields: list[bytes]
    values: list[bytes]


def sweep(queue: QueueKeys, now_ms: int) -> Steps:
    """Every step of a sweep, one after the other: send each command, and hand its reply in.

    ``now_ms`` is Redis's time. A queue whose tasks have nothing beside them costs one command.
    """
    beside = (queue.owners, queue.unique, queue.cancels, queue.progress, queue.grouped, queue.limiters)
    done = Tidied(0, 0, 0)
    if not (yield _exist(beside)):
        return done
    yield _expire(queue.limiters, now_ms)
    for hash_ in (queue.owners, queue.progress, queue.grouped):
        done = _added(done, (yield from _sweep_ids(queue, hash_)))
    done = _added(done, (yield from _sweep_locks(queue)))
    return _added(done, (yield from _sweep_marks(queue)))


def _sweep_ids(queue: QueueKeys, hash_: bytes) -> Steps:
    """Tidy up behind every task that has a field in the hash."""
    done, cursor = Tidied(0, 0, 0), b""
    while cursor != b"0":
        page: _Scanned = yield _scan(hash_, cursor or b"0")
        cursor = page.cursor
        done = _added(done, (yield from _tidy(queue, page.fields)))
    return done


def _sweep_locks(queue: QueueKeys) -> Steps:
    """Give locks that nobody owns back to their task, so that tidying up behind it finds them."""
    done, cursor = Tidied(0, 0, 0), b""
    while cursor != b"0":
        page: _Scanned = yield _scan(queue.unique, cursor or b"0")
        cursor = page.cursor
        keys = {
            record.partition(b" ")[2]: name.removeprefix(b"+")
            for name, record in zip(page.fields, page.values, strict=True)
        }
        if not keys:
            continue
        owned: list[bytes | None] = yield _owned(queue, list(keys))
        lost = [holder for holder, key in zip(keys, owned, strict=True) if key is None]
        for holder in lost:
            # Should the lock be freed meanwhile, then this is the record that the next sweep finds.
            yield _own(queue, holder, keys[holder])
        done = _added(done, (yield from _tidy(queue, lost)))
    return done


def _sweep_marks(queue: QueueKeys) -> Steps:
    """Drop marks on entries that are gone."""
    done, cursor = Tidied(0, 0, 0), b""
    while cursor != b"0":
        page: _Scanned = yield _scan(queue.cancels, cursor or b"0")
        cursor = page.cursor
        for marks in _pages(page.fields):
            done = _added(done, (yield tidy(queue, (), marks)))
    return done


def _tidy(queue: QueueKeys, task_ids: list[bytes]) -> Steps:
    done = Tidied(0, 0, 0)
    for ids in _pages(task_ids):
        done = _added(done, (yield tidy(queue, ids)))
    return done


def _pages(items: list[bytes]) -> Iterable[list[bytes]]:
    return (items[start : start + MAX_SETTLE_TASKS] for start in range(0, len(items), MAX_SETTLE_TASKS))


def _added(one: Tidied, other: Tidied) -> Tidied:
    return Tidied(*(mine + yours for mine, yours in zip(one, other, strict=True)))


def _exist(keys: tuple[bytes, ...]) -> Command[int]:
    return Command(None, keys, ("EXISTS", *keys), int)


def _expire(limiters: bytes, now_ms: int) -> Command[int]:
    return Command(None, (limiters,), ("ZREMRANGEBYSCORE", limiters, "-inf", now_ms), int)


def _scan(hash_: bytes, cursor: bytes) -> Command[_Scanned]:
    return Command(None, (hash_,), ("HSCAN", hash_, cursor, "COUNT", _PAGE), _parse_scan)


def _parse_scan(reply: Any) -> _Scanned:
    cursor, pairs = reply
    return _Scanned(cursor, pairs[::2], pairs[1::2])


def _owned(queue: QueueKeys, task_ids: list[bytes]) -> Command[list[bytes | None]]:
    return Command(None, (queue.owners,), ("HMGET", queue.owners, *task_ids), list)


def _own(queue: QueueKeys, task_id: bytes, key: bytes) -> Command[int]:
    return Command(None, (queue.owners,), ("HSETNX", queue.owners, task_id, key), int)
