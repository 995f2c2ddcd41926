"""Limits of running tasks: what they may be, what they are called, what they count by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from streamq.broker.limiting import Rule
from streamq.errors import OptionError
from streamq.model.run_limits import (
    MAX_LIMITS,
    Concurrency,
    RunLimit,
    SlidingWindow,
    TokenBucket,
    check_limits,
    key_reader,
    limiter_names,
)

WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Concurrency(0), "concurrency.limit"),
    (lambda: Concurrency(True), "concurrency.limit"),
    (lambda: Concurrency(1.5), "concurrency.limit"),  # type: ignore[arg-type]
    (lambda: Concurrency(1, scope="node"), "concurrency.scope"),  # type: ignore[arg-type]
    (lambda: Concurrency(1, key="not a name"), "concurrency.key"),
    (lambda: Concurrency(1, key=5), "concurrency.key"),  # type: ignore[arg-type]
    (lambda: Concurrency(1, key=asyncio.sleep), "concurrency.key"),
    (lambda: Concurrency(1, name=" "), "concurrency.name"),
    (lambda: TokenBucket(0), "token_bucket.rate"),
    (lambda: TokenBucket(float("nan")), "token_bucket.rate"),
    (lambda: TokenBucket(float("inf")), "token_bucket.rate"),
    (lambda: TokenBucket("5"), "token_bucket.rate"),  # type: ignore[arg-type]
    (lambda: TokenBucket(1, per=timedelta(days=300), burst=2), "token_bucket.rate"),
    (lambda: TokenBucket(1, per=0), "token_bucket.per"),
    (lambda: TokenBucket(1, burst=0), "token_bucket.burst"),
    (lambda: SlidingWindow(0, per=1), "sliding_window.limit"),
    (lambda: SlidingWindow(100_001, per=1), "sliding_window.limit"),
    (lambda: SlidingWindow(1, per=0), "sliding_window.per"),
    (lambda: SlidingWindow(1, per=-1), "sliding_window.per"),
    (lambda: SlidingWindow(1, per=timedelta(days=400)), "sliding_window.per"),
    (lambda: check_limits(Concurrency(1)), "limits"),
    (lambda: check_limits(None), "limits"),
    (lambda: check_limits([Concurrency(1), 5]), "limits"),
    (lambda: check_limits([Concurrency(1)] * (MAX_LIMITS + 1)), "limits"),
    (lambda: check_limits([Concurrency(1, name="a"), Concurrency(2, name="a")]), "limits"),
]


@pytest.mark.parametrize("make, field", WRONG)
def test_a_limit_without_meaning_is_refused(make: Callable[[], object], field: str) -> None:
    """The error names the field."""
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.field == field


def test_limits_that_make_sense_are_taken() -> None:
    limits = [
        Concurrency(1),
        Concurrency(5, key="user", scope="worker"),
        TokenBucket(0.5, per=timedelta(minutes=1), burst=10, key=lambda user: user),
        SlidingWindow(100, per=3600, name="mail-api"),
    ]
    assert check_limits(limits) == tuple(limits)


# Names


def test_limits_of_one_kind_are_told_apart_by_their_place() -> None:
    """A limit of another kind may come and go without starting the others' counts anew."""
    limits: list[RunLimit] = [Concurrency(9), SlidingWindow(1, per=1), Concurrency(1, key="user")]
    assert limiter_names("mail", limits) == ["c0:mail", "w0:mail", "c1:mail"]
    assert limiter_names("mail", limits[1:]) == ["w0:mail", "c0:mail"]


def test_a_name_is_the_same_for_all_tasks_and_meets_no_tasks_own() -> None:
    limits = [Concurrency(9, name="api"), Concurrency(1)]
    assert limiter_names("a", limits) == ["c:api", "c0:a"]
    assert limiter_names("b", limits) == ["c:api", "c0:b"]


# Keys


def handler(user: str, n: int = 5, *rest: int, deep: bool = False) -> None:
    """Something to read arguments of."""


CALLS: list[tuple[str, list[Any], dict[str, Any], object]] = [
    ("user", ["ann"], {}, "ann"),
    ("user", [], {"user": "bob"}, "bob"),
    ("n", ["ann"], {}, 5),
    ("n", ["ann", 7, 8], {}, 7),
    ("deep", ["ann", 7, 8], {}, False),
    ("deep", ["ann"], {"deep": True}, True),
]


@pytest.mark.parametrize("key, args, kwargs, value", CALLS)
def test_a_key_is_found_however_the_argument_was_given(
    key: str, args: list[Any], kwargs: dict[str, Any], value: object
) -> None:
    """By place, by name, or by its default."""
    assert key_reader(key, handler)(args, kwargs) == value


def test_a_key_may_be_a_function_of_the_arguments() -> None:
    read = key_reader(lambda user, **_: user.lower(), handler)
    assert read(["ANN"], {"n": 3}) == "ann"


def test_a_key_may_be_among_the_handlers_any_keywords() -> None:
    def loose(**anything: object) -> None: ...

    assert key_reader("user", loose)([], {"user": "ann"}) == "ann"


@pytest.mark.parametrize("key", ["usr", "rest"])
def test_a_key_that_is_no_argument_is_refused(key: str) -> None:
    with pytest.raises(OptionError, match=key):
        key_reader(key, handler)


def test_a_handler_that_hides_its_arguments_is_refused() -> None:
    with pytest.raises(OptionError, match="does not tell"):
        key_reader("user", type("odd", (), {"__signature__": "none", "__call__": None})())


def test_an_argument_that_is_missing_is_named() -> None:
    """As calling the handler would, so the attempt fails and says why."""
    with pytest.raises(TypeError, match="user"):
        key_reader("user", handler)([], {})


def test_a_wrapped_handlers_arguments_are_known() -> None:
    assert key_reader("user", partial(handler, n=1))(["ann"], {}) == "ann"


# What is counted


def test_a_bucket_is_counted_in_microseconds_per_token() -> None:
    assert Rule.of("x", TokenBucket(rate=3, burst=7)) == ("x", "b", 333333.333, 7)
    assert Rule.of("x", TokenBucket(rate=2, per=timedelta(minutes=1))) == ("x", "b", 30_000_000, 1)


def test_a_window_is_counted_in_microseconds() -> None:
    assert Rule.of("x", SlidingWindow(9, per=0.5)) == ("x", "w", 9, 500_000)
