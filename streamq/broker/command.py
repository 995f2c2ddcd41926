"""A broker operation as a value: what to send, and how to read the reply.

A Command knows nothing of sockets. The async runner and the sync runner execute the same
Commands, so each operation is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def pack(self) -> bytes:
        """The command in the Redis protocol (RESP2)."""
        if self.script is None:
            return pack(self.args)
        return pack_call(self.script.sha, self.keys, self.args)


def pack(words: Sequence[Word]) -> bytes:
    """Encode one command as an array of bulk strings."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if type(word) is not bytes:
            word = str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def pack_call(sha: bytes, keys: tuple[bytes, ...], args: Sequence[Word]) -> bytes:
    """Encode EVALSHA. The words in front repeat from call to call, so they are packed once."""
    lead = (sha, keys)
    head = _heads.get(lead)
    if head is None:
        if len(_heads) >= _HEADS_KEPT:
            _heads.clear()
        head = _heads[lead] = pack((b"EVALSHA", sha, len(keys), *keys)).split(b"\r\n", 1)[1]
    parts = [b"*%d\r\n" % (3 + len(keys) + len(args)), head]
    for word in args:
        if type(word) is not bytes:
            word = str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


# Queues times scripts of one process; a process that meets more simply packs them anew.
_HEADS_KEPT = 4096
_heads: dict[tuple[bytes, tuple[bytes, ...]], bytes] = {}
