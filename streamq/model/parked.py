"""The value of a task outside the lanes: ``<lane letter><crashes>[!<reason>]:<message>``.

What stands before the colon is for the scripts, which move bytes and never decode a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from streamq.errors import MessageError
from streamq.model.lanes import Lane


class Reason(StrEnum):
    """Why a task is where it is, where the message itself cannot say it: archived, unless told otherwise."""

    CRASHED = "crashed"
    """Its workers died too often while they ran it."""
    UNDECODABLE = "undecodable"
    """The stored bytes are no message, or a newer version's."""
    ORPHANED = "orphaned"
    """Its bytes were found where they belong to no task; see docs/guarantees.md, "Self-repair"."""
    EXPIRED = "expired"
    """It was not started before it expired."""
    FAILED = "failed"
    """The handler failed, and no retry was left or wanted."""
    CANCELLED = "cancelled"
    """Somebody cancelled it."""
    LIMITED = "limited"
    """In the state retry: limits of its type do not let it start now."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A task in no lane. ``message`` is opaque here."""

    lane: Lane
    crashes: int
    message: bytes
    reason: Reason | None = None

    def pack(self) -> bytes:
        """The stored value."""
        reason = f"!{self.reason}" if self.reason else ""
        return f"{self.lane}{self.crashes}{reason}:".encode() + self.message

    @classmethod
    def unpack(cls, value: bytes) -> Parked:
        """Read a stored value. Raises MessageError for anything else."""
        slip, colon, message = value.partition(b":")
        text, _, reason = slip.decode("ascii", "replace").partition("!")
        try:
            if not colon:
                raise ValueError("no colon")
            return cls(Lane(text[:1]), int(text[1:]), message, Reason(reason) if reason else None)
        except ValueError as error:
            raise MessageError(f"not a parked task: {error}") from None
