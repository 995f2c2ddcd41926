"""Retry policies: pure functions from (failures so far, error) to the delay before the next attempt."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamq.errors import MessageError, OptionError
from streamq.model.durations import MAX_MS, Duration, duration_ms

DEFAULT_MAX_RETRIES = 25
"""With the default delays the last retry comes about ten days after the first failure."""

MAX_RETRIES = 1_000_000

CustomDelay = Callable[[int, BaseException], Duration]
"""Called with the number of the failure (1 for the first) and the error; returns the delay."""


def _between(least: float, value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True, slots=True)
class Exponential:
    """``base * factor ** (failures - 1)``, capped, then spread by ``jitter``.

    Jitter is a share of the delay: with 0.2 the delay falls evenly within 80 % to 120 % of it, so
    that tasks which failed together do not come back together.
    """

    base: Duration = 2.0
    factor: float = 2.0
    cap: Duration = 86_400.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        duration_ms("retry.base", self.base)
        duration_ms("retry.cap", self.cap)
        if not _between(1, self.factor, 100):
            raise OptionError("retry.factor", "must be between 1 and 100")
        if not _between(0, self.jitter, 1):
            raise OptionError("retry.jitter", "must be between 0 and 1")

    def delay_ms(self, failures: int, spread: float) -> int:
        """The delay before the retry that follows failure number ``failures`` (1 for the first).

        ``spread`` is a random number in [0, 1).
        """
        base, cap = duration_ms("retry.base", self.base), duration_ms("retry.cap", self.cap)
        try:
            delay = min(float(cap), base * self.factor ** (failures - 1))
        except OverflowError:
            delay = float(cap)
        return round(delay * (1 + self.jitter * (2 * spread - 1)))


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same delay each time."""

    delay: Duration

    def __post_init__(self) -> None:
        duration_ms("retry.delay", self.delay)

    def delay_ms(self, failures: int, spread: float) -> int:
        """The delay; neither argument matters."""
        return duration_ms("retry.delay", self.delay)


@dataclass(frozen=True, slots=True)
class Listed:
    """One delay per failure, in order; the last one repeats."""

    delays: tuple[Duration, ...]

    def __init__(self, *delays: Duration) -> None:
        if not delays:
            raise OptionError("retry.delays", "must have at least one delay")
        for delay in delays:
            duration_ms("retry.delays", delay)
        object.__setattr__(self, "delays", delays)

    def delay_ms(self, failures: int, spread: float) -> int:
        """The delay at the place of this failure."""
        return duration_ms("retry.delays", self.delays[min(failures, len(self.delays)) - 1])


Policy = Exponential | Fixed | Listed


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failing task is tried again, and when.

    ``max_retries`` counts retries, not attempts: 0 means one attempt and no more. ``delay`` is a
    policy, a fixed duration, or a function of (failure number, error).
    """

    max_retries: int = DEFAULT_MAX_RETRIES
    delay: Policy | Duration | CustomDelay = field(default_factory=Exponential)

    def __post_init__(self) -> None:
        count = self.max_retries
        if type(count) is not int or not 0 <= count <= MAX_RETRIES:
            raise OptionError("retry.max_retries", f"must be a whole number from 0 to {MAX_RETRIES}")
        if inspect.iscoroutinefunction(self.delay):
            raise OptionError("retry.delay", "must be a plain function: it decides, it cannot wait")
        if not callable(self.delay) and not isinstance(self.delay, Policy):
            object.__setattr__(self, "delay", Fixed(self.delay))

    def delay_ms(
        self,
        failures: int,
        error: BaseException,
        spread: float | None = None,
        *,
        on_broken: Callable[[str, BaseException], None] | None = None,
    ) -> int:
        """Milliseconds to wait after failure number ``failures`` (1 for the first).

        A custom function that raises or answers nonsense must not lose the task: the default policy
        answers in its place, and ``on_broken`` is told. ``spread`` replaces the random number, for tests.
        """
        spread = random.random() if spread is None else spread
        if isinstance(self.delay, Policy):
            return self.delay.delay_ms(failures, spread)
        try:
            return duration_ms("retry.delay", self.delay(failures, error))  # type: ignore[operator]
        except BaseException as broken:  # noqa: BLE001  # it is the user's code
            if on_broken is not None:
                on_broken("retry.delay", broken)
            return Exponential().delay_ms(failures, spread)


DEFAULT_RETRY = Retry()


def as_retry(value: object) -> Retry:
    """The policy a user means: a Retry, a number of retries, or None for no retry."""
    if isinstance(value, Retry):
        return value
    if value is None:
        return Retry(max_retries=0)
    if isinstance(value, int) and not isinstance(value, bool):
        return Retry(max_retries=value)
    raise OptionError("retry", f"must be a Retry, a number of retries or None, not {type(value).__name__}")


def store_policy(retry: Retry) -> list[Any] | None:
    """The delay policy as plain values for the message; None where it is code and stays in the worker."""
    match retry.delay:
        case Exponential(base, factor, cap, jitter):
            return ["e", duration_ms("retry.base", base), factor, duration_ms("retry.cap", cap), jitter]
        case Fixed(delay):
            return ["f", duration_ms("retry.delay", delay)]
        case Listed(delays):
            return ["l", *(duration_ms("retry.delays", delay) for delay in delays)]
    return None


def load_policy(stored: list[Any]) -> Policy:
    """The policy that ``store_policy`` wrote. Raises MessageError for anything else."""
    try:
        match stored:
            case ["e", base_ms, factor, cap_ms, jitter]:
                return Exponential(_seconds(base_ms), factor, _seconds(cap_ms), jitter)
            case ["f", delay_ms]:
                return Fixed(_seconds(delay_ms))
            case ["l", *delays_ms]:
                return Listed(*(_seconds(delay_ms) for delay_ms in delays_ms))
    except (OptionError, TypeError) as error:
        raise MessageError(f"retry policy: {error}") from error
    raise MessageError("retry policy: not one that this version knows")


def _seconds(ms: Any) -> float:
    if not isinstance(ms, int) or not 0 <= ms <= MAX_MS:
        raise TypeError("not a duration")
    return ms / 1000
