"""Makes scheduled and retry tasks ready when their time has come, by Redis's clock.

It is the clock of its queues: each look also tells others whether the queue is paused, and when its
next group and its next tick are due, so that nobody else has to ask.

Sleeps until the next due time that Redis told it. A task that is enqueued or retried meanwhile with
an earlier time announces itself by a hint; should the hint be lost, the longest sleep bounds the delay.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection

from streamq.broker.keys import QueueKeys
from streamq.broker.moving import Forwarded, forward
from streamq.broker.runner import AsyncRunner
from streamq.errors import ServerError
from streamq.worker.complaints import Complaints
from streamq.worker.rounds import each

log = logging.getLogger("streamq.forwarder")

_LONGEST_S = 5.0
_RETRY_S = 0.5


class Forwarder:
    """Forwards in the queues it is given, which it looks up anew in each pass: they may change."""

    def __init__(
        self,
        runner: AsyncRunner,
        queues: Collection[QueueKeys],
        on_forwarded: Callable[[QueueKeys, Forwarded], None] = lambda _queue, _forwarded: None,
    ) -> None:
        self._runner = runner
        self._queues = queues
        self._on_forwarded = on_forwarded
        self._woken = asyncio.Event()
        self._complaints = Complaints(log)
        self.forwarded = 0

    def wake(self) -> None:
        """Look again now: something may be due earlier than known."""
        self._woken.set()

    async def run(self) -> None:
        """Pass after pass until cancelled. A pass that fails is logged and tried again."""
        while True:
            self._woken.clear()
            try:
                next_ms = await self.run_once()
                self._complaints.clear()
                pause_s = _LONGEST_S if next_ms < 0 else min(_LONGEST_S, next_ms / 1000)
            except ServerError as error:
                self._complaints.note("cannot forward", error)
                pause_s = _RETRY_S * random.uniform(1, 2)
            await self._sleep(pause_s)

    async def run_once(self) -> int:
        """Forward what is due in every queue; returns ms until the next is due, or -1. Raises ServerError."""
        waits = await each(self._queues, self._forward)
        return min((wait for wait in waits if wait >= 0), default=-1)

    async def _forward(self, queue: QueueKeys) -> int:
        while True:
            moved = await self._runner.run(forward(queue))
            self.forwarded += moved.moved
            self._on_forwarded(queue, moved)
            if moved.orphans:
                log.error("due tasks had no body any more queue=%s count=%d", queue.name, moved.orphans)
            if moved.unreadable:
                log.error("due tasks made no sense; archived queue=%s count=%d", queue.name, moved.unreadable)
            if moved.next_ms != 0:
                return moved.next_ms

    async def _sleep(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._woken.wait()
        except TimeoutError:
            return
