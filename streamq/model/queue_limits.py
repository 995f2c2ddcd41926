"""Limits of a queue: what it takes from producers. Checked in Redis, in the call that stores the tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamq.errors import MessageError, OptionError
from streamq.model.durations import Duration, duration_ms
from streamq.model.names import check_name

Rate = tuple[int, Duration]
"""So many tasks in such a time."""

MAX_RATE = 1_000_000
"""Tasks in the time of a rate."""
MAX_TYPES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What is None is not limited. A task that a limit refuses raises a QueueLimitReached."""

    size: int | None = None
    """Tasks that are not finished: ready, running, scheduled, waiting for a retry or in a group."""
    rate: Rate | None = None
    """Of all producers together: ``(100, 60)`` lets a hundred come at once, and then one every 0.6 s."""
    producer_rate: Rate | None = None
    """Of each client."""
    task_bytes: int | None = None
    """Of one task as it is stored: arguments, headers, and some 30 bytes of StreamQ's own."""
    types: Sequence[str] | None = None
    """Names of the tasks that it takes; ``mail:*`` means all that begin with ``mail:``."""

    def __post_init__(self) -> None:
        for name in ("size", "task_bytes"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise OptionError(f"limits.{name}", "must be a whole number of at least 1")
        for name in ("rate", "producer_rate"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _checked_rate(f"limits.{name}", getattr(self, name)))
        if self.types is not None:
            object.__setattr__(self, "types", _checked_types(self.types))

    def pack(self) -> str | None:
        """As it is stored; None when there is nothing to store."""
        stored = {
            "size": self.size,
            "bytes": self.task_bytes,
            "rate": _packed(self.rate),
            "producer_rate": _packed(self.producer_rate),
            "types": self.types,
        }
        given = {name: value for name, value in stored.items() if value is not None}
        return json.dumps(given, ensure_ascii=False) if given else None

    @classmethod
    def unpack(cls, stored: bytes | None) -> QueueLimits:
        """What ``pack`` stored. Raises MessageError for anything else."""
        try:
            given = json.loads(stored or b"{}")
            return cls(
                size=given.get("size"),
                task_bytes=given.get("bytes"),
                rate=_unpacked(given.get("rate")),
                producer_rate=_unpacked(given.get("producer_rate")),
                types=given.get("types"),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise MessageError(f"not limits of a queue: {error}") from None


NO_LIMITS = QueueLimits()


def _checked_rate(field: str, rate: Any) -> Rate:
    if not isinstance(rate, Sequence) or len(rate) != 2:
        raise OptionError(field, "must be a number of tasks and a time: (100, 60)")
    count, period = rate
    if type(count) is not int or not 1 <= count <= MAX_RATE:
        raise OptionError(field, f"the number of tasks must be between 1 and {MAX_RATE}")
    if duration_ms(field, period) == 0:
        raise OptionError(field, "the time must be more than zero")
    return count, period


def _checked_types(types: Any) -> tuple[str, ...]:
    if isinstance(types, str) or not isinstance(types, Sequence) or not 1 <= len(types) <= MAX_TYPES:
        raise OptionError("limits.types", f"must be a list of 1 to {MAX_TYPES} names")
    return tuple(check_name("limits.types", name) for name in types)


def _packed(rate: Rate | None) -> tuple[int, int] | None:
    return None if rate is None else (rate[0], duration_ms("rate", rate[1]))


def _unpacked(rate: Any) -> Rate | None:
    return None if rate is None else (rate[0], rate[1] / 1000)
