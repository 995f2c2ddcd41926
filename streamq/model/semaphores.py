"""What a semaphore is: a name, how many may hold it at once, and how long a holder may be silent."""

from __future__ import annotations

from dataclasses import dataclass

from streamq.errors import OptionError
from streamq.model.durations import Duration, duration_ms
from streamq.model.names import check_key_name
from streamq.model.run_limits import MAX_CONCURRENCY

DEFAULT_LEASE_S = 30.0
"""Long enough for a busy program to renew three times in it, short enough to wait for after a crash."""

LEAST_LEASE_MS = 100
LONGEST_LEASE_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class SemaphoreOptions:
    """One semaphore, checked. All programs that use it should agree on the limit."""

    name: str
    limit: int
    lease_ms: int
    timeout_s: float | None
    """How long to wait for a permit; None: for ever."""

    @classmethod
    def of(cls, name: object, limit: object, lease: object, timeout: Duration | None) -> SemaphoreOptions:
        """Raises OptionError, naming what has no meaning."""
        checked = check_key_name("name", name)
        if type(limit) is not int or not 1 <= limit <= MAX_CONCURRENCY:
            raise OptionError("limit", f"must be a whole number from 1 to {MAX_CONCURRENCY}")
        lease_ms = duration_ms("lease", lease)
        if not LEAST_LEASE_MS <= lease_ms <= LONGEST_LEASE_MS:
            raise OptionError("lease", "must be from 0.1 seconds to a day; it is renewed while it is held")
        return cls(checked, limit, lease_ms, timeout_s(timeout))


def timeout_s(timeout: Duration | None) -> float | None:
    """Seconds. Raises OptionError for what is no duration."""
    return None if timeout is None else duration_ms("timeout", timeout) / 1000
