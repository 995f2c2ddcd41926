"""What a look at a task means to someone who waits for its result."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamq.broker.inspecting import Found
from streamq.codec import decode_message, decode_result
from streamq.errors import ResultNotKept, StoredDataError, TaskCancelled, TaskFailed
from streamq.model.parked import Reason
from streamq.model.states import State

RECHECK_S = 5.0
"""Notices are hints: one may be lost with a connection. This bounds how long that can go unseen."""


class Verdict(NamedTuple):
    """Whether the wait is over, and with what."""

    over: bool
    result: Any = None


WAIT_ON = Verdict(over=False)


def judge(queue: str, task_id: str, found: Found) -> Verdict:
    """Decide from one look.

    Raises TaskFailed for an archived task (TaskCancelled for a cancelled one), ResultNotKept for one that
    is gone, MessageError when the stored result cannot be read.
    """
    if found.state is None:
        problem = (
            "it is finished and was not kept, or never existed; enqueue with retention= to wait for results"
        )
        raise ResultNotKept(queue, task_id, problem)
    if found.parked is not None and found.parked.reason is Reason.CANCELLED:
        raise TaskCancelled(queue, task_id, "was cancelled")
    if found.state is State.ARCHIVED:
        raise TaskFailed(queue, task_id, _why(found))
    if found.state is State.COMPLETED:
        stored = decode_message(found.message_bytes).result
        return Verdict(over=True, result=None if stored is None else decode_result(stored))
    return WAIT_ON


def _why(found: Found) -> str:
    try:
        error = decode_message(found.message_bytes).error
    except StoredDataError:
        error = None
    reason = found.parked.reason if found.parked else None
    return error or f"archived as {reason or 'failed'}"
