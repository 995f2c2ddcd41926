"""What a handler may say of its progress, and how it is stored."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import OptionError
from streamq.model.progress import MAX_TEXT_CHARS, Progress, packed, unpacked

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
AT_MS = b"1767323045678 "


@pytest.mark.parametrize("fraction", [0, 1, 0.4, 1 / 3, None])
def test_what_was_said_is_what_is_read(fraction: float | None) -> None:
    read = unpacked(AT_MS + packed(fraction, "reading page 3"))
    assert read is not None
    assert read.fraction == (None if fraction is None else pytest.approx(fraction, abs=1e-6))
    assert (read.text, read.at) == ("reading page 3", AT)


@given(st.none() | st.floats(0, 1), st.text())
def test_any_text_and_fraction_can_be_stored(fraction: float | None, text: str) -> None:
    read = unpacked(AT_MS + packed(fraction, text))
    assert isinstance(read, Progress)
    assert len(packed(fraction, text)) <= 20 + 6 * MAX_TEXT_CHARS


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan"), float("inf"), "0.5", True, 1j])
def test_a_fraction_without_meaning_is_refused(fraction: Any) -> None:
    with pytest.raises(OptionError, match=r"progress: must be a number from 0 to 1, or None"):
        packed(fraction, "")


def test_what_is_no_text_is_refused_without_showing_it() -> None:
    with pytest.raises(OptionError, match=r"progress: the text must be text, not bytes"):
        packed(0.5, b"secret")


def test_long_text_is_cut() -> None:
    assert packed(None, "x" * 1_000) == b" " + b"x" * MAX_TEXT_CHARS


@pytest.mark.parametrize("stored", [b"", b"soon 0.5 x", b"17 much x", b"9" * 40 + b" 0.5 x"])
def test_what_others_wrote_there_is_no_progress(stored: bytes) -> None:
    assert unpacked(stored) is None
