"""Audits and sweeps queues every few minutes.

What others broke by hand is repaired or set aside, and said loudly; what stood beside tasks that have
ended goes. Of all workers that look after a queue one does it in each period; who, decides a key in Redis.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Generator
from typing import Any, TypeVar

from streamq.broker import auditing
from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.clock import ServerClock
from streamq.errors import ServerError
from streamq.worker.complaints import Complaints
from streamq.worker.rounds import each

T = TypeVar("T")

log = logging.getLogger("streamq.auditor")

_PERIOD_S = 300.0
_CALM_PAGES = 30
_CALM_S, _BUSY_S = 1.0, 0.02
"""Pauses between pages: a small queue is audited without anyone noticing, a large one in bearable time."""


class Auditor:
    """Audits the queues it is given, which it looks up anew in each round: they may change."""

    def __init__(
        self, runner: AsyncRunner, queues: Collection[QueueKeys], clock: ServerClock, *, worker_id: str
    ) -> None:
        self._runner = runner
        self._queues = queues
        self._clock = clock
        self._worker_id = worker_id
        self._complaints = Complaints(log)

    async def run(self) -> None:
        """Audit until cancelled. A round that fails is logged and tried again."""
        pause_s = _PERIOD_S * random.random()
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.run_once()
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot audit", error)
            pause_s = _PERIOD_S * random.uniform(1.0, 1.2)

    async def run_once(self) -> int:
        """Audit each queue that nobody has audited lately; returns how much was found. Raises ServerError."""
        return sum(await each(self._queues, self._audit))

    async def _audit(self, queue: QueueKeys) -> int:
        period_ms = int(_PERIOD_S * 1000)
        if not await self._runner.run(auditing.claim(queue, self._worker_id, period_ms)):
            return 0
        found = await self._walk(auditing.audit(queue, self._clock.now_ms()))
        if found.total:
            log.error(
                "the data of a queue did not fit together "
                "queue=%s vanished=%d repaired=%d quarantined=%d",
                queue.name, found.vanished, found.repaired, found.quarantined,
            )  # fmt: skip
        if found.swept:
            log.info("swept what tasks had left queue=%s count=%d", queue.name, found.swept)
        return found.total

    async def _walk(self, steps: Generator[Command[Any], Any, T]) -> T:
        command, sent = next(steps), 0
        while True:
            reply = await self._runner.run(command)
            sent += 1
            try:
                command = steps.send(reply)
            except StopIteration as done:
                brought: T = done.value
                return brought
            await asyncio.sleep(_CALM_S if sent < _CALM_PAGES else _BUSY_S)
