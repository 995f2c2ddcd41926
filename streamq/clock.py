"""The two clocks: wall time is for storage, monotonic time is for durations.

Neither decides a lease or a due time: those follow Redis's own clock.
"""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Milliseconds since the Unix epoch, by this machine's clock."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds on a clock that never goes backwards; only differences mean anything."""
    return time.monotonic()


def utc_day(ms: int) -> str:
    """The UTC day of a wall time, as ``YYYYMMDD``: the suffix of a day's counters."""
    return time.strftime("%Y%m%d", time.gmtime(ms / 1000))


class ServerClock:
    """Redis's wall clock, as last heard of, carried on by this machine's monotonic clock.

    Deadlines and expiries are compared with it, so that a worker whose own clock is wrong still
    agrees with the rest. Until the first ``set`` it is this machine's wall clock.
    """

    __slots__ = ("_offset_s",)

    def __init__(self) -> None:
        self.set(wall_ms())

    def set(self, server_ms: int) -> None:
        """Take over what Redis just said."""
        self._offset_s = server_ms / 1000 - time.monotonic()

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return int((time.monotonic() + self._offset_s) * 1000)
