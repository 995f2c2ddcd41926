"""The rules of groups, and the payload of a batch."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import cbor2
import pytest

from streamq.codec import decode_batch
from streamq.errors import MessageError, OptionError
from streamq.model.groups import MAX_BATCH_SIZE, GroupRule


def test_the_usual_rule() -> None:
    assert GroupRule().stored == (5_000, 60_000, 100)


def test_none_and_zero_are_no_limit() -> None:
    """A95."""
    assert GroupRule(max_delay=None, max_size=None).stored == (5_000, 0, 0)
    assert GroupRule(max_delay=0, max_size=0).stored == (5_000, 0, 0)


def test_durations_are_seconds_or_timedelta() -> None:
    rule = GroupRule(grace=0.25, max_delay=timedelta(minutes=5), max_size=MAX_BATCH_SIZE)
    assert rule.stored == (250, 300_000, 500)


@pytest.mark.parametrize(
    "field, given",
    [
        ("grace", {"grace": -1}),
        ("grace", {"grace": None}),
        ("max_delay", {"max_delay": "1m"}),
        ("max_size", {"max_size": -1}),
        ("max_size", {"max_size": MAX_BATCH_SIZE + 1}),
        ("max_size", {"max_size": 2.5}),
        ("max_size", {"max_size": True}),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=field) as refused:
        GroupRule(**given)
    assert refused.value.field == f"group_rule.{field}"


def test_a_batch_is_read_as_ids_and_messages() -> None:
    assert decode_batch(cbor2.dumps([b"a", b"x", b"b", b""])) == [(b"a", b"x"), (b"b", b"")]
    assert decode_batch(cbor2.dumps([])) == []


@pytest.mark.parametrize("payload", [[b"a"], [b"a", "x"], {"a": b"x"}, [[], {}], 1])
def test_anything_else_is_no_batch(payload: object) -> None:
    with pytest.raises(MessageError):
        decode_batch(cbor2.dumps(payload))
