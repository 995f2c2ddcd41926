"""Limits of a queue: which make sense, and how they are stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from streamq.errors import MessageError, OptionError
from streamq.model.queue_limits import NO_LIMITS, QueueLimits

ALL = QueueLimits(
    size=10, rate=(100, 60), producer_rate=(1, 0.5), task_bytes=2000, types=("mail:*", "berichte:täglich")
)


def test_limits_come_back_as_they_were_stored() -> None:
    packed = ALL.pack()
    assert packed is not None
    assert QueueLimits.unpack(packed.encode()) == ALL
    assert QueueLimits.unpack(None) == NO_LIMITS


def test_no_limits_are_nothing_to_store() -> None:
    """So that a queue without limits takes the quick way."""
    assert NO_LIMITS.pack() is None
    assert QueueLimits(size=1).pack() == '{"size": 1}'


def test_durations_are_stored_in_ms() -> None:
    assert QueueLimits(rate=(5, timedelta(minutes=1))).pack() == '{"rate": [5, 60000]}'


@pytest.mark.parametrize(
    "field, value",
    [
        ("size", 0),
        ("size", -1),
        ("size", True),
        ("size", 1.5),
        ("task_bytes", 0),
        ("rate", 100),
        ("rate", (0, 1)),
        ("rate", (1.5, 1)),
        ("rate", (1, 0)),
        ("rate", (1, -1)),
        ("rate", (1, 1, 1)),
        ("rate", (10_000_000, 1)),
        ("producer_rate", (1, "minute")),
        ("types", "mail:*"),
        ("types", []),
        ("types", [""]),
        ("types", [7]),
        ("types", ["x"] * 1001),
    ],
)
def test_limits_without_meaning_are_refused_by_name(field: str, value: Any) -> None:
    """A19."""
    with pytest.raises(OptionError) as caught:
        QueueLimits(**{field: value})
    assert caught.value.field == f"limits.{field}"


@pytest.mark.parametrize("stored", [b"x", b"[]", b'{"rate": 5}', b'{"size": "many"}'])
def test_what_cannot_be_limits_is_a_typed_error(stored: bytes) -> None:
    with pytest.raises(MessageError):
        QueueLimits.unpack(stored)
