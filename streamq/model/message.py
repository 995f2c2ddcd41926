"""The message: what is stored for one enqueued task. Frozen; changed by copy.

A Message is a typed, read-only view of the stored map. It keeps every key that it was read with,
also those of a newer version, so that old and new workers can pass the same task back and forth.
Lane, entry id, task id and the crash count are not in it: Redis keeps them beside the message,
where the scripts can read them without decoding anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamq.errors import MessageError, UnknownVersion

VERSION = 1

# Short keys: they are stored with every task.
KEY_VERSION = "v"
KEY_TYPE = "t"
KEY_PAYLOAD = "p"
KEY_ENQUEUED = "e"

# Field of a message -> (its key, the types it may have). None is never stored: an absent key means None.
FIELDS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "version": (KEY_VERSION, int),
    "type": (KEY_TYPE, str),
    "payload": (KEY_PAYLOAD, bytes),
    "enqueued_ms": (KEY_ENQUEUED, int),
    "max_retries": ("r", int),
    "retry_policy": ("y", list),
    "timeout_ms": ("o", int),
    "deadline_ms": ("d", int),
    "expires_ms": ("x", int),
    "retention_ms": ("k", int),
    "headers": ("h", dict),
    "retried": ("n", int),
    "error": ("w", str),
    "traceback": ("b", str),
    "failed_ms": ("f", int),
    "result": ("z", bytes),
    "completed_ms": ("c", int),
    "lock": ("u", str),
    "put_back": ("q", int),
    "on_expiry": ("j", int),
    "group": ("g", str),
    "tick": ("s", list),
}

NO_TIMEOUT = 0
"""Stored ``timeout_ms`` of a task that asked for no limit, as opposed to not saying anything."""

DROP = 1
"""Stored ``on_expiry`` of a task that is to be forgotten when it has expired."""

_PLAIN = 4
_LARGEST = 2**63 - 1
"""Of the numbers in a message. CBOR knows larger ones, which clocks, timers and scripts do not."""

_TYPES = dict(FIELDS.values())
_KEYS = {name: key for name, (key, _) in FIELDS.items()}


class Message:
    """One stored task. Build with ``Message.new`` or from stored bytes by the codec."""

    __slots__ = ("_stored", "plain")

    def __init__(self, stored: Mapping[str, Any]) -> None:
        """Wrap a decoded map.

        Raises UnknownVersion for a newer version and MessageError for what is no message.
        """
        # The common case, checked without a loop: a fresh task without options of its own.
        self.plain = len(stored) == _PLAIN and _is_plain(stored)
        """It has nothing but type, payload and time: whoever is in a hurry need not ask for the rest."""
        if self.plain:
            self._stored = stored
            return
        version = stored.get(KEY_VERSION)
        if version != VERSION:
            if type(version) is int and version > VERSION:
                raise UnknownVersion(f"message version {version}; this StreamQ reads up to {VERSION}")
            raise MessageError("no message version")
        for key, value in stored.items():
            types = _TYPES.get(key)
            if types is not None and not isinstance(value, types):
                raise MessageError(f"key {key!r} has the wrong type, {type(value).__name__}")
            if types is int and not -_LARGEST <= value <= _LARGEST:
                raise MessageError(f"key {key!r} is a number that means nothing here")
        if KEY_TYPE not in stored or KEY_PAYLOAD not in stored:
            raise MessageError("task type or payload is missing")
        self._stored = stored

    @classmethod
    def new(cls, **fields: Any) -> Message:
        """A message from named fields; those that are None are left out."""
        return cls({KEY_VERSION: VERSION, **_by_key(fields)})

    def copy(self, **changes: Any) -> Message:
        """The same message with other fields; a field set to None disappears."""
        stored = {**self._stored, **_by_key(changes)}
        for name, value in changes.items():
            if value is None:
                stored.pop(_KEYS[name], None)
        return Message(stored)

    @property
    def stored(self) -> Mapping[str, Any]:
        """The map as it is encoded. Not to be changed."""
        return self._stored

    @property
    def type(self) -> str:
        """The name of the task, by which a worker finds its handler."""
        return self._stored[KEY_TYPE]  # type: ignore[no-any-return]

    @property
    def payload(self) -> bytes:
        """CBOR of ``[args, kwargs]``."""
        return self._stored[KEY_PAYLOAD]  # type: ignore[no-any-return]

    @property
    def enqueued_ms(self) -> int | None:
        """When the producer enqueued it, by the producer's clock. Information, not a decision."""
        return self._stored.get(KEY_ENQUEUED)

    @property
    def max_retries(self) -> int | None:
        """Failures that may be followed by another attempt; None: the worker's definition decides."""
        return self._stored.get("r")

    @property
    def retry_policy(self) -> list[Any] | None:
        """The delay policy as plain values; None: the worker's definition decides."""
        return self._stored.get("y")

    @property
    def timeout_ms(self) -> int | None:
        """Longest run of one attempt; ``NO_TIMEOUT`` for no limit; None: the worker's definition decides."""
        return self._stored.get("o")

    @property
    def deadline_ms(self) -> int | None:
        """Wall time after which no attempt may run on."""
        return self._stored.get("d")

    @property
    def expires_ms(self) -> int | None:
        """Wall time after which the task no longer matters and is not started."""
        return self._stored.get("x")

    @property
    def on_expiry(self) -> int | None:
        """``DROP`` where an expired task is forgotten; None: it is archived."""
        return self._stored.get("j")

    @property
    def retention_ms(self) -> int | None:
        """How long the finished task is kept; None: the worker's definition decides."""
        return self._stored.get("k")

    @property
    def headers(self) -> Mapping[str, str]:
        """Text pairs that travel with the task, in clear. A copy: changing it changes no message."""
        return dict(self._stored.get("h") or {})

    @property
    def retried(self) -> int:
        """Failures so far. Crashes are counted elsewhere."""
        return self._stored.get("n", 0)  # type: ignore[no-any-return]

    @property
    def error(self) -> str | None:
        """The last failure, as text."""
        return self._stored.get("w")

    @property
    def traceback(self) -> str | None:
        """Where the last failure happened."""
        return self._stored.get("b")

    @property
    def failed_ms(self) -> int | None:
        """Wall time of the last failure."""
        return self._stored.get("f")

    @property
    def result(self) -> bytes | None:
        """CBOR of what the handler returned."""
        return self._stored.get("z")

    @property
    def completed_ms(self) -> int | None:
        """Wall time of success."""
        return self._stored.get("c")

    @property
    def put_back(self) -> int:
        """How often limits have put it back since its handler last ran."""
        return self._stored.get("q", 0)  # type: ignore[no-any-return]

    @property
    def group(self) -> str | None:
        """The group of which this is a batch: its payload is the members. None: it is no batch."""
        return self._stored.get("g")

    @property
    def lock(self) -> str | None:
        """Mode letter of the lock that it was enqueued with; None for a task that is not unique."""
        return self._stored.get("u")

    @property
    def tick(self) -> list[Any] | None:
        """The cron entry that enqueued it, and its tick in ms; None for what no entry enqueued."""
        return self._stored.get("s")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._stored == other._stored

    __hash__ = None  # type: ignore[assignment]  # the stored map is not hashable

    def __repr__(self) -> str:
        # Neither payload nor result: a repr ends up in logs.
        return f"<Message {self.type!r} retried={self.retried}>"


def _is_plain(stored: Mapping[str, Any]) -> bool:
    get = stored.get
    return (
        type(get(KEY_TYPE)) is str
        and type(get(KEY_PAYLOAD)) is bytes
        and type(get(KEY_ENQUEUED)) is int
        and get(KEY_VERSION) == VERSION
    )


def _by_key(fields: Mapping[str, Any]) -> dict[str, Any]:
    unknown = fields.keys() - _KEYS.keys()
    if unknown:
        raise TypeError(f"a message has no field {', '.join(sorted(unknown))}")
    return {_KEYS[name]: value for name, value in fields.items() if value is not None}
