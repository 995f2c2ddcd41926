"""What the enqueue scripts answer per task, as a handle or as the error of that task alone."""

from __future__ import annotations

from typing import Any, TypeVar

from streamq.client.handles import SyncTaskHandle, TaskHandle
from streamq.errors import (
    DuplicateTask,
    EnqueueRateExceeded,
    MessageError,
    QueueFull,
    StreamQError,
    TaskIdConflict,
    TaskTooLarge,
    TypeNotAllowed,
)

H = TypeVar("H", TaskHandle[Any], SyncTaskHandle[Any])

CREATED = frozenset({b"ready", b"scheduled", b"aggregating"})
"""The words of a task that was stored: nearly always, so callers look here first."""


def accepted(handle: H, word: bytes) -> H:
    """The handle as this answer makes it. Raises the error where the answer is one."""
    answer = read(handle, word)
    if isinstance(answer, StreamQError):
        raise answer
    return answer


def settle(results: list[Any], place: int, word: bytes) -> None:
    """Put the answer to one of many into their results, unless an error stands there already."""
    handle = results[place]
    if not isinstance(handle, StreamQError):
        results[place] = read(handle, word)


def read(handle: H, word: bytes) -> H | StreamQError:
    """The handle or the error that a word means. The handle may come to refer to another task."""
    name, _, rest = word.decode().partition(":")
    if name in _HANDLES:
        if rest:
            handle.id = rest
        handle.created = word in CREATED
        return handle
    return _error(handle.queue, handle.id, name, rest)


_HANDLES = {"ready", "scheduled", "aggregating", "exists", "existing", "merged"}


def _error(queue: str, task_id: str, name: str, rest: str) -> StreamQError:
    match name:
        case "conflict":
            return TaskIdConflict(queue, task_id, "another task has this id; see the on_conflict option")
        case "duplicate":
            return DuplicateTask(queue, rest, "holds the lock of this unique task; see Unique.on_conflict")
        case "full":
            return QueueFull(queue, "is full: it has as many tasks as its limit allows; try again later")
        case "rate":
            return EnqueueRateExceeded(queue, int(rest) / 1000)
        case "large":
            return TaskTooLarge(queue, "takes no task as large as this one; pass a reference to large data")
        case "type":
            return TypeNotAllowed(queue, "takes no tasks of this type; see its limits")
    return MessageError(f"an answer of enqueue that this version does not know: {name[:20]}")
