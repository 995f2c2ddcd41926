"""One connection for blocking code: a request out, its replies in.

Owns the bytes between the hand-over by ``dial_blocking`` and the reply. One request at a time; a
lock makes it safe to share between threads. Any failure in the middle of a request closes it for
good: a reply left unread would answer the next request.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from typing import Any

from streamq.broker.address import Address
from streamq.broker.dial import Timeouts, dial_blocking
from streamq.broker.spinning import Spinner
from streamq.broker.transport import NOTHING, new_reader
from streamq.errors import ServerError, ServerTimeout, Unavailable

_READ_BYTES = 65536
# A server may close a connection that idles; past this the socket is looked at before it is trusted.
_TRUSTED_IDLE_S = 1.0


class SyncConnection:
    """A blocking connection of one process."""

    def __init__(self, sock: socket.socket, timeouts: Timeouts, name: str) -> None:
        self.name = name
        self.closed = False
        self._sock = sock
        # TLS keeps what it has read to itself, so only a plain socket can be watched beside it.
        self._spinner = None if isinstance(sock, ssl.SSLSocket) else Spinner(sock)
        self._reply_s = timeouts.reply_s
        self._timeout_s: float | None = None
        self._reader = new_reader()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._used = time.monotonic()

    @classmethod
    def open(cls, address: Address, timeouts: Timeouts | None = None) -> SyncConnection:
        """Connect and log in. Raises AddressError or ServerError."""
        timeouts = timeouts or Timeouts()
        return cls(dial_blocking(address, timeouts), timeouts, str(address))

    def call(self, packed: bytes, *, limit_s: float | None = None) -> Any:
        """Send one packed command and return its reply.

        ``limit_s`` is how long the reply may take. Raises ServerError: the server's refusal, or
        Unavailable when the connection was lost, and then nobody knows whether the command ran.
        """
        reply = self.call_many(packed, 1, limit_s=limit_s)[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def call_many(self, packed: bytes, replies: int, *, limit_s: float | None = None) -> list[Any]:
        """Send several packed commands in one write. Error replies are items of the list."""
        with self._lock:
            if self.closed:
                raise Unavailable(f"{self.name}: the connection is closed")
            try:
                return self._exchange(packed, replies, self._reply_s if limit_s is None else limit_s)
            except BaseException as error:
                self.close()
                if isinstance(error, OSError) and not isinstance(error, ServerError):
                    raise self._lost(error) from error
                raise

    def stale(self) -> bool:
        """Whether the peer hung up while the connection idled. Cheap while it is in use."""
        if self.closed or self._pid != os.getpid():
            return True
        if time.monotonic() - self._used < _TRUSTED_IDLE_S or self._lock.locked():
            return False
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(0))  # nothing was asked, so anything to read is the end, or garbage

    def close(self) -> None:
        """Close the socket. May be called twice, and from another thread to break a wait off."""
        if self.closed:
            return
        self.closed = True
        if self._pid == os.getpid():
            # Wakes a thread that waits for a reply; in a forked child it would hang up the parent.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._spinner is not None:
            self._spinner.close()

    def _exchange(self, packed: bytes, replies: int, limit_s: float) -> list[Any]:
        if self._timeout_s != limit_s:
            self._sock.settimeout(limit_s)
            self._timeout_s = limit_s
        self._sock.sendall(packed)
        answers: list[Any] = []
        deadline: float | None = None
        while True:
            data = self._spinner.read(_READ_BYTES) if self._spinner is not None and not answers else None
            if data is None:
                data = self._sock.recv(_READ_BYTES)
            if not data:
                raise Unavailable(f"{self.name}: the connection was lost")
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not NOTHING:
                answers.append(reply)
            if len(answers) >= replies:
                self._used = time.monotonic()
                return self._complete(answers, replies)
            now = time.monotonic()
            deadline = deadline or now + limit_s
            if now >= deadline:
                raise TimeoutError

    def _complete(self, answers: list[Any], replies: int) -> list[Any]:
        if len(answers) > replies:
            raise Unavailable(f"{self.name}: it answered what nobody asked")
        return answers

    def _lost(self, error: OSError) -> Unavailable:
        if isinstance(error, TimeoutError | ssl.SSLWantReadError):
            return ServerTimeout(f"{self.name}: no answer within the time limit")
        return Unavailable(f"{self.name}: the connection was lost ({type(error).__name__})")
