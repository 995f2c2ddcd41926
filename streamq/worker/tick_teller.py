"""Tells the user's hooks of ticks: before they fire, and what came of them. A hook changes nothing.

While Redis is away nobody can say which ticks are due. So where there are hooks, a worker remembers
after each pass which entries there are, and computes it: hooks hear of each tick that did not fire.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from streamq.cron import MOST_TICKS, Ticks
from streamq.model.info import instant
from streamq.model.schedule import CronEvent, FireHook, Timetable

log = logging.getLogger("streamq.tick_teller")

HOOK_S = 10.0
"""How long an async hook may take: the ticks after it wait."""


@dataclass(slots=True, eq=False)
class Known:
    """An entry as it stood when Redis was last asked."""

    ticks: Ticks
    event: CronEvent
    next_ms: int | None


class TickTeller:
    """The hooks of one worker."""

    def __init__(self, timetable: Timetable) -> None:
        self._before = timetable.before_fire
        self._after = timetable.after_fire
        self._known: dict[str, list[Known]] = {}

    @property
    def curious(self) -> bool:
        """Somebody wants to hear of ticks that do not fire."""
        return bool(self._after)

    def knows(self, queue: str) -> bool:
        """Whether its entries are known."""
        return queue in self._known

    def learn(self, queue: str, entries: list[Known]) -> None:
        """These are the entries of the queue."""
        self._known[queue] = entries

    def will_tell(self, event: CronEvent, due_ms: int) -> None:
        """What came of this tick is not known yet; it is told when it is."""
        for known in self._known.get(event.queue, ()):
            if known.event.id == event.id and known.next_ms is not None and known.next_ms <= due_ms:
                known.next_ms = known.ticks.due_after(due_ms)

    async def before(self, event: CronEvent) -> None:
        """This tick is about to fire, unless another worker was quicker."""
        await _call_all("before_fire", self._before, event)

    async def after(self, event: CronEvent) -> None:
        """What came of it."""
        await _call_all("after_fire", self._after, event)

    async def missed(self, now_ms: int, error: BaseException) -> None:
        """Redis cannot be used: tell of the ticks up to now that nobody has been told of yet."""
        for known in [known for entries in self._known.values() for known in entries]:
            for _ in range(MOST_TICKS):
                due_ms = known.next_ms
                if due_ms is None or due_ms > now_ms:
                    break
                known.next_ms = known.ticks.due_after(due_ms)
                tick = instant(known.ticks.tick_of(due_ms))
                await self.after(replace(known.event, tick=tick, error=error))


async def _call_all(name: str, hooks: Sequence[FireHook], event: CronEvent) -> None:
    for hook in hooks:
        try:
            told = hook(event)
            if inspect.isawaitable(told):
                async with asyncio.timeout(HOOK_S):
                    await told
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.exception("%s raised cron=%s queue=%s", name, event.id, event.queue)
        except BaseException as broken:  # also sys.exit: a hook must not end the worker
            log.error("%s raised cron=%s queue=%s", name, event.id, event.queue, exc_info=broken)
