"""Waiting for a near reply without going to sleep.

A thread that sleeps until its reply comes has to be woken, and on virtual machines the core itself
goes idle: there the wake-up takes longer than Redis's answer. So the socket is asked again and again
for a moment first. It gives up where that does not help: with a server far away, the thread soon
sleeps at once, and tries again only now and then.
"""

from __future__ import annotations

import socket
import time

_SPIN_NS = 150_000
"""Longest spin: about what waking an idle virtual core takes."""
_MOST_LUCK = 4
"""Misses in a row after which spinning stops."""
_TRY_AGAIN = 64
"""Requests after which it is tried once more."""


class Spinner:
    """A second view of a connected plain socket, read without waiting."""

    __slots__ = ("_luck", "_sock", "_waited")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock.dup()
        self._sock.setblocking(False)
        self._luck = _MOST_LUCK
        self._waited = 0

    def read(self, size: int) -> bytes | None:
        """What has come within a moment; b"" at the end of the stream, None when nothing has come.

        Raises OSError when the connection is broken or was closed.
        """
        if not self._worth_it():
            return None
        end_ns = time.perf_counter_ns() + _SPIN_NS
        while True:
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                if time.perf_counter_ns() > end_ns:
                    self._luck -= 1
                    return None
            else:
                self._luck = _MOST_LUCK
                return data

    def close(self) -> None:
        """Close this view. May be called twice."""
        self._sock.close()

    def _worth_it(self) -> bool:
        if self._luck > 0:
            return True
        self._waited += 1
        if self._waited < _TRY_AGAIN:
            return False
        self._waited = 0
        self._luck = 1
        return True
