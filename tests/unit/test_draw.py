"""The order of the queues in a turn: as given, or by a weighted draw."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.worker.draw import Draw, normalised

WEIGHTS = {"critical": 6, "default": 3, "low": 1}


def test_every_turn_lists_each_queue_once() -> None:
    """A45."""
    draw = Draw(WEIGHTS, strict=False, rand=random.Random(1))
    for _ in range(500):
        assert sorted(draw.order()) == sorted(WEIGHTS)


def test_the_first_place_falls_by_weight() -> None:
    """A45: frequencies near 6:3:1. The random numbers are fixed, so this cannot fail by chance."""
    draw = Draw(WEIGHTS, strict=False, rand=random.Random(2))
    turns = 20_000
    first = Counter(draw.order()[0] for _ in range(turns))
    for name, weight in WEIGHTS.items():
        assert first[name] / turns == pytest.approx(weight / 10, abs=0.015)


def test_the_second_place_falls_by_weight_among_those_left() -> None:
    """A45: a draw without replacement."""
    draw = Draw(WEIGHTS, strict=False, rand=random.Random(3))
    turns = [draw.order() for _ in range(20_000)]
    behind = Counter(order[1] for order in turns if order[0] == "critical")
    assert behind["default"] / behind.total() == pytest.approx(3 / 4, abs=0.015)


def test_strict_order_is_the_order_given() -> None:
    """A44: weights mean nothing then."""
    draw = Draw({"low": 1, "high": 100}, strict=True)
    assert {tuple(draw.order()) for _ in range(100)} == {("low", "high")}


@pytest.mark.parametrize(
    "weights, expected",
    [
        ([100, 20, 5], [20, 4, 1]),
        ([6, 3, 3], [2, 1, 1]),
        ([7], [1]),
        ([3, 5], [3, 5]),
    ],
)
def test_weights_are_brought_to_the_smallest_whole_numbers(weights: list[int], expected: list[int]) -> None:
    """A46, but for zero: Asynq takes it as never; StreamQ's WorkerConfig refuses it as a mistake."""
    named = {f"q{place}": weight for place, weight in enumerate(weights)}
    assert list(normalised(named).values()) == expected


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6))
def test_normalising_keeps_the_proportions(weights: list[int]) -> None:
    """A46."""
    named = {str(place): weight for place, weight in enumerate(weights)}
    small = normalised(named)
    for one, other in itertools.product(named, repeat=2):
        assert small[one] * named[other] == small[other] * named[one]
    assert normalised(small) == small


def test_a_single_queue_is_not_drawn() -> None:
    assert list(Draw({"only": 5}, strict=False).order()) == ["only"]
