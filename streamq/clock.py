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
