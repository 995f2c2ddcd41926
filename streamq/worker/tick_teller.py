"""Tells the user's hooks of ticks: before they fire, and what came of them. A hook changes nothing.

While Redis is away nobody can say which ticks are due. For the entries that this worker has seen tick
it is computed here, so that hooks hear of each tick that did not fire.
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
class _Known:
    """An entry that has ticked here."""

    ticks: Ticks
    event: CronEvent
    next_ms: int | None


class TickTeller:
    """The hooks of one worker."""

    def __init__(self, timetable: Timetable) -> None:
        self._before = timetable.before_fire
        self._after = timetable.after_fire
        self._known: dict[tuple[str, str], _Known] = {}

    def note(self, ticks: Ticks, event: CronEvent, next_ms: int | None) -> None:
        """An entry has ticked, and will again at that moment."""
        if self._after:
            self._known[event.queue, event.id] = _Known(ticks, event, next_ms)

    async def before(self, event: CronEvent) -> None:
        """This tick is about to fire, unless another worker was quicker."""
        await _call_all("before_fire", self._before, event)

    async def after(self, event: CronEvent) -> None:
        """What came of it."""
        await _call_all("after_fire", self._after, event)

    async def missed(self, now_ms: int, error: BaseException) -> None:
        """Redis cannot be used: tell of the ticks up to now that nobody has been told of yet."""
        for known in list(self._known.values()):
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
