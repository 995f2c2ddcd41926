"""What becomes of a task after its handler raised: decided without Redis."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from streamq import Drop, Release, Retry, RetryAfter, SkipRetry
from streamq.errors import OptionError
from streamq.model.definition import Definition
from streamq.model.limits import DEFAULT_LIMITS
from streamq.model.message import Message
from streamq.model.parked import Reason
from streamq.worker.outcome import COMPLETE, RELEASE, RELEASE_PAUSE_MS, Archive, RetryLater, after_error

NOW_MS = 1_000_000


async def handler() -> None: ...


def decide(
    error: BaseException,
    *,
    retry: Retry | None = None,
    is_failure: Callable[[BaseException], bool] | None = None,
    on_broken: Callable[[str, BaseException], None] | None = None,
    in_front: bool = False,
    **fields: Any,
) -> Any:
    message = Message.new(type="t", payload=b"", **fields)
    definition = Definition(
        "t",
        handler,
        is_async=True,
        retry=retry or Retry(3, delay=60),
        timeout_ms=None,
        retention_ms=0,
        is_failure=is_failure,
    )
    told = {} if on_broken is None else {"on_broken": on_broken}
    return after_error(message, definition, error, NOW_MS, DEFAULT_LIMITS, in_front=in_front, **told)


def wrapped(inner: BaseException) -> BaseException:
    outer = RuntimeError("outer")
    outer.__cause__ = inner
    return outer


SHAPES = pytest.mark.parametrize(
    "shape",
    [lambda error: error, wrapped, lambda error: ExceptionGroup("two", [ValueError(), error])],
    ids=["plain", "as-cause", "in-group"],
)


@SHAPES
def test_retry_after_sets_the_delay_and_spends_a_retry(shape: Callable[[Exception], BaseException]) -> None:
    """Its own delay, in seconds or as a timedelta, whatever the policy says."""
    for delay in (7, 7.0, timedelta(seconds=7)):
        outcome = decide(shape(RetryAfter(delay, "busy")), retried=1)
        assert isinstance(outcome, RetryLater)
        assert (outcome.delay_ms, outcome.failed, outcome.message.retried) == (7_000, True, 2)


@SHAPES
def test_retry_after_can_spend_nothing_even_when_no_retry_is_left(
    shape: Callable[[Exception], BaseException],
) -> None:
    outcome = decide(shape(RetryAfter(7, spend=False)), retried=3)
    assert isinstance(outcome, RetryLater)
    assert (outcome.delay_ms, outcome.failed, outcome.message.retried) == (7_000, False, 3)


def test_retry_after_archives_where_no_retry_is_left_or_none_could_start() -> None:
    spent = decide(RetryAfter(7, "busy"), retried=3)
    late = decide(RetryAfter(7, "busy"), deadline_ms=NOW_MS)
    assert isinstance(spent, Archive)
    assert (spent.reason, spent.message.error if spent.message else "") == (
        Reason.FAILED,
        "RetryAfter: busy",
    )
    assert isinstance(late, Archive)


def test_retry_after_does_not_ask_is_failure() -> None:
    """The handler has said it; an answer for all errors does not overrule it."""
    assert decide(RetryAfter(7), is_failure=lambda _: False).failed
    assert not decide(RetryAfter(7, spend=False), is_failure=lambda _: True).failed


@pytest.mark.parametrize("delay", [-1, float("nan"), "soon", None, True], ids=repr)
def test_a_retry_after_without_meaning_is_a_failure_that_says_so(delay: Any) -> None:
    outcome = decide(RetryAfter(delay, spend=False))
    assert isinstance(outcome, RetryLater)
    assert (outcome.delay_ms, outcome.failed) == (60_000, True)
    assert (outcome.message.error or "").startswith("OptionError: RetryAfter.delay: ")


@SHAPES
def test_release_gives_the_task_back_as_it_is(shape: Callable[[Exception], BaseException]) -> None:
    assert decide(shape(Release("not here")), retried=3) is RELEASE


@SHAPES
def test_a_second_release_waits_and_still_spends_nothing(
    shape: Callable[[Exception], BaseException],
) -> None:
    """A task that every handler gives back must not keep the workers busy."""
    outcome = decide(shape(Release()), in_front=True, retried=2)
    assert outcome == RetryLater(
        Message.new(type="t", payload=b"", retried=2), RELEASE_PAUSE_MS, failed=False
    )


def test_skip_retry_and_drop_are_as_before() -> None:
    assert isinstance(decide(SkipRetry()), Archive)
    assert decide(Drop()) is COMPLETE


@pytest.mark.parametrize("broken", [ValueError(), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_predicate_or_delay_function_that_raises_is_told_of_and_decides_nothing(
    broken: BaseException,
) -> None:
    """B32: the error counts as a failure, and the default policy sets the delay."""
    told: list[tuple[str, BaseException]] = []

    def raises(*_: object) -> NoReturn:
        raise broken

    outcome = decide(
        ValueError("x"),
        is_failure=raises,
        retry=Retry(3, delay=raises),
        on_broken=lambda name, error: told.append((name, error)),
    )
    assert isinstance(outcome, RetryLater)
    assert outcome.failed
    assert 1_600 <= outcome.delay_ms <= 2_400
    assert told == [("is_failure", broken), ("retry.delay", broken)]
    assert decide(ValueError("x"), is_failure=raises, retry=Retry(3, delay=raises)).failed


def test_a_delay_function_that_answers_nonsense_is_told_of_too() -> None:
    told: list[str] = []
    outcome = decide(
        ValueError(), retry=Retry(3, delay=lambda *_: -1), on_broken=lambda name, _: told.append(name)
    )
    assert isinstance(outcome, RetryLater)
    assert told == ["retry.delay"]


def test_a_delay_function_cannot_be_a_coroutine_function() -> None:
    async def wait(failures: int, error: BaseException) -> float:
        return 1.0

    with pytest.raises(OptionError, match=r"retry\.delay: must be a plain function"):
        Retry(3, delay=wait)  # type: ignore[arg-type]
