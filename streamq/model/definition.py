"""What a worker knows of a task type: its handler and the options that the message may leave open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamq.model.call import TaskCall
from streamq.model.dependency import Needs, Provider
from streamq.model.groups import Member
from streamq.model.hooks import NO_HOOKS, Hooks
from streamq.model.isolation import Isolation
from streamq.model.retry import Retry
from streamq.model.run_limits import RunLimit

Aggregate = Callable[[str, list[Member]], TaskCall[Any] | Awaitable[TaskCall[Any] | None] | None]
"""Called with the group and its members; may be a coroutine function. None: there is nothing to run."""


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
    hooks: Hooks = NO_HOOKS
    """The task's own; the app's are called after them."""
    middleware: tuple[Callable[..., Awaitable[Any]], ...] = ()
    """What stands around the handler, the outermost first."""
    limits: tuple[RunLimit, ...] = ()
    """All of them must let a task start."""
    needs: Needs | None = None
    """What the handler is given beside the arguments of the task."""
    overrides: Mapping[Callable[..., Any], Provider] = field(default_factory=dict)
    """Providers that stand in for others just now; changes while tests run."""
    isolation: Isolation | None = None
    """The handler runs in a child process, with these limits."""
    batch: bool = False
    """The handler takes a list of members, not the arguments of one task."""
    aggregate: Aggregate | None = None
    """Makes one task of the members of a group, which then runs in their place."""
    plain: bool = field(init=False)
    """The handler is a coroutine function and nothing stands around it: it is awaited as it is."""

    def __post_init__(self) -> None:
        bare = self.is_async and self.isolation is None and not self.batch
        plain = bare and not self.surrounded and not self.limits
        object.__setattr__(self, "plain", plain)

    @property
    def surrounded(self) -> bool:
        """Something stands around the handler, or is made for it."""
        return bool(self.middleware) or self.needs is not None
