"""Bytes: CBOR of payloads, results and messages. The only home of cbor2.

Reading never builds anything but plain values (and the few below that CBOR has tags for); writing
refuses the rest with the path of the offending value, so that a task which could not be read back
is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

import cbor2

from streamq.errors import MessageError, PayloadError, UnknownVersion
from streamq.model.limits import DEFAULT_LIMITS, MAX_DEPTH, Limits
from streamq.model.message import KEY_ENQUEUED, KEY_PAYLOAD, Message
from streamq.model.schedule import CronEntry, Schedule

FRAME_HEAD_BYTES = 4

_ATOMS = frozenset({type(None), bool, int, float, str, bytes, Decimal, UUID, date})


def encode_payload(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS
) -> bytes:
    """CBOR of ``[args, kwargs]``.

    Raises PayloadError, naming the argument, for types that cannot be stored and for what is too
    large or too deep.
    """
    # The outer containers are written by hand, value by value: cbor2 spends longer on them than on
    # the usual arguments.
    parts = [_PAIR, _head(_LIST, len(args))]
    for index, value in enumerate(args):
        if type(value) not in _ATOMS:
            _Walk(limits).check(value, f"args[{index}]", limits.depth)
        parts.append(_dump(value, "args", index))
    parts.append(_head(_MAP, len(kwargs)))
    for name, value in kwargs.items():
        if type(value) not in _ATOMS:
            _Walk(limits).check(value, name, limits.depth)
        parts += (cbor2.dumps(name), _dump(value, name))
    return _within("payload", b"".join(parts), limits.payload_bytes)


def decode_payload(payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that ``encode_payload`` stored. Raises MessageError."""
    decoded = _load(payload)
    if isinstance(decoded, list) and len(decoded) == 2:
        args, kwargs = decoded
        if isinstance(args, list) and isinstance(kwargs, dict):
            return args, kwargs
    raise MessageError("the payload is not [args, kwargs]")


def decode_batch(payload: bytes) -> list[tuple[bytes, bytes]]:
    """The members that ``flush_group.lua`` put into a batch: id and stored message. Raises MessageError."""
    words = _load(payload)
    if not isinstance(words, list) or len(words) % 2 or not all(type(word) is bytes for word in words):
        raise MessageError("the payload is not the members of a batch")
    return list(zip(words[::2], words[1::2], strict=True))


def encode_result(value: object, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """CBOR of what a handler returned. Raises PayloadError."""
    if type(value) not in _ATOMS:
        _Walk(limits).check(value, "result", limits.depth)
    return _within("result", _dump(value, "result"), limits.result_bytes)


def decode_result(stored: bytes) -> Any:
    """What ``encode_result`` stored. Raises MessageError."""
    return _load(stored)


def check_value(value: object, field: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raises PayloadError when the value cannot be stored."""
    if type(value) not in _ATOMS:
        _Walk(limits).check(value, field, limits.depth)


def encode_key(value: object, field: str) -> bytes:
    """CBOR in which equal values have equal bytes, for what tasks are told apart by. Raises PayloadError."""
    check_value(value, field)
    return encode_canonical(value, field)


def encode_canonical(value: object, field: str) -> bytes:
    """The same for a value that has been checked."""
    # Only maps and sets have an order to be made canonical, which takes cbor2 three times as long.
    return _dump(value, field, canonical=type(value) not in _ATOMS)


Chosen = list[tuple[bytes, int | str]]
"""Arguments in some order: each one's encoded name, and its place among the values, or name."""


def encode_chosen(chosen: Chosen, values: Any, field: str) -> bytes:
    """Canonical CBOR of these of the values, each behind its name. They have been checked."""
    dumps, atoms = cbor2.dumps, _ATOMS
    parts: list[bytes] = []
    for head, place in chosen:
        value = values[place]
        parts.append(head)
        parts.append(dumps(value) if type(value) in atoms else encode_canonical(value, field))
    return b"".join(parts)


def encode_message(message: Message) -> bytes:
    """The message as it is stored."""
    return cbor2.dumps(message.stored)


def decode_message(stored: bytes) -> Message:
    """Read a stored message. Raises MessageError, or UnknownVersion for a newer format."""
    decoded = _load(stored)
    if type(decoded) is not dict:
        raise MessageError("not a map")
    return Message(decoded)


def encode_frame(frame: Mapping[str, Any]) -> bytes:
    """What a worker and its child process say to each other: four bytes of length, then CBOR."""
    body = _dump(frame, "frame")
    return len(body).to_bytes(FRAME_HEAD_BYTES, "big") + body


def decode_frame(body: bytes) -> dict[str, Any]:
    """The frame whose body this is, without its length. Raises MessageError."""
    frame = _load(body)
    if type(frame) is not dict:
        raise MessageError("not a map")
    return frame


_CRON_VERSION = 1
_LATEST_MS = 253_402_300_799_000
"""The end of the year 9999."""
_CRON_KEYS: dict[str, type | tuple[type, ...]] = {
    "v": int,
    "s": list,
    "h": bytes,
    "m": bytes,
    "u": bytes,
    "x": (int, type(None)),
    "w": str,
    "p": bool,
}


def encode_cron(entry: CronEntry) -> bytes:
    """The stored form of a cron entry, behind its schedule's digest, which is for the scripts."""
    schedule = entry.schedule
    stored = {
        **entry.more,
        "v": _CRON_VERSION,
        "s": [getattr(schedule, name) for name in Schedule.__slots__],
        "h": entry.how,
        "m": entry.message,
        "u": entry.dedup_key,
        "x": entry.expires_ms,
        "w": entry.owner,
        "p": entry.paused,
    }
    return schedule.digest.encode() + b":" + cbor2.dumps(stored)


def decode_cron(entry_id: str, queue: str, stored: bytes) -> CronEntry:
    """Read a stored cron entry. Raises MessageError, or UnknownVersion for a newer format."""
    decoded = _load(stored.partition(b":")[2])
    if type(decoded) is not dict:
        raise MessageError("a cron entry is no map")
    version = decoded.get("v")
    if type(version) is int and version > _CRON_VERSION:
        raise UnknownVersion(f"cron entry version {version}; this StreamQ reads up to {_CRON_VERSION}")
    for key, types in _CRON_KEYS.items():
        if key not in decoded or not isinstance(decoded[key], types):
            raise MessageError(f"key {key!r} of a cron entry is missing or has the wrong type")
    return CronEntry(
        id=entry_id,
        queue=queue,
        schedule=_read_schedule(decoded["s"]),
        how=decoded["h"],
        message=decoded["m"],
        dedup_key=decoded["u"],
        expires_ms=decoded["x"],
        owner=decoded["w"],
        paused=decoded["p"],
        more={key: value for key, value in decoded.items() if key not in _CRON_KEYS},
    )


def _read_schedule(fields: list[Any]) -> Schedule:
    match fields:
        case [str(), str(), int() as jitter, int() | None as start, int() | None as end, str()]:
            if all(0 <= (ms or 0) <= _LATEST_MS for ms in (jitter, start, end)):
                return Schedule(*fields)
    raise MessageError("the schedule of a cron entry makes no sense")


def check_headers(headers: Mapping[str, str], limits: Limits = DEFAULT_LIMITS) -> None:
    """Raises PayloadError when the headers are too large."""
    if headers:
        _within("headers", _dump(dict(headers), "headers"), limits.headers_bytes)


class MessageTemplate:
    """Encodes many messages that differ in payload and time of enqueue only.

    A task's options rarely change between calls, so their part of the map is encoded once and the
    rest appended by hand: a third of the cost of encoding the whole map each time.
    """

    __slots__ = ("_head",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """``fields`` are message fields without payload and enqueued_ms."""
        stored = dict(Message.new(payload=b"", **fields).stored)
        del stored[KEY_PAYLOAD]
        head = cbor2.dumps(stored)
        # CBOR: a map of n < 24 pairs starts with the byte 0xA0 + n (RFC 8949, 3.1). Two pairs follow.
        self._head = bytes([head[0] + 2]) + head[1:] + cbor2.dumps(KEY_ENQUEUED) + b"\x1b"

    def encode(self, payload: bytes, enqueued_ms: int) -> bytes:
        """The stored form of the message."""
        return b"".join(
            (self._head, enqueued_ms.to_bytes(8, "big"), _PAYLOAD_KEY, _head(_BYTES, len(payload)), payload)
        )


_PAYLOAD_KEY = cbor2.dumps(KEY_PAYLOAD)

# Major types of RFC 8949, 3.1, as the high bits of an item's first byte.
_BYTES, _LIST, _MAP = 0x40, 0x80, 0xA0
_PAIR = b"\x82"  # a list of two


def _head(major: int, length: int) -> bytes:
    """The head of a CBOR item: its type and its length (RFC 8949, 3)."""
    if length < 24:
        return _SHORT_HEADS[major + length]
    if length < 1 << 8:
        return bytes((major + 24, length))
    if length < 1 << 16:
        return bytes((major + 25,)) + length.to_bytes(2, "big")
    return bytes((major + 26,)) + length.to_bytes(4, "big")


_SHORT_HEADS = [bytes((first,)) for first in range(256)]


def _dump(value: object, field: str, index: int | None = None, *, canonical: bool = False) -> bytes:
    try:
        return cbor2.dumps(value, canonical=True) if canonical else cbor2.dumps(value)
    except (cbor2.CBOREncodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        # The text of the cause may show the value, so only its class is named.
        path = field if index is None else f"{field}[{index}]"
        raise PayloadError(path, f"cannot be stored as CBOR ({type(error).__name__})") from None


def _within(field: str, encoded: bytes, limit: int) -> bytes:
    if len(encoded) > limit:
        problem = f"is {len(encoded)} bytes; the limit is {limit}. Pass a reference to large data"
        raise PayloadError(field, problem)
    return encoded


def _refuse(_decoder: object) -> NoReturn:
    raise ValueError("tag not allowed")


# Tags whose decoding builds objects, compiles patterns or shares references: nothing StreamQ writes
# has them (RFC 8949 3.4 and the IANA registry of CBOR tags).
_REFUSED_TAGS = dict.fromkeys((25, 28, 29, 35, 36, 256), _refuse)
_DECODE_DEPTH = MAX_DEPTH + 56
"""What the writer lets pass, in the payload's own lists, with tags inside."""


def _load(stored: bytes) -> Any:
    try:
        return cbor2.loads(stored, max_depth=_DECODE_DEPTH, semantic_decoders=_REFUSED_TAGS)
    except Exception as error:  # noqa: BLE001
        # Whatever the bytes were, the reader must get the one typed error, without their content.
        raise MessageError(f"not readable as CBOR ({type(error).__name__})") from None


class _Walk:
    """Checks one argument: types, depth, and the number of values as a guard against cycles."""

    __slots__ = ("_budget",)

    def __init__(self, limits: Limits) -> None:
        self._budget = max(limits.payload_bytes, limits.result_bytes)

    def check(self, value: object, path: str, depth: int) -> None:
        kind = type(value)
        if kind in _ATOMS:
            return
        self._budget -= 1
        if self._budget < 0:
            raise PayloadError(path, "has too many values")
        if isinstance(value, dict):
            self._enter(path, depth)
            for key, item in value.items():
                if type(key) not in _ATOMS:
                    self.check(key, f"{path} (a key)", depth - 1)
                if type(item) not in _ATOMS:
                    self.check(item, f"{path}[{_shown(key)}]", depth - 1)
            self._budget -= len(value)
        elif isinstance(value, list | tuple | set | frozenset):
            self._enter(path, depth)
            for index, item in enumerate(value):
                if type(item) not in _ATOMS:
                    self.check(item, f"{path}[{index}]", depth - 1)
            self._budget -= len(value)
        elif isinstance(value, datetime):
            if value.tzinfo is None:
                raise PayloadError(path, "is a datetime without time zone; give it one")
        elif not isinstance(value, tuple(_ATOMS)):
            hint = "pass plain values: numbers, text, bytes, lists, maps"
            raise PayloadError(path, f"has the type {kind.__name__}, which cannot be stored; {hint}")

    def _enter(self, path: str, depth: int) -> None:
        if depth < 1:
            raise PayloadError(path[:200], "is nested too deep, or contains itself")


def _shown(key: object) -> str:
    """Keys are structure, not content, but a long one could be anything."""
    return repr(key)[:40]
