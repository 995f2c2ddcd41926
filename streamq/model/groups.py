"""Groups: when they become batches, and what a batch's handler gets of each member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from streamq.errors import OptionError
from streamq.model.durations import Duration, duration_ms

DEFAULT_GRACE_S = 5.0
"""A burst (a user's clicks) is over when nothing came for so long, and nobody has waited long then."""
DEFAULT_MAX_DELAY_S = 60.0
"""A group that never falls quiet is done once a minute."""
DEFAULT_MAX_SIZE = 100
"""A batch that fails is done again as a whole: so many is little to do twice."""
MAX_BATCH_SIZE = 500
"""The most members of one batch: about 5 ms of Redis's time to put it together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """When a group becomes a batch. Durations are seconds or timedelta.

    Whatever comes first decides. The rule of the member that came last holds for the whole group.
    """

    grace: Duration = DEFAULT_GRACE_S
    """No member came for so long."""
    max_delay: Duration | None = DEFAULT_MAX_DELAY_S
    """The oldest member came so long ago; 0 or None: never for that reason."""
    max_size: int | None = DEFAULT_MAX_SIZE
    """It has so many members, which is also the most that a batch has; 0 or None: ``MAX_BATCH_SIZE``."""

    def __post_init__(self) -> None:
        duration_ms("group_rule.grace", self.grace)
        if self.max_delay is not None:
            duration_ms("group_rule.max_delay", self.max_delay)
        size = self.max_size
        if size is not None and (type(size) is not int or not 0 <= size <= MAX_BATCH_SIZE):
            problem = f"must be a whole number up to {MAX_BATCH_SIZE}, or None"
            raise OptionError("group_rule.max_size", problem)

    @property
    def stored(self) -> tuple[int, int, int]:
        """Grace and longest delay in ms, most members; 0: no limit."""
        delay_ms = 0 if self.max_delay is None else duration_ms("group_rule.max_delay", self.max_delay)
        return duration_ms("group_rule.grace", self.grace), delay_ms, self.max_size or 0


DEFAULT_RULE = GroupRule()


@dataclass(frozen=True, slots=True)
class Member:
    """One task of a batch, as its handler gets it. Its repr, which ends up in logs, shows no arguments."""

    id: str
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    enqueued_at: datetime | None = None
    """By the producer's clock."""


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """One group as it was when asked. Times are UTC."""

    type: str
    """The task that it makes batches for."""
    name: str
    size: int
    oldest_at: datetime
    """When its oldest member came."""
    due_at: datetime
    """When it becomes a batch, unless further members come."""
