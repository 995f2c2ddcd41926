"""Batches as a worker sees them: whom its handler gets, and who cannot take part.

A member that cannot be read, has expired or is past its deadline does not hold up the others, and is
not lost: when the batch has succeeded it is archived by itself, under its own id. As long as the batch
is to be tried again, and when it is archived, such members stay in it, with all their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from streamq.broker.working import Entry
from streamq.codec import decode_batch, decode_message, decode_payload, encode_message
from streamq.errors import AttemptTimeout, StoredDataError
from streamq.model.groups import Member
from streamq.model.info import moment
from streamq.model.message import Message
from streamq.model.parked import Reason
from streamq.worker.outcome import Aside, Complete, Outcome, Retain, SetAside


@dataclass(slots=True)
class Batch:
    """One batch in a worker."""

    group: str | None = None
    """None: a task that was enqueued without a group, which is a batch of its own."""
    members: list[Member] = field(default_factory=list)
    """Those that the handler gets, the oldest first."""
    ids: list[bytes] = field(default_factory=list)
    """Of all tasks that went into it."""
    aside: list[Aside] = field(default_factory=list)
    """Those that cannot take part."""

    def settled_with(self, outcome: Outcome) -> Outcome:
        """The outcome of the batch, with what becomes of those that could not take part."""
        if self.aside and isinstance(outcome, Complete | Retain):
            return SetAside(outcome, tuple(self.aside))
        return outcome


def batch_of_one(entry: Entry, message: Message, args: Sequence[object], kwargs: dict[str, object]) -> Batch:
    """A task of a batch handler that was enqueued without a group."""
    return Batch(members=[_member(entry.task_id, message, args, kwargs)])


def read_batch(message: Message, now_ms: int) -> tuple[Batch, Message]:
    """The members, and the message with the options that the first of them was enqueued with.

    What the batch's own message says wins: that is what its former attempts went by. Raises MessageError
    when there are no members to be made out.
    """
    batch = Batch(group=message.group)
    first: Message | None = None
    for task_id, stored in decode_batch(message.payload):
        batch.ids.append(task_id)
        try:
            own = decode_message(stored)
            args, kwargs = decode_payload(own.payload)
        except StoredDataError:
            batch.aside.append(Aside(task_id, stored, Reason.UNDECODABLE, None, Reason.UNDECODABLE))
            continue
        if _too_late(batch, task_id, own, now_ms):
            continue
        first = first or own
        batch.members.append(_member(task_id, own, args, kwargs))
    return batch, message if first is None else _with_options(message, first)


def _member(task_id: bytes, message: Message, args: Sequence[object], kwargs: dict[str, object]) -> Member:
    return Member(
        id=task_id.decode("utf-8", "replace"),
        args=tuple(args),
        kwargs=kwargs,
        headers=message.headers,
        enqueued_at=moment(message.enqueued_ms),
    )


def _too_late(batch: Batch, task_id: bytes, own: Message, now_ms: int) -> bool:
    if own.expires_ms is not None and own.expires_ms <= now_ms:
        if not own.on_expiry:
            batch.aside.append(Aside(task_id, encode_message(own), Reason.EXPIRED, own, Reason.EXPIRED))
        return True
    if own.deadline_ms is not None and own.deadline_ms <= now_ms:
        late = AttemptTimeout("the deadline had passed before the batch could start")
        noted = own.copy(error=f"AttemptTimeout: {late}", failed_ms=now_ms)
        batch.aside.append(Aside(task_id, encode_message(noted), Reason.FAILED, noted, late))
        return True
    return False


def _with_options(message: Message, first: Message) -> Message:
    def chosen(own: object, members: object) -> object:
        return members if own is None else own

    return message.copy(
        max_retries=chosen(message.max_retries, first.max_retries),
        retry_policy=chosen(message.retry_policy, first.retry_policy),
        timeout_ms=chosen(message.timeout_ms, first.timeout_ms),
        retention_ms=chosen(message.retention_ms, first.retention_ms),
    )
