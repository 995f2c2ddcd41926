"""The value of a task outside the lanes: what the scripts read stands before the first colon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import MessageError
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Parked, Reason


@given(
    st.sampled_from(LANES),
    st.integers(0, 10**9),
    st.binary(max_size=50),
    st.sampled_from([None, *Reason]),
)
def test_what_is_packed_comes_back(lane: Lane, crashes: int, message: bytes, reason: Reason | None) -> None:
    parked = Parked(lane, crashes, message, reason)
    assert Parked.unpack(parked.pack()) == parked


def test_the_form_is_the_scripts() -> None:
    """Lua matches ``^(%a)(%d+)`` up to the first colon, and writes ``!crashed:`` itself."""
    assert Parked(Lane.NORMAL, 0, b"::m").pack() == b"n0:::m"
    assert Parked(Lane.LOW, 12, b"m", Reason.CRASHED).pack() == b"l12!crashed:m"


@pytest.mark.parametrize(
    "value",
    [b"", b"n0", b":m", b"n:m", b"z0:m", b"0n:m", b"nx:m", b"n0!why:m", b"n0!:m"[:3], b"\xff0:m", b"n\xb2:m"],
)
def test_anything_else_is_a_message_error(value: bytes) -> None:
    with pytest.raises(MessageError):
        Parked.unpack(value)


@given(st.binary(max_size=30))
def test_no_bytes_raise_anything_but_a_message_error(value: bytes) -> None:
    try:
        parked = Parked.unpack(value)
    except MessageError:
        return
    assert value.endswith(parked.message)
