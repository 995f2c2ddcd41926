"""Unique tasks: what makes two tasks the same, for how long, and what happens to the second one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from streamq.errors import OptionError
from streamq.model.durations import Duration, duration_ms
from streamq.model.names import check_name

Mode = Literal["until_start", "until_done", "window", "debounce", "keep_last"]
OnDuplicate = Literal["raise", "return", "replace"]

_LETTERS = {"until_start": "s", "until_done": "d", "window": "w", "debounce": "b", "keep_last": "k"}
_ON_DUPLICATE = ("raise", "return", "replace")


@dataclass(frozen=True, slots=True)
class Unique:
    """Of tasks with the same key at most one is there at a time.

    The key is made of the queue, the task's name and its arguments. ``key`` may be instead a text,
    the names of the arguments that matter, or a function of the arguments whose value matters.
    """

    mode: Mode = "until_done"
    """``until_start``: until a worker has it. ``until_done``: until it has ended, retries included.
    ``window``: until it has ended and, from the moment it is due, ``ttl`` has passed. ``debounce``: as
    until_start, but a newer task takes the waiting one's place, and its time. ``keep_last``: at most
    one runs and one waits; a newer task takes the place of the one that waits."""
    _: KW_ONLY
    key: str | Sequence[str] | Callable[..., object] | None = None
    ttl: Duration | None = None
    """Of a window."""
    on_conflict: OnDuplicate = "raise"
    """``raise`` DuplicateTask; ``return`` the handle of the task that holds the lock, with ``created``
    False; ``replace`` it if it still waits, and raise if it runs."""
    keep_when_archived: bool = False
    """An archived task keeps its lock until it is deleted or purged."""

    def __post_init__(self) -> None:
        if self.mode not in tuple(_LETTERS):  # a tuple, where what has no hash may be looked for
            raise OptionError("unique", f"the mode must be one of {', '.join(_LETTERS)}")
        if (self.ttl is not None) != (self.mode == "window"):
            raise OptionError("unique.ttl", "belongs to a window, which needs it; the other modes have none")
        if self.ttl is not None and duration_ms("unique.ttl", self.ttl) == 0:
            raise OptionError("unique.ttl", "must be more than zero")
        if self.on_conflict not in _ON_DUPLICATE:
            raise OptionError("unique.on_conflict", "must be 'raise', 'return' or 'replace'")
        if not isinstance(self.keep_when_archived, bool):
            raise OptionError("unique.keep_when_archived", "must be True or False")
        object.__setattr__(self, "key", _checked_key(self.key))

    @property
    def letter(self) -> str:
        """The mode as it is stored."""
        letter = _LETTERS[self.mode]
        return letter.upper() if self.keep_when_archived else letter

    @property
    def window_ms(self) -> int:
        """How long a window stands; 0 for other modes."""
        return 0 if self.ttl is None else duration_ms("unique.ttl", self.ttl)


def as_unique(value: object) -> Unique | None:
    """The option as it was meant: True for the defaults, or the name of a mode. Raises OptionError."""
    if value is None or value is False:
        return None
    if value is True:
        return Unique()
    if isinstance(value, str):
        return Unique(value)  # type: ignore[arg-type]  # refused there
    if not isinstance(value, Unique):
        raise OptionError("unique", f"must be a Unique, a mode or True, not {type(value).__name__}")
    return value


def _checked_key(key: object) -> object:
    if key is None or callable(key):
        return key
    if isinstance(key, str):
        return check_name("unique.key", key)
    if not isinstance(key, Sequence) or not key or not all(isinstance(name, str) for name in key):
        raise OptionError("unique.key", "must be text, names of arguments, or a function of the arguments")
    return tuple(key)
