"""Durations and moments become whole milliseconds, rounded up so that nothing happens early."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import OptionError
from streamq.model.durations import MAX_MS, duration_ms, moment_ms

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "value, ms",
    [
        (0, 0),
        (1, 1000),
        (0.25, 250),
        (0.3, 300),  # 0.3 * 1000 is a little more than 300
        (0.29, 290),  # 0.29 * 1000 is a little less than 290
        (1.1, 1100),
        (0.0001, 1),
        (0.0011, 2),
        (timedelta(milliseconds=300), 300),
        (timedelta(microseconds=1), 1),
        (timedelta(days=1), 86_400_000),
        (MAX_MS // 1000, MAX_MS),
    ],
)
def test_seconds_become_milliseconds(value: float | timedelta, ms: int) -> None:
    """B21: exact where it is whole, up where it is not."""
    assert duration_ms("f", value) == ms


@given(st.floats(min_value=0, max_value=MAX_MS / 1000 - 1))
def test_no_duration_is_cut_short(seconds: float) -> None:
    """B21: within the float's own precision, and never more than a millisecond longer."""
    ms = duration_ms("f", seconds)
    assert ms - seconds * 1000 + math.ulp(seconds * 1000) >= -1e-6
    assert ms - seconds * 1000 < 1.001


@given(st.integers(min_value=0, max_value=MAX_MS))
def test_whole_milliseconds_stay_what_they_are(ms: int) -> None:
    assert duration_ms("f", timedelta(milliseconds=ms)) == ms
    assert duration_ms("f", ms / 1000) == ms


@given(st.integers(min_value=0, max_value=2**52).map(lambda us: EPOCH + timedelta(microseconds=us)))
def test_a_moment_is_never_before_itself(moment: datetime) -> None:
    exact_us = (moment - EPOCH) // timedelta(microseconds=1)
    assert 0 <= moment_ms("f", moment) * 1000 - exact_us < 1000


def test_a_moment_is_the_same_in_every_time_zone() -> None:
    utc = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert moment_ms("f", utc) == 1_767_323_045_678
    assert moment_ms("f", utc.astimezone(timezone(timedelta(hours=-7)))) == moment_ms("f", utc)


@pytest.mark.parametrize(
    "value",
    [-1, -1e-9, timedelta(microseconds=-1), math.nan, math.inf, -math.inf, "1", None, True, 1j, MAX_MS],
)
def test_what_is_no_duration_is_refused_by_name(value: object) -> None:
    with pytest.raises(OptionError) as caught:
        duration_ms("wait", value)
    assert caught.value.field == "wait"


@pytest.mark.parametrize(
    "value",
    [datetime(2026, 1, 2), datetime(1969, 1, 1, tzinfo=UTC), 5, "now", None],  # noqa: DTZ001
)
def test_what_is_no_moment_is_refused_by_name(value: object) -> None:
    with pytest.raises(OptionError) as caught:
        moment_ms("at", value)
    assert caught.value.field == "at"
