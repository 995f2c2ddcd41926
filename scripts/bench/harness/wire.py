"""Just enough of the Redis protocol to read counters and flush. Measures nothing by itself."""

from __future__ import annotations

import socket
from typing import Any


class RedisReplyError(Exception):
    """Redis answered with an error."""


class Wire:
    """One blocking RESP2 connection on loopback."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._file = self._socket.makefile("rb")

    def call(self, *words: str) -> Any:
        """Send one command; return its reply (bytes, int, None or list)."""
        encoded = [word.encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded)]
        parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
        self._socket.sendall(b"".join(parts))
        return self._reply()

    def info(self, section: str) -> dict[str, str]:
        """One section of INFO as a dictionary."""
        text = self.call("INFO", section).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def read_line(self) -> bytes:
        """The next raw line, for MONITOR. Raises TimeoutError when none comes in time."""
        return self._file.readline()

    def set_timeout(self, seconds: float) -> None:
        """How long a read may wait from now on."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._file.close()
        self._socket.close()

    def _reply(self) -> Any:
        line = self._file.readline()
        if not line:
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self._reply() for _ in range(int(rest))]
        raise RedisReplyError(rest.decode(errors="replace"))
