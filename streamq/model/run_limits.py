"""Limits of running tasks: how many at once, how many in a time. Checked here, counted in Redis.

A limit counts for one task type, or for each value of a key taken from its arguments, or together for
all tasks that share its ``name``; always within one queue. What a limit does not let through is put
back and spends no retry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal

from streamq.errors import OptionError
from streamq.model.durations import Duration, duration_ms
from streamq.model.names import check_name

Key = str | Callable[..., object] | None
"""What each value of which is counted apart: an argument's name, or a function of all arguments."""

MAX_CONCURRENCY = 1_000_000
MAX_WINDOW = 100_000
"""Starts that one sliding window may have: Redis remembers each, at about 12 bytes. A bucket is a number."""
MAX_STARTS_PER_S = 100_000
"""Rates beyond this are no limit: one Redis does not hand tasks out that fast."""
MAX_LIMITS = 10
"""Of one task: each costs every start a look."""

Scope = Literal["all", "worker"]
SCOPES: Final = ("all", "worker")


class RunLimit:
    """What all three kinds are, so that a list of them has a type."""

    __slots__ = ()

    key: Key
    name: str | None


@dataclass(frozen=True, slots=True)
class Concurrency(RunLimit):
    """At most ``limit`` running at once: over all workers, or in each worker with ``scope="worker"``."""

    limit: int
    _: KW_ONLY
    key: Key = None
    scope: Scope = "all"
    name: str | None = None

    def __post_init__(self) -> None:
        _check_count("concurrency.limit", self.limit, MAX_CONCURRENCY)
        if self.scope not in SCOPES:
            raise OptionError("concurrency.scope", "must be 'all' (all workers together) or 'worker'")
        _check_key("concurrency", self.key, self.name)


@dataclass(frozen=True, slots=True)
class TokenBucket(RunLimit):
    """On average ``rate`` starts in each ``per``, and up to ``burst`` at once after a quiet time."""

    rate: float
    per: Duration = 1.0
    _: KW_ONLY
    burst: int = 1
    key: Key = None
    name: str | None = None

    def __post_init__(self) -> None:
        per_ms = _check_per("token_bucket.per", self.per)
        _check_rate(self.rate)
        if self.rate * 1000 / per_ms > MAX_STARTS_PER_S:
            raise OptionError("token_bucket.rate", f"must be at most {MAX_STARTS_PER_S} a second")
        _check_count("token_bucket.burst", self.burst, MAX_CONCURRENCY)
        if self.burst * per_ms / self.rate > _A_YEAR_MS:
            raise OptionError(
                "token_bucket.rate", "is so low that a used burst takes over a year to come back"
            )
        _check_key("token_bucket", self.key, self.name)


@dataclass(frozen=True, slots=True)
class SlidingWindow(RunLimit):
    """At most ``limit`` starts within any stretch of time as long as ``per``. Exact."""

    limit: int
    per: Duration
    _: KW_ONLY
    key: Key = None
    name: str | None = None

    def __post_init__(self) -> None:
        _check_count("sliding_window.limit", self.limit, MAX_WINDOW, "; use a TokenBucket for more")
        _check_per("sliding_window.per", self.per)
        _check_key("sliding_window", self.key, self.name)


_A_YEAR_MS = 366 * 86_400_000


def check_limits(limits: object) -> tuple[RunLimit, ...]:
    """The limits of one task. Raises OptionError for what is none, and for two that share a name."""
    if isinstance(limits, RunLimit) or not isinstance(limits, Iterable):
        raise OptionError("limits", "must be a list of Concurrency, TokenBucket and SlidingWindow")
    checked = tuple(limits)
    for limit in checked:
        if type(limit) not in _LETTERS:
            raise OptionError("limits", f"has a {type(limit).__name__}, which is no limit")
    if len(checked) > MAX_LIMITS:
        raise OptionError("limits", f"must be at most {MAX_LIMITS}")
    named = [(type(limit), limit.name) for limit in checked if limit.name is not None]
    if len(set(named)) < len(named):
        raise OptionError("limits", "two of a kind have the same name: they would count each start twice")
    return checked


def limiter_names(task: str, limits: Sequence[RunLimit]) -> list[str]:
    """What each limit of a task is called where it is counted, before its key's value is added.

    A limit without a name is told from others of its kind by its place among them.
    """
    names = []
    places: dict[type, int] = {}
    for limit in limits:
        kind = _LETTERS[type(limit)]
        if limit.name is not None:
            names.append(f"{kind}:{limit.name}")
            continue
        place = places[type(limit)] = places.get(type(limit), -1) + 1
        names.append(f"{kind}{place}:{task}")
    return names


_LETTERS: dict[type, str] = {Concurrency: "c", TokenBucket: "b", SlidingWindow: "w"}


def key_reader(
    key: str | Callable[..., object], handler: Callable[..., Any]
) -> Callable[[Sequence[Any], Mapping[str, Any]], object]:
    """A function from a task's arguments to the value of its key.

    Raises OptionError when the handler has no such argument.
    """
    if not isinstance(key, str):
        return lambda args, kwargs: key(*args, **kwargs)
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError) as error:
        raise OptionError("limits", f"key {key!r}: the handler does not tell its arguments") from error
    names = [parameter.name for parameter in parameters]
    if key not in names:
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return lambda _, kwargs: kwargs[key]
        raise OptionError(
            "limits", f"key {key!r} is no argument of the handler: {', '.join(names) or 'none'}"
        )
    place = names.index(key)
    parameter = parameters[place]
    if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
        raise OptionError("limits", f"key {key!r} stands for many arguments; give a function of them")
    positional = parameter.kind is not parameter.KEYWORD_ONLY

    def read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        if key in kwargs:
            return kwargs[key]
        if positional and place < len(args):
            return args[place]
        if parameter.default is parameter.empty:
            raise TypeError(f"the argument {key!r} is missing, which a limit of the task counts by")
        return parameter.default

    return read


def _check_count(field: str, value: object, most: int, otherwise: str = "") -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise OptionError(field, f"must be a whole number from 1 to {most}{otherwise}")


def _check_rate(rate: object) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise OptionError("token_bucket.rate", "must be a number above 0")


def _check_per(field: str, value: object) -> int:
    per_ms = duration_ms(field, value)
    if not 1 <= per_ms <= _A_YEAR_MS:
        raise OptionError(field, "must be from a millisecond to a year; durations are in seconds")
    return per_ms


def _check_key(field: str, key: object, name: object) -> None:
    if isinstance(key, str):
        if not key.isidentifier():
            raise OptionError(f"{field}.key", "must be an argument's name, or a function of the arguments")
    elif inspect.iscoroutinefunction(key):
        raise OptionError(f"{field}.key", "must be a plain function: it tells, it cannot wait")
    elif key is not None and not callable(key):
        raise OptionError(f"{field}.key", f"must be an argument's name or a function, not {key!r}")
    if name is not None:
        check_name(f"{field}.name", name)
