"""What becomes of a cancelled task: asked for by the caller, kept as a mark while a worker still runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from streamq.errors import OptionError
from streamq.model.durations import Duration, duration_ms

CancelOutcome = Literal["archive", "delete", "retry"]
"""``archive``: it is kept for inspection; ``delete``: it is forgotten; ``retry``: it runs again later."""

_LETTERS: Final[dict[str, str]] = {"archive": "a", "delete": "d", "retry": "r"}
_OUTCOMES: Final[dict[str, CancelOutcome]] = {"a": "archive", "d": "delete", "r": "retry"}


@dataclass(frozen=True, slots=True)
class Cancel:
    """A cancel as it was asked for."""

    outcome: CancelOutcome = "archive"
    delay_ms: int = 0
    """Before the next attempt; only for ``retry``."""

    @classmethod
    def of(cls, outcome: object, delay: Duration | None) -> Cancel:
        """From what the caller said. Raises OptionError."""
        if outcome not in ("archive", "delete", "retry"):
            raise OptionError("outcome", "must be 'archive', 'delete' or 'retry'")
        if delay is not None and outcome != "retry":
            raise OptionError("delay", "goes with outcome='retry' alone: no other outcome has a next attempt")
        return cls(outcome, 0 if delay is None else duration_ms("delay", delay))

    def pack(self) -> str:
        """The mark as it is stored: a letter and the delay in ms."""
        return f"{_LETTERS[self.outcome]}{self.delay_ms}"

    @classmethod
    def unpack(cls, mark: bytes) -> Cancel:
        """Read a mark. One that this version does not know archives the task, which loses nothing."""
        text = mark.decode("ascii", "replace")
        if text[:1] not in _OUTCOMES or not text[1:].isdigit():
            return cls()
        return cls(_OUTCOMES[text[:1]], int(text[1:]))
