"""Who enqueues: an identity, its task ids, and one sequence of calls per queue.

The identity is random per client and made anew after a fork, so that no two processes ever share
the sequence by which the enqueue script tells a re-send from a new batch.
"""

from __future__ import annotations

import itertools
import os
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 12  # 71 bits: a billion clients meet with a chance of 10^-4


class Producer:
    """The identity of one client. Threads may make task ids at once, but take turns at sequences."""

    __slots__ = ("_count", "_pid", "_sequences", "id")

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self.id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
        self._count = itertools.count(1)
        self._sequences: dict[str, int] = {}

    def new_task_id(self) -> str:
        """An id that no other task has: the producer's own, and a count."""
        if self._pid != os.getpid():
            self._renew()
        return f"{self.id}-{next(self._count):x}"

    def next_sequence(self, queue: str) -> int:
        """The number of the next call into this queue. A re-send keeps the number it has."""
        if self._pid != os.getpid():
            self._renew()
        sequence = self._sequences[queue] = self._sequences.get(queue, 0) + 1
        return sequence
