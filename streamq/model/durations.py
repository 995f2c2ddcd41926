"""Durations and moments as users give them, turned into the milliseconds used everywhere inside."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from streamq.errors import OptionError

Duration = float | timedelta
"""Seconds, or a timedelta."""

MAX_MS = 100 * 366 * 86_400_000
"""A hundred years: longer is a mistake in units."""


def duration_ms(field: str, value: object) -> int:
    """A duration in whole milliseconds, rounded up so that nothing happens early.

    Raises OptionError for what is negative, not a number or longer than a hundred years.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise OptionError(field, f"must be seconds or a timedelta, not {type(value).__name__}")
    if not math.isfinite(seconds):
        raise OptionError(field, "must be finite; leave it out or give None for no limit")
    if seconds < 0:
        raise OptionError(field, "must not be negative")
    # Rounding first keeps 0.3 s at 300 ms although 0.3 * 1000 is a little more.
    ms = math.ceil(round(seconds * 1000, 6))
    if ms > MAX_MS:
        raise OptionError(field, "must be under a hundred years; durations are in seconds")
    return ms


def moment_ms(field: str, value: object) -> int:
    """A moment in milliseconds since the Unix epoch.

    Raises OptionError for a datetime without time zone, whose meaning would depend on the machine.
    """
    if not isinstance(value, datetime):
        raise OptionError(field, f"must be a datetime with a time zone, not {type(value).__name__}")
    if value.tzinfo is None:
        raise OptionError(field, "must have a time zone, for example datetime.now(timezone.utc)")
    ms = math.ceil(round(value.timestamp() * 1000, 3))
    if ms < 0:
        raise OptionError(field, "must not be before 1970")
    return ms
