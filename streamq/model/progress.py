"""How far a running task is, as its handler said last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from streamq.errors import OptionError

MAX_TEXT_CHARS = 200
"""A line for a reader; what is longer is cut."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task was when its handler said so."""

    fraction: float | None
    """From 0 to 1; None where nobody knows how much there is to do."""
    text: str
    at: datetime
    """By Redis's clock, when it was written."""


def packed(fraction: object, text: object) -> bytes:
    """What a handler says, as it is stored. Raises OptionError for what has no meaning."""
    if fraction is None:
        shown = ""
    elif isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise OptionError("progress", "must be a number from 0 to 1, or None")
    else:
        shown = f"{float(fraction):.6g}"
    if not isinstance(text, str):
        raise OptionError("progress", f"the text must be text, not {type(text).__name__}")
    return f"{shown} {text[:MAX_TEXT_CHARS]}".encode("utf-8", "backslashreplace")


def unpacked(stored: bytes) -> Progress | None:
    """What ``progress.lua`` stored: the time in ms, and what ``packed`` made; None if it is not that."""
    said_ms, _, said = stored.partition(b" ")
    fraction, _, text = said.decode("utf-8", "replace").partition(" ")
    try:
        at = datetime.fromtimestamp(int(said_ms) / 1000, UTC)
        return Progress(float(fraction) if fraction else None, text, at)
    except (ValueError, OverflowError, OSError):
        return None
