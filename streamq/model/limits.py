"""How large and how deep anything a caller hands in may be. Checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass, fields

from streamq.errors import OptionError

MAX_NAME_BYTES = 200
"""Queues, task types, task ids and namespaces: they repeat in every key and index."""

MAX_DEPTH = 200
"""The deepest nesting that can be allowed. Readers stop a little beyond it, whatever their own limits say."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what one task may carry. Sizes are bytes of CBOR, not of Python objects."""

    payload_bytes: int = 1 << 20
    """Arguments of one task. Each sits inline in a stream: keep large data elsewhere and pass a reference."""
    result_bytes: int = 1 << 20
    """What a handler returns. A larger result archives the task, with the reason."""
    headers_bytes: int = 8 << 10
    depth: int = 64
    """Lists and maps inside each other."""
    error_chars: int = 4_000
    """Text kept of a handler's error; the rest is cut."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not int or value < 1:
                raise OptionError(f"limits.{item.name}", "must be a whole number of at least 1")
        if self.depth > MAX_DEPTH:
            raise OptionError("limits.depth", f"must be at most {MAX_DEPTH}, which every reader reads")


DEFAULT_LIMITS = Limits()
