"""Retry policies: pure functions from the number of the failure to the delay before the next attempt."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import MessageError, OptionError
from streamq.model.durations import MAX_MS
from streamq.model.retry import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_RETRY,
    Exponential,
    Fixed,
    Listed,
    Retry,
    as_retry,
    load_policy,
    store_policy,
)

FAILURES = st.integers(min_value=1, max_value=1_000_000)
SPREAD = st.floats(min_value=0, max_value=1, exclude_max=True)
SECONDS = st.integers(min_value=0, max_value=10**9).map(lambda ms: ms / 1000)
POLICIES = st.one_of(
    st.builds(
        Exponential,
        base=SECONDS,
        factor=st.floats(min_value=1, max_value=100),
        cap=SECONDS,
        jitter=st.floats(min_value=0, max_value=1),
    ),
    st.builds(Fixed, SECONDS),
    st.lists(SECONDS, min_size=1, max_size=5).map(lambda delays: Listed(*delays)),
)


def test_the_default_is_twenty_five_retries_with_growing_delays() -> None:
    """A1: 2 s, 4 s, 8 s ... up to a day; the last about ten days after the first failure."""
    assert DEFAULT_RETRY.max_retries == DEFAULT_MAX_RETRIES == 25
    delays = [DEFAULT_RETRY.delay_ms(failures, ValueError(), spread=0.5) for failures in range(1, 26)]
    assert delays[:4] == [2000, 4000, 8000, 16_000]
    assert delays == sorted(delays)
    assert delays[-1] == 86_400_000
    assert 10 < sum(delays) / 86_400_000 < 11


@given(POLICIES, FAILURES, SPREAD)
def test_a_delay_is_whole_and_never_negative_or_endless(policy: Any, failures: int, spread: float) -> None:
    delay = policy.delay_ms(failures, spread)
    assert type(delay) is int
    assert 0 <= delay <= 2 * MAX_MS


@given(
    base=st.integers(1, 10**6),
    factor=st.floats(1, 100),
    jitter=st.floats(0, 1),
    failures=FAILURES,
    spread=SPREAD,
)
def test_jitter_stays_within_its_share(
    base: int, factor: float, jitter: float, failures: int, spread: float
) -> None:
    """So that tasks which failed together do not come back together, and none comes much too soon."""
    exact = Exponential(base / 1000, factor, jitter=0).delay_ms(failures, spread)
    spread_out = Exponential(base / 1000, factor, jitter=jitter).delay_ms(failures, spread)
    assert exact * (1 - jitter) - 1 <= spread_out <= exact * (1 + jitter) + 1


def test_jitter_spreads_evenly_around_the_delay() -> None:
    policy = Exponential(base=10, factor=1, jitter=0.2)
    assert [policy.delay_ms(1, spread) for spread in (0, 0.25, 0.5, 0.75)] == [8000, 9000, 10_000, 11_000]


def test_without_a_given_spread_delays_differ() -> None:
    assert len({DEFAULT_RETRY.delay_ms(10, ValueError()) for _ in range(50)}) > 1


def test_a_fixed_delay_is_the_same_each_time() -> None:
    assert {Fixed(1.5).delay_ms(failures, 0.9) for failures in (1, 2, 1000)} == {1500}
    assert Retry(3, delay=timedelta(minutes=1)).delay_ms(2, ValueError()) == 60_000
    assert Retry(3, delay=0.25).delay_ms(2, ValueError()) == 250


def test_listed_delays_go_in_order_and_the_last_repeats() -> None:
    policy = Listed(1, 5, timedelta(seconds=30))
    assert [policy.delay_ms(failures, 0.5) for failures in range(1, 6)] == [
        1000,
        5000,
        30_000,
        30_000,
        30_000,
    ]


def test_a_custom_function_gets_the_failure_and_the_error() -> None:
    seen: list[tuple[int, BaseException]] = []
    error = ValueError("x")

    def delay(failures: int, why: BaseException) -> float:
        seen.append((failures, why))
        return 7.0

    assert Retry(3, delay=delay).delay_ms(2, error) == 7000
    assert seen == [(2, error)]


def raises(failures: int, error: BaseException) -> float:
    raise RuntimeError("a mistake of the user's")


@pytest.mark.parametrize(
    "delay", [raises, lambda *_: -1, lambda *_: "soon", lambda *_: None, lambda *_: float("nan")]
)
def test_a_custom_function_that_fails_does_not_lose_the_task(delay: Any) -> None:
    """B32: the default policy answers in its place."""
    assert Retry(3, delay=delay).delay_ms(1, ValueError(), spread=0.5) == 2000


@given(POLICIES)
def test_a_policy_survives_its_way_through_the_message(policy: Any) -> None:
    """The worker need not share code with the producer: what was said is stored as plain values."""
    stored = store_policy(Retry(3, delay=policy))
    assert stored is not None
    again = load_policy(stored)
    for failures in (1, 2, 7):
        assert again.delay_ms(failures, 0.3) == policy.delay_ms(failures, 0.3)
    assert store_policy(Retry(3, delay=again)) == stored


def test_code_is_not_stored() -> None:
    assert store_policy(Retry(3, delay=lambda *_: 1.0)) is None


@pytest.mark.parametrize(
    "stored",
    [[], ["z"], ["e"], ["e", 1], ["e", -1, 2, 3, 0.1], ["e", 1, 0.5, 3, 0.1], ["e", "a", 2, 3, 0.1], ["f"],
     ["f", -1], ["f", "1"], ["f", 1.5], ["f", 10**30], ["l"], ["l", -1], ["l", None], [1, 2],
     ["e", 1, "2", 3, 0]],
)  # fmt: skip
def test_a_stored_policy_that_makes_no_sense_is_a_message_error(stored: list[Any]) -> None:
    with pytest.raises(MessageError, match="retry policy"):
        load_policy(stored)


@given(
    st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just("e")),
        max_size=6,
    )
)
def test_no_stored_value_breaks_the_worker(stored: list[Any]) -> None:
    try:
        policy = load_policy(stored)
    except MessageError:
        return
    assert 0 <= policy.delay_ms(3, 0.5) <= 2 * MAX_MS


@pytest.mark.parametrize(
    "make",
    [
        lambda: Exponential(base=-1),
        lambda: Exponential(cap=-1),
        lambda: Exponential(factor=0.5),
        lambda: Exponential(factor=101),
        lambda: Exponential(factor=float("nan")),
        lambda: Exponential(jitter=-0.1),
        lambda: Exponential(jitter=1.1),
        lambda: Fixed(-1),
        lambda: Fixed("1"),  # type: ignore[arg-type]
        Listed,
        lambda: Listed(1, -1),
        lambda: Retry(-1),
        lambda: Retry(1.5),  # type: ignore[arg-type]
        lambda: Retry(True),
        lambda: Retry("3"),  # type: ignore[arg-type]
        lambda: Retry(10**7),
        lambda: Retry(3, delay=-1),
        lambda: Retry(3, delay="soon"),  # type: ignore[arg-type]
    ],
)
def test_a_policy_without_meaning_is_refused_when_it_is_made(make: Any) -> None:
    """A6: negative retries among them; each refusal names the field."""
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.field.startswith("retry.")


def test_a_policy_is_a_value() -> None:
    """Frozen and comparable, so that options with it can be shared between calls."""
    assert Retry(3, delay=5) == Retry(3, delay=Fixed(5))
    assert Listed(1, 2) == Listed(1, 2)
    assert hash(Retry(3)) == hash(Retry(3))
    with pytest.raises(AttributeError):
        Retry(3).max_retries = 4  # type: ignore[misc]
    assert as_retry(Retry(3)) == as_retry(3)
