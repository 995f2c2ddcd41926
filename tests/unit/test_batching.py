"""Which members of a batch its handler gets, and whose options the batch has."""

from __future__ import annotations

from typing import Any

import cbor2

from streamq.codec import encode_message, encode_payload
from streamq.model.message import DROP, Message
from streamq.model.parked import Reason
from streamq.worker.batching import Batch, read_batch
from streamq.worker.outcome import COMPLETE, RELEASE, Archive, Retain, SetAside

NOW_MS = 1_767_000_000_000


def member(*args: Any, **fields: Any) -> bytes:
    return encode_message(Message.new(type="t", payload=encode_payload(args, {}), enqueued_ms=0, **fields))


def batch_of(*messages: bytes, **fields: Any) -> Message:
    words = [word for place, message in enumerate(messages) for word in (b"m%d" % place, message)]
    return Message.new(type="t", payload=cbor2.dumps(words), group="g", **fields)


def ids(batch: Batch) -> list[str]:
    return [one.id for one in batch.members]


def test_every_member_is_there_in_its_order() -> None:
    batch, _ = read_batch(batch_of(member(1), member(2)), NOW_MS)
    assert (batch.group, ids(batch), batch.ids) == ("g", ["m0", "m1"], [b"m0", b"m1"])
    assert [one.args for one in batch.members] == [(1,), (2,)]
    assert batch.settled_with(COMPLETE) is COMPLETE


def test_those_that_cannot_take_part_are_set_aside_when_the_batch_has_succeeded() -> None:
    late = NOW_MS - 1
    message = batch_of(
        b"\xff",
        member(1, expires_ms=late),
        member(2, expires_ms=late, on_expiry=DROP),
        member(3, deadline_ms=late),
        member(4, deadline_ms=NOW_MS + 1, expires_ms=NOW_MS + 1),
        encode_message(Message.new(type="t", payload=b"\x01")),
    )
    batch, _ = read_batch(message, NOW_MS)
    assert ids(batch) == ["m4"]
    assert len(batch.ids) == 6
    aside = [(one.task_id, one.reason) for one in batch.aside]
    assert aside == [
        (b"m0", Reason.UNDECODABLE),
        (b"m1", Reason.EXPIRED),
        (b"m3", Reason.FAILED),
        (b"m5", Reason.UNDECODABLE),
    ]
    for outcome in (COMPLETE, Retain(message, 1)):
        assert batch.settled_with(outcome) == SetAside(outcome, tuple(batch.aside))
    archived = Archive(message, Reason.FAILED)
    assert batch.settled_with(archived) is archived
    assert batch.settled_with(RELEASE) is RELEASE


def test_a_batch_has_the_options_of_its_first_member_that_can_be_read() -> None:
    first = member(1, max_retries=1, timeout_ms=5, retention_ms=7, retry_policy=["f", 1])
    _, message = read_batch(batch_of(b"\xff", first, member(2, max_retries=9)), NOW_MS)
    assert (message.max_retries, message.timeout_ms, message.retention_ms) == (1, 5, 7)
    assert message.retry_policy == ["f", 1]


def test_what_the_batch_itself_says_wins() -> None:
    """It was tried before: what it went by then holds on."""
    _, message = read_batch(batch_of(member(1, max_retries=1), max_retries=4, retried=2), NOW_MS)
    assert (message.max_retries, message.retried) == (4, 2)
