"""A broker operation as a value: what to send, and how to read the reply.

A Command knows nothing of sockets. The async runner and the sync runner execute the same
Commands, so each operation is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from streamq.broker.scripts import Script

T = TypeVar("T")

Word = bytes | str | int


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """One command for Redis, and the function that reads its reply.

    With a ``script``, ``keys`` and ``args`` are the script's KEYS and ARGV. Without one, ``args``
    is the native command, word by word, and ``keys`` only says which slot it belongs to.
    """

    script: Script | None
    keys: tuple[bytes, ...]
    args: Sequence[Word]
    parse: Callable[[Any], T]
    follows: bool = False
    """It deals with what those before it in one write have done: when one of them must be sent again,
    so must this, behind it. For what may run twice."""

    def pack(self) -> bytes:
        """The command in the Redis protocol (RESP2)."""
        if self.script is None:
            return pack(self.args)
        return pack_call(self.script.sha, self.keys, self.args)


Steps = Generator[Command[Any], Any, T]
"""Commands, each decided by the replies before it: yields one, is sent its reply, returns what came of it."""


def pack(words: Sequence[Word]) -> bytes:
    """Encode one command as an array of bulk strings."""
    parts = [b"*%d" % len(words)]
    _encode(words, parts)
    parts.append(b"\r\n")
    return b"".join(parts)


def pack_call(sha: bytes, keys: tuple[bytes, ...], args: Sequence[Word]) -> bytes:
    """Encode EVALSHA. The words in front repeat from call to call, so they are packed once."""
    lead = (sha, keys)
    head = _heads.get(lead)
    if head is None:
        if len(_heads) >= _HEADS_KEPT:
            _heads.clear()
        head = _heads[lead] = _pack_head(sha, keys)
    parts = [b"*%d" % (3 + len(keys) + len(args)), head]
    _encode(args, parts)
    parts.append(b"\r\n")
    return b"".join(parts)


def _pack_head(sha: bytes, keys: tuple[bytes, ...]) -> bytes:
    parts: list[bytes] = []
    _encode((b"EVALSHA", sha, len(keys), *keys), parts)
    return b"".join(parts)


def _encode(words: Sequence[Word], parts: list[bytes]) -> None:
    """Append each word, led by the end of the line before it and its length."""
    for word in words:
        if type(word) is not bytes:
            word = str(word).encode()
        size = len(word)
        parts.append(_SIZES[size] if size < _SIZES_KEPT else b"\r\n$%d\r\n" % size)
        parts.append(word)


# Most words are short; looking their line up takes half the time of formatting it.
_SIZES_KEPT = 1024
_SIZES = [b"\r\n$%d\r\n" % size for size in range(_SIZES_KEPT)]

# Queues times scripts of one process; a process that meets more simply packs them anew.
_HEADS_KEPT = 4096
_heads: dict[tuple[bytes, tuple[bytes, ...]], bytes] = {}
