"""What users have called when something has become of a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from streamq.errors import RegistrationError

Hook = Callable[[Any, Any], Awaitable[None] | None]
"""Called with the task's context and a fact; may be a coroutine function."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one task, or of an app for all of its tasks."""

    on_error: Hook | None = None
    """After each attempt that raised; the fact is the error."""
    on_success: Hook | None = None
    """After each attempt that returned; the fact is the result."""
    on_archive: Hook | None = None
    """When a task was archived; the fact is the error, or the Reason where no handler had raised."""

    def __post_init__(self) -> None:
        for name in ("on_error", "on_success", "on_archive"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise RegistrationError(name, f"must be a function, not {type(hook).__name__}")


NO_HOOKS = Hooks()
