"""What becomes of a task after an attempt: decided here, purely; done by the settler."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from streamq.errors import Drop, HandlerFailed, OptionError, RetryAfter, SkipRetry, Steering
from streamq.errors import Release as GiveBack
from streamq.model.cancelling import Cancel
from streamq.model.definition import Definition
from streamq.model.durations import duration_ms
from streamq.model.limits import Limits
from streamq.model.message import NO_TIMEOUT, Message
from streamq.model.options import DEFAULT_TIMEOUT_MS
from streamq.model.parked import Reason
from streamq.model.retry import Retry, load_policy


@dataclass(frozen=True, slots=True)
class Complete:
    """Succeeded, or dropped: the task is forgotten."""


@dataclass(frozen=True, slots=True)
class Retain:
    """Succeeded, and kept for ``retention_ms``."""

    message: Message
    retention_ms: int


@dataclass(frozen=True, slots=True)
class RetryLater:
    """To be tried again after ``delay_ms``. ``failed``: it counts as a failure."""

    message: Message
    delay_ms: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """Over, and kept for inspection. ``message`` is None where the stored bytes are kept as they are."""

    message: Message | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Release:
    """Given back unfinished; nothing is spent."""


class NotAdmitted(Exception):
    """Limits do not let the task start now. There was no attempt, so nothing is spent.

    ``known``: it has its turn after ``wait_ms``. Else nobody knows how long it takes; it asks no sooner.
    """

    def __init__(self, wait_ms: int, *, known: bool = False) -> None:
        super().__init__(f"a limit is reached; wait at least {wait_ms} ms")
        self.wait_ms = wait_ms
        self.known = known


FIRST_WAIT_MS = 100
LONGEST_BACKOFF_MS = 30_000
"""A task that waits for others to end is roused when one does. It asks by itself as well, when it has waited
as long again as before, since a worker that died gives nothing back."""


@dataclass(frozen=True, slots=True)
class Postpone:
    """To be tried again after ``delay_ms``, as it is: a cancel asked for that."""

    delay_ms: int


@dataclass(frozen=True, slots=True)
class PutBack:
    """Not started, because limits do not let it: to be asked for again after ``delay_ms``, or when roused."""

    message: Message
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Forgotten without a result, for this reason."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Aside:
    """A member that its batch went on without: what is archived of it, and why."""

    task_id: bytes
    stored: bytes
    reason: Reason
    message: Message | None
    """None: it cannot be read."""
    cause: BaseException | Reason
    """What hooks are told."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A batch has succeeded without some of its members, which are archived by themselves."""

    batch: Complete | Retain
    aside: tuple[Aside, ...]


Outcome = Complete | Retain | RetryLater | Archive | Release | Postpone | PutBack | Discard | SetAside

COMPLETE = Complete()
RELEASE = Release()

RELEASE_PAUSE_MS = 1_000
"""A handler that gives back what had been given back already: the task waits so long, nothing spent.

It then comes back to its own lane, so one that every handler gives back costs two attempts a second.
"""

OnBroken = Callable[[str, BaseException], None]
"""Called with the name of a user's function and what it raised."""


def _forgive(_name: str, _broken: BaseException) -> None:
    """Nobody wants to know."""


def after_success(message: Message, definition: Definition, result: bytes | None, now_ms: int) -> Outcome:
    """The outcome of an attempt whose handler returned."""
    retention_ms = retention_of(message, definition)
    if not retention_ms:
        return COMPLETE
    return Retain(message.copy(result=result, completed_ms=now_ms), retention_ms)


def after_refusal(message: Message, refusal: NotAdmitted, spread: float | None = None) -> Outcome:
    """The outcome of a task that limits did not let start: put back, with a delay of its own.

    ``spread`` replaces the random number, for tests.
    """
    put_back = message.put_back + 1
    delay_ms = refusal.wait_ms
    if not refusal.known:
        backoff_ms = min(LONGEST_BACKOFF_MS, FIRST_WAIT_MS * 2 ** min(put_back - 1, 20))
        # Spread, so that those which were refused together do not come back together.
        share = 0.75 + 0.5 * (random.random() if spread is None else spread)
        delay_ms = round(max(delay_ms, backoff_ms) * share)
    return PutBack(message.copy(put_back=put_back), delay_ms)


def after_error(
    message: Message,
    definition: Definition,
    error: BaseException,
    now_ms: int,
    limits: Limits,
    *,
    in_front: bool = False,
    on_broken: OnBroken = _forgive,
) -> Outcome:
    """The outcome of an attempt that raised.

    ``in_front``: the task had been given back before. ``on_broken`` is told of what a predicate or
    delay function of the user's raised; the task goes on without its answer.
    """
    if caused_by(error, Drop):
        return COMPLETE
    if caused_by(error, GiveBack):
        return RetryLater(message, RELEASE_PAUSE_MS, failed=False) if in_front else RELEASE
    error, wish = _wished(error)
    noted = _note(message, error, now_ms, limits)
    if caused_by(error, SkipRetry):
        return Archive(noted, Reason.FAILED)
    retry, failures = retry_of(message, definition), message.retried + 1

    def delay_ms() -> int:
        return retry.delay_ms(failures, error, on_broken=on_broken) if wish is None else wish.delay_ms

    spend = _is_failure(definition, error, on_broken) if wish is None else wish.spend
    if not spend:
        return RetryLater(noted, delay_ms(), failed=False)
    # After its deadline no further attempt could start, so there is none to wait for.
    too_late = message.deadline_ms is not None and message.deadline_ms <= now_ms
    if too_late or message.retried >= retry.max_retries:
        return Archive(noted, Reason.FAILED)
    return RetryLater(noted.copy(retried=failures), delay_ms(), failed=True)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a RetryAfter asks for."""

    delay_ms: int
    spend: bool


def _wished(error: BaseException) -> tuple[BaseException, _Wish | None]:
    """The error, and what the handler wished; a wish without meaning is an error of its own."""
    steering = caused_by(error, RetryAfter)
    if steering is None:
        return error, None
    try:
        return error, _Wish(duration_ms("RetryAfter.delay", steering.delay), bool(steering.spend))
    except OptionError as meaningless:
        meaningless.__cause__ = error
        return meaningless, None


def _note(message: Message, error: BaseException, now_ms: int, limits: Limits) -> Message:
    return message.copy(
        error=_summary(error)[: limits.error_chars],
        traceback=_traceback(error)[-limits.error_chars :] or None,
        failed_ms=now_ms,
    )


def after_cancel(cancel: Cancel) -> Outcome:
    """The outcome of a task that was cancelled while it was active, however its attempt ended."""
    if cancel.outcome == "delete":
        return Discard(Reason.CANCELLED)
    if cancel.outcome == "retry":
        return Postpone(cancel.delay_ms)
    return Archive(None, Reason.CANCELLED)


def retry_of(message: Message, definition: Definition) -> Retry:
    """The message's own policy where it has one, else the definition's."""
    retry = definition.retry
    if message.max_retries is None and message.retry_policy is None:
        return retry
    return Retry(
        max_retries=retry.max_retries if message.max_retries is None else message.max_retries,
        delay=retry.delay if message.retry_policy is None else load_policy(message.retry_policy),
    )


def cut_off_ms(message: Message, definition: Definition, started_ms: int) -> int | None:
    """When an attempt that started then has to end: the earlier of timeout and deadline; None: never.

    The default timeout holds only where neither is given anywhere.
    """
    timeout_ms = definition.timeout_ms if message.timeout_ms is None else message.timeout_ms
    deadline_ms = message.deadline_ms
    if timeout_ms is None and deadline_ms is None:
        timeout_ms = DEFAULT_TIMEOUT_MS
    if timeout_ms is None or timeout_ms == NO_TIMEOUT:
        return deadline_ms
    end_ms = started_ms + timeout_ms
    return end_ms if deadline_ms is None else min(end_ms, deadline_ms)


def retention_of(message: Message, definition: Definition) -> int:
    """Milliseconds for which the finished task is kept; 0: not at all."""
    return definition.retention_ms if message.retention_ms is None else message.retention_ms


def _is_failure(definition: Definition, error: BaseException, on_broken: OnBroken) -> bool:
    if isinstance(error, HandlerFailed):
        return error.is_failure  # asked where the error itself was
    if definition.is_failure is None:
        return True
    try:
        return bool(definition.is_failure(error))
    except BaseException as broken:  # noqa: BLE001  # the user's predicate: the task is taken to have failed
        on_broken("is_failure", broken)
        return True


_S = TypeVar("_S", bound=BaseException)


def caused_by(error: BaseException, steering: type[_S]) -> _S | None:
    """Also when the handler wrapped it: ``raise Other from SkipRetry()``, or in an exception group."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        if isinstance(cause, steering):
            return cause
        seen.add(id(cause))
        waiting.append(cause.__cause__)
        if isinstance(cause, BaseExceptionGroup):
            waiting.extend(cause.exceptions)
    return None


def _summary(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # an error whose text cannot be had is still an error
        text = "(its text cannot be shown)"
    name = error.type_name if isinstance(error, HandlerFailed) else type(error).__name__
    return _storable(f"{name}: {text}" if text else name)


def _traceback(error: BaseException) -> str:
    """Where it happened, without the texts of the errors: those stand in the summary."""
    told = error.__cause__ if isinstance(error, Steering) else error
    if isinstance(told, HandlerFailed):
        return told.traceback
    return _storable("".join(traceback.format_tb(error.__traceback__)))


def _storable(text: str) -> str:
    """Half a surrogate pair (file names have them) is no text for CBOR, and would hold every outcome up."""
    return text.encode("utf-8", "backslashreplace").decode()
