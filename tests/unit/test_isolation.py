"""The limits of isolated handlers, as users give them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from streamq import Isolation, StreamQ
from streamq.errors import OptionError
from streamq.model.isolation import shown_bytes


async def handler() -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    "given, expected", [(True, Isolation()), (False, None), (Isolation(runs=3), Isolation(runs=3))]
)
def test_isolate_takes_a_yes_a_no_or_limits(given: Any, expected: Isolation | None) -> None:
    app = StreamQ()
    task = app.task(name="t", isolate=given)(handler)
    definition = app.definitions()["t"]
    assert task.isolation == definition.isolation == expected
    assert definition.plain is (expected is None)


@pytest.mark.parametrize("given", [1, "yes", {"memory": 1}])
def test_isolate_takes_nothing_else(given: Any) -> None:
    with pytest.raises(OptionError, match=r"isolate: must be True, False or an Isolation"):
        StreamQ().task(isolate=given)


@pytest.mark.parametrize(
    "limits, field",
    [
        ({"memory": 1 << 20}, "isolate.memory"),
        ({"memory": 1e9}, "isolate.memory"),
        ({"memory": True}, "isolate.memory"),
        ({"cpu": 0.5}, "isolate.cpu"),
        ({"cpu": "2 s"}, "isolate.cpu"),
        ({"files": 3}, "isolate.files"),
        ({"runs": 0}, "isolate.runs"),
    ],
)
def test_a_limit_without_meaning_is_refused_by_name(limits: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as caught:
        Isolation(**limits)
    assert caught.value.field == field


@pytest.mark.parametrize("cpu, seconds", [(1, 1), (1.5, 2), (timedelta(minutes=1), 60), (None, None)])
def test_processor_time_counts_in_whole_seconds(cpu: Any, seconds: int | None) -> None:
    assert Isolation(cpu=cpu).cpu_s == seconds


def test_memory_is_told_as_it_was_given() -> None:
    assert shown_bytes(256 << 20) == "256 MiB"
    assert shown_bytes(100_000_000) == "100000000 bytes"
