"""What a worker knows of a task type: its handler and the options that the message may leave open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamq.model.retry import Retry


@dataclass(frozen=True, slots=True)
class Definition:
    """One task type. Where a message says nothing, these values hold."""

    name: str
    handler: Callable[..., Any]
    is_async: bool
    retry: Retry
    timeout_ms: int | None
    """``NO_TIMEOUT`` for no limit; None when nothing was said."""
    retention_ms: int
    is_failure: Callable[[BaseException], bool] | None = None
    """Errors for which it answers False are tried again without spending a retry."""
