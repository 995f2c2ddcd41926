"""Commands by which queues, tasks and workers are steered: pause, resume, remove, cancel, order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from streamq.broker.command import Command, Word
from streamq.broker.keys import QueueKeys
from streamq.broker.moving import task_keys
from streamq.broker.scripts import script
from streamq.errors import TaskFinished, TaskInBatch, TaskNotFound
from streamq.model.queue_limits import QueueLimits

_BATCH = b"batch:"


def pause(queue: QueueKeys) -> Command[bytes]:
    """Hand nothing out. Answers ok or already."""
    return Command(script("pause"), _pause_keys(queue), ("pause", queue.hints), bytes)


def resume(queue: QueueKeys) -> Command[bytes]:
    """Hand out again. Answers ok or already."""
    return Command(script("pause"), _pause_keys(queue), ("resume", queue.hints), bytes)


def set_limits(queue: QueueKeys, limits: QueueLimits) -> list[Command[int]]:
    """Let the queue take no more than that. What was counted under former rates is forgotten.

    The quick enqueue script sees in the producers, where it looks anyway, whether there are limits. In
    this order a failure half-way leaves them without effect, or with a mark that costs a round trip.
    """
    packed = limits.pack()
    forget = _native(queue.rates, "DEL")
    if packed is None:
        return [_native(queue.producers, "HDEL", "limits"), _native(queue.config, "HDEL", "limits"), forget]
    return [
        _native(queue.config, "HSET", "limits", packed),
        _native(queue.producers, "HSET", "limits", "1"),
        forget,
    ]


def _native(key: bytes, command: str, *words: Word) -> Command[int]:
    return Command(None, (key,), (command, key, *words), int)


class Removed(NamedTuple):
    """The answer to a removal."""

    word: bytes
    """ok; active, full (refused); changed (ask again)."""
    tasks: int
    schedules: int
    """Of both: removed, or in the way."""


def remove(
    queue: QueueKeys, days: Iterable[str], limiters: Sequence[str], *, force: bool
) -> Command[Removed]:
    """Remove every key of the queue, also those of these days and limiters, unless tasks are active."""
    zsets = (queue.scheduled, queue.retry, queue.completed, queue.archived, queue.aggregating)
    first = (*queue.lanes.values(), *zsets, queue.limiters, queue.cron)
    dynamic = (key for name in limiters for key in (queue.limiter(name), queue.turn(name)))
    other = dict.fromkeys((*queue.every, *map(queue.stats_of, days), *dynamic))
    keys = (*first, *(key for key in other if key not in first))
    args = (int(force), len(limiters))
    return Command(script("remove"), keys, args, lambda reply: Removed(*reply))


def has_content(queue: QueueKeys) -> Command[bool]:
    """Whether somebody has enqueued into the queue since it was removed."""
    return Command(None, (queue.config,), ("HEXISTS", queue.config, "created"), bool)


def cancel(queue: QueueKeys, task_id: str, mark: str, day: str) -> Command[bytes]:
    """Cancel a task, or mark it for the worker that runs it.

    Answers ok, asked, missing, finished, or ``batch:`` and the id of the batch it is part of.
    """
    keys = (
        *task_keys(queue),
        queue.aggregating,
        queue.groups,
        queue.grouped,
        queue.unique,
        queue.owners,
        queue.progress,
        queue.cancels,
        queue.stats,
        queue.stats_of(day),
    )
    return Command(script("cancel"), keys, (task_id, mark, queue.hints, queue.done("")), bytes)


def judge_cancel(queue: str, task_id: str, word: bytes) -> bool:
    """What the answer to a cancel means: True, it is done; False, a worker runs the task and is told.

    Raises TaskNotFound, TaskFinished, TaskInBatch.
    """
    if word == b"missing":
        raise TaskNotFound(queue, task_id, "no such task: it is finished and was not kept, or never existed")
    if word == b"finished":
        raise TaskFinished(queue, task_id, "is finished; there is nothing to cancel")
    if word.startswith(_BATCH):
        raise TaskInBatch(queue, task_id, word.removeprefix(_BATCH).decode())
    return word == b"ok"


def unregister(registry: bytes, queue: str) -> Command[int]:
    """Take the queue out of the registry."""
    return Command(None, (registry,), ("SREM", registry, queue), int)


def _pause_keys(queue: QueueKeys) -> tuple[bytes, ...]:
    return (queue.config, *queue.lanes.values())
