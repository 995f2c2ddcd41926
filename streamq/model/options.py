"""The options of a task, and who wins: the call over the task over the app.

"Not given" (UNSET) and None are different things: None switches a limit off, UNSET leaves the
choice to the next in line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, TypedDict

from streamq.errors import OptionError, PayloadError
from streamq.model.durations import Duration, duration_ms, moment_ms
from streamq.model.groups import GroupRule
from streamq.model.lanes import lane_for
from streamq.model.names import check_key_name, check_name, check_task_id
from streamq.model.retry import Retry, as_retry
from streamq.model.unique import Mode, Unique, as_unique

DEFAULT_QUEUE = "default"
DEFAULT_TIMEOUT_MS = 30 * 60_000
"""Applies when neither timeout nor deadline is given anywhere, so that a handler that hangs ends some day."""

Priority = Literal["high", "normal", "low"]
OnExpiry = Literal["archive", "drop"]
OnConflict = Literal["raise", "return", "replace"]
ON_CONFLICT: Final = ("raise", "return", "replace")


class Unset(Enum):
    """The type of UNSET."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


class TaskOptions(TypedDict, total=False):
    """What may be set for every call of a task, in ``@app.task(...)`` and as the app's defaults."""

    queue: str
    priority: Priority
    retry: Retry | int | None
    timeout: Duration | None
    retention: Duration | None
    headers: Mapping[str, str] | None
    on_expiry: OnExpiry
    unique: Unique | Mode | bool | None
    group_rule: GroupRule | None


class CallOptions(TaskOptions, total=False):
    """What may be set for one call."""

    delay: Duration | None
    at: datetime | None
    deadline: datetime | None
    expires: Duration | datetime | None
    task_id: str | None
    on_conflict: OnConflict
    group: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """Options as given, each checked; UNSET where nothing was said."""

    queue: str | Unset = UNSET
    priority: Priority | Unset = UNSET
    delay: Duration | Unset | None = UNSET
    at: datetime | Unset | None = UNSET
    retry: Retry | Unset = UNSET
    timeout: Duration | Unset | None = UNSET
    deadline: datetime | Unset | None = UNSET
    expires: Duration | datetime | Unset | None = UNSET
    task_id: str | Unset | None = UNSET
    on_conflict: OnConflict | Unset = UNSET
    retention: Duration | Unset | None = UNSET
    headers: Mapping[str, str] | Unset = UNSET
    on_expiry: OnExpiry | Unset = UNSET
    unique: Unique | Unset | None = UNSET
    group: str | Unset | None = UNSET
    group_rule: GroupRule | Unset | None = UNSET

    @classmethod
    def of(cls, given: Mapping[str, Any], allowed: Iterable[str] | None = None) -> Options:
        """Options from keywords. Raises OptionError for an unknown name or a value without meaning."""
        if not isinstance(given, Mapping):
            raise OptionError("defaults", f"must be a map of options, not {type(given).__name__}")
        names = sorted(_NAMES if allowed is None else allowed)
        for name in given:
            if name not in names:
                raise OptionError(name, _misplaced(name, names))
        checked = {name: _CHECKS[name](value) for name, value in given.items()}
        if checked.get("delay") is not None and checked.get("at") is not None:
            raise OptionError("delay", "give either delay or at, not both")
        return cls(**checked)

    def over(self, base: Options) -> Options:
        """These options, and ``base`` where they say nothing. Headers are merged, these winning."""
        taken = {name: value for name in _NAMES if (value := getattr(self, name)) is not UNSET}
        if isinstance(self.headers, Mapping) and isinstance(base.headers, Mapping):
            taken["headers"] = {**base.headers, **self.headers}
        # A new delay replaces an old moment and the other way round: the last one wins.
        if "delay" in taken and "at" not in taken:
            taken["at"] = UNSET
        elif "at" in taken and "delay" not in taken:
            taken["delay"] = UNSET
        return replace(base, **taken)


_NAMES = tuple(item.name for item in fields(Options))
TASK_OPTION_NAMES = frozenset(TaskOptions.__annotations__)


_OF_HANDLERS = frozenset(
    {"aggregate", "is_failure", "isolate", "limits", "on_archive", "on_error", "on_success"}
)
"""What app.task takes beside options: it stays with the handler, no message carries it."""


def _misplaced(name: str, names: list[str]) -> str:
    """What is wrong with an option that is not among those that may be given here."""
    if name in _NAMES:
        return f"unknown option of a task: it is said for each call, as in task.options({name}=...)"
    if name in _OF_HANDLERS:
        return f"unknown option here; it belongs to the handler, as in app.task({name}=...)"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    return f"unknown option; {hint}"


def _check_duration(field: str) -> Any:
    def check(value: object) -> object:
        if value is not None:
            duration_ms(field, value)
        return value

    return check


def _check_timeout(value: object) -> object:
    if value is not None and duration_ms("timeout", value) == 0:
        raise OptionError("timeout", "must be more than zero; give None for no limit")
    return value


def _check_moment(field: str) -> Any:
    def check(value: object) -> object:
        if value is not None:
            moment_ms(field, value)
        return value

    return check


def _check_expires(value: object) -> object:
    if isinstance(value, datetime):
        moment_ms("expires", value)
    elif value is not None:
        duration_ms("expires", value)
    return value


def _check_priority(value: object) -> object:
    lane_for(value)
    return value


def _check_on_conflict(value: object) -> object:
    if value not in ON_CONFLICT:
        raise OptionError("on_conflict", "must be 'raise', 'return' or 'replace'")
    return value


def _check_on_expiry(value: object) -> object:
    if value not in ("archive", "drop"):
        raise OptionError("on_expiry", "must be 'archive' or 'drop'")
    return value


def _check_group_rule(value: object) -> object:
    if value is not None and not isinstance(value, GroupRule):
        raise OptionError("group_rule", f"must be a GroupRule, not {type(value).__name__}")
    return value


def _check_headers(value: object) -> dict[str, str]:
    """A copy, so that the caller may go on changing its own map."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError("headers", f"must be a map from text to text, not {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(text, str):
            raise PayloadError("headers", f"the value of {str(name)[:80]!r} must be text")
        check_name("headers", name)
    return dict(value)


_CHECKS: dict[str, Any] = {
    "queue": lambda value: check_key_name("queue", value),
    "priority": _check_priority,
    "delay": _check_duration("delay"),
    "at": _check_moment("at"),
    "retry": as_retry,
    "timeout": _check_timeout,
    "deadline": _check_moment("deadline"),
    "expires": _check_expires,
    "task_id": lambda value: None if value is None else check_task_id(value),
    "on_conflict": _check_on_conflict,
    "retention": _check_duration("retention"),
    "headers": _check_headers,
    "group": lambda value: None if value is None else check_name("group", value),
    "group_rule": _check_group_rule,
    "on_expiry": _check_on_expiry,
    "unique": as_unique,
}
