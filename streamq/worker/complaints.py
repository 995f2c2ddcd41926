"""Says what goes wrong again and again without flooding the log.

The first failure of a kind is a warning, and then one a minute; those in between are debug lines.
When it works again, that is said once.
"""

from __future__ import annotations

import logging

from streamq.clock import monotonic_s

_REPEAT_S = 60.0


class Complaints:
    """The complaints of one component. May be used by one thread at a time."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said_s: dict[type[BaseException], float] = {}
        self._since_s: float | None = None

    def note(self, event: str, error: BaseException) -> None:
        """It failed."""
        now_s = monotonic_s()
        if self._since_s is None:
            self._since_s = now_s
        said_s = self._said_s.get(type(error))
        loud = said_s is None or now_s - said_s >= _REPEAT_S
        if loud:
            self._said_s[type(error)] = now_s
        self._log.log(logging.WARNING if loud else logging.DEBUG, "%s, trying again error=%s", event, error)

    def clear(self) -> None:
        """It worked."""
        if self._since_s is not None:
            self._log.info("works again after=%.1fs", monotonic_s() - self._since_s)
            self._since_s = None
            self._said_s.clear()
