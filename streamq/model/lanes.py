"""The lanes of a queue: strict priority, front first."""

from __future__ import annotations

from enum import StrEnum

from streamq.errors import OptionError


class Lane(StrEnum):
    """One stream of a queue. The value is its letter in keys' values; users choose all but ``FRONT``."""

    FRONT = "f"
    HIGH = "h"
    NORMAL = "n"
    LOW = "l"


LANES = (Lane.FRONT, Lane.HIGH, Lane.NORMAL, Lane.LOW)
"""In the order in which a worker empties them."""

PRIORITIES = {"high": Lane.HIGH, "normal": Lane.NORMAL, "low": Lane.LOW}


def lane_for(priority: object) -> Lane:
    """The lane of a priority. Raises OptionError for anything but high, normal and low."""
    lane = PRIORITIES.get(priority) if isinstance(priority, str) else None
    if lane is None:
        raise OptionError("priority", "must be 'high', 'normal' or 'low'")
    return lane
