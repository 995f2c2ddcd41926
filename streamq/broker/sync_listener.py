"""Listens to channels from blocking code, for the time of one wait.

Owns a connection that has subscribed. It raises nothing while Redis is away or refuses: a hint is not
worth an error, and whoever waits for one looks by itself from time to time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any, Self

from streamq.broker.address import Address
from streamq.broker.command import pack
from streamq.broker.dial import Timeouts, dial_blocking
from streamq.broker.transport import NOTHING, new_reader
from streamq.errors import ServerError, Unavailable

_READ_BYTES = 65536
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_LEAST_TIMEOUT_S = 0.05


class SyncListener:
    """Waits for messages on the channels subscribed. Use it in a ``with`` statement, in one thread."""

    def __init__(self, address: Address, *, timeouts: Timeouts | None = None) -> None:
        self.address = address
        self._timeouts = timeouts or Timeouts()
        self._channels: list[bytes] = []
        self._sock: socket.socket | None = None
        self._reader = new_reader()
        self._heard = False
        self._pause_s = _FIRST_PAUSE_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def subscribe(self, *channels: bytes) -> bool:
        """Whether the channels stand now: no message sent from here on is missed.

        Raises AddressError.
        """
        self._channels += channels
        try:
            if self._sock is None:
                self._open(self._timeouts)
            else:
                self._ask(self._sock, channels, self._timeouts.reply_s)
        except (ServerError, OSError):
            self.close()
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message. True: look now, there was one, or there may have been.

        ``timeout_s`` is the longest it takes; while Redis is away it may be back earlier.
        """
        deadline = time.monotonic() + timeout_s
        try:
            if self._sock is not None:
                return self._await_message(self._sock, deadline)
            self._pause(timeout_s)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._open(_within(self._timeouts, left_s))
        except (ServerError, OSError):
            self.close()
        return True

    def close(self) -> None:
        """Close the connection. May be called twice; ``subscribe`` and ``wait`` open it again."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _open(self, timeouts: Timeouts) -> None:
        self._reader = new_reader()
        self._sock = dial_blocking(self.address, timeouts)
        self._ask(self._sock, self._channels, timeouts.reply_s)
        self._pause_s = _FIRST_PAUSE_S

    def _ask(self, sock: socket.socket, channels: Sequence[bytes], limit_s: float) -> None:
        """Subscribe, and read until each channel is confirmed."""
        sock.settimeout(limit_s)
        sock.sendall(pack((b"SUBSCRIBE", *channels)))
        missing = len(channels)
        while missing > 0:
            missing -= sum(reply[0] == b"subscribe" for reply in self._read(sock))

    def _await_message(self, sock: socket.socket, deadline: float) -> bool:
        while not self._heard:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            sock.settimeout(left_s)
            try:
                self._read(sock)
            except TimeoutError:
                return False
        self._heard = False
        return True

    def _read(self, sock: socket.socket) -> list[Any]:
        """What has come, if only a part of something. Notes whether a message was among it."""
        data = sock.recv(_READ_BYTES)
        if not data:
            raise Unavailable(f"{self.address}: the connection was lost")
        self._reader.feed(data)
        replies = []
        while (reply := self._reader.gets()) is not NOTHING:
            if isinstance(reply, Exception):
                raise reply
            self._heard = self._heard or reply[0] == b"message"
            replies.append(reply)
        return replies

    def _pause(self, timeout_s: float) -> None:
        """Attempts to connect grow apart."""
        time.sleep(min(timeout_s, self._pause_s))
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)


def _within(timeouts: Timeouts, left_s: float) -> Timeouts:
    """The same time limits, but not longer than what is left of a wait."""
    left_s = max(left_s, _LEAST_TIMEOUT_S)
    return Timeouts(min(timeouts.connect_s, left_s), min(timeouts.reply_s, left_s))
