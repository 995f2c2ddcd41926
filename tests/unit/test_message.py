"""The message: a typed view of a stored map, which keeps what it does not know."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from streamq.codec import decode_message, encode_message
from streamq.errors import MessageError, UnknownVersion
from streamq.model.message import DROP, FIELDS, NO_TIMEOUT, VERSION, Message

FULL: dict[str, Any] = {
    "type": "mail.send",
    "payload": b"\x82\x80\xa0",
    "enqueued_ms": 1_767_000_000_000,
    "max_retries": 3,
    "retry_policy": ["f", 1000],
    "timeout_ms": 30_000,
    "deadline_ms": 1_767_000_000_001,
    "expires_ms": 1_767_000_000_002,
    "retention_ms": 60_000,
    "headers": {"a": "1"},
    "retried": 2,
    "error": "ValueError: x",
    "traceback": "...",
    "failed_ms": 1_767_000_000_003,
    "result": b"\x01",
    "completed_ms": 1_767_000_000_004,
    "lock": "d",
    "put_back": 3,
    "on_expiry": DROP,
    "group": "user:42",
    "tick": ["nightly", 1_767_000_000_005],
}
PLAIN = {"type": "t", "payload": b"p", "enqueued_ms": 1}


def test_every_field_comes_back_under_its_name() -> None:
    """A10 to A13: each option has a place of its own."""
    message = decode_message(encode_message(Message.new(**FULL)))
    assert {name: getattr(message, name) for name in FULL} == FULL
    assert FULL.keys() == FIELDS.keys() - {"version"}


def test_what_is_not_given_takes_no_room() -> None:
    """The defaults belong to the worker, so they are not stored with each task."""
    message = Message.new(**PLAIN, max_retries=None, headers=None)
    assert set(message.stored.values()) == {VERSION, "t", b"p", 1}
    assert (message.max_retries, message.timeout_ms, message.headers, message.retried) == (None, None, {}, 0)
    assert Message.new(**PLAIN, timeout_ms=NO_TIMEOUT).timeout_ms == NO_TIMEOUT == 0


def test_no_two_fields_share_a_key() -> None:
    keys = [key for key, _ in FIELDS.values()]
    assert len(keys) == len(set(keys))


def test_a_message_is_changed_by_copy() -> None:
    message = Message.new(**FULL)
    again = message.copy(retried=3, error=None)
    assert (message.retried, message.error) == (2, "ValueError: x")
    assert (again.retried, again.error, again.payload) == (3, None, FULL["payload"])
    assert "w" not in again.stored
    assert message.copy() == message != again


def test_an_unknown_field_name_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="retires"):
        Message.new(**PLAIN, retires=3)
    with pytest.raises(TypeError, match="nothing"):
        Message.new(**PLAIN).copy(nothing=None)


@pytest.mark.parametrize("fields", [PLAIN, FULL], ids=["plain", "full"])
def test_what_a_newer_minor_version_added_is_kept(fields: dict[str, Any]) -> None:
    """Old and new workers pass the same task back and forth: through copy and codec, nothing is dropped."""
    stored: dict[Any, Any] = {**Message.new(**fields).stored, "future": [1, {"a": b"x"}], 7: "number"}
    message = decode_message(cbor2.dumps(stored))
    changed = decode_message(encode_message(message.copy(retried=9)))
    assert changed.retried == 9
    assert changed.stored["future"] == [1, {"a": b"x"}]
    assert dict[Any, Any](changed.stored)[7] == "number"


@pytest.mark.parametrize("version", [VERSION + 1, 99, 2**70])
@pytest.mark.parametrize("fields", [PLAIN, FULL], ids=["plain", "full"])
def test_a_newer_version_is_told_apart(version: int, fields: dict[str, Any]) -> None:
    """So that it can be kept for a worker that reads it, and not be taken for garbage."""
    stored = {**Message.new(**fields).stored, "v": version}
    with pytest.raises(UnknownVersion, match=str(version)):
        Message(stored)
    with pytest.raises(UnknownVersion):
        decode_message(cbor2.dumps(stored))


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.5, [1]])
def test_no_version_is_no_message(version: Any) -> None:
    stored = {**Message.new(**PLAIN).stored, "v": version}
    with pytest.raises(MessageError):
        Message(stored)
    del stored["v"]
    with pytest.raises(MessageError):
        Message(stored)


WRONG: dict[type, list[Any]] = {
    int: ["1", 1.5, b"1", [1], None],
    str: [b"x", 1, ["x"], None],
    bytes: ["x", 1, [1], None],
    list: ["e", {}, 1, None],
    dict: [[], "h", 1, None],
}


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("fields", [PLAIN, FULL], ids=["plain", "full"])
def test_a_field_of_a_wrong_type_is_a_message_error(name: str, fields: dict[str, Any]) -> None:
    key, kind = FIELDS[name]
    assert isinstance(kind, type)
    for value in WRONG[kind]:
        stored = {**Message.new(**fields).stored, key: value}
        with pytest.raises(MessageError) as caught:
            Message(stored)
        assert repr(key) in str(caught.value)


@pytest.mark.parametrize("missing", ["t", "p"])
def test_a_message_has_a_type_and_a_payload(missing: str) -> None:
    stored = dict(Message.new(**FULL).stored)
    del stored[missing]
    with pytest.raises(MessageError, match="missing"):
        Message(stored)


def test_a_message_shows_neither_payload_nor_result() -> None:
    """Its repr ends up in logs."""
    message = Message.new(**{**FULL, "payload": b"secret", "result": b"secret", "error": "secret"})
    assert "secret" not in repr(message)
    assert "mail.send" in repr(message)


def test_a_message_is_compared_by_what_it_stores() -> None:
    assert Message.new(**FULL) == Message.new(**FULL)
    assert Message.new(**FULL) != Message.new(**PLAIN)
    assert Message.new(**PLAIN) != "t"
    with pytest.raises(TypeError):
        hash(Message.new(**PLAIN))
