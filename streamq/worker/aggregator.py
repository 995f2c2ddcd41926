"""Makes batches of groups when they are due, by Redis's clock.

It knows of groups only what it is told: the forwarder asks Redis anyway and hears when the next group
is due; each flush answers the same. So a queue without groups costs no command. Any number of workers
may do this for one queue: a flush is one script, and whoever comes second finds nothing due.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets

from streamq.broker.grouping import FLUSH_PAGE, flush_group
from streamq.broker.keys import QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.errors import ServerError
from streamq.worker.complaints import Complaints
from streamq.worker.rounds import each

log = logging.getLogger("streamq.aggregator")

_FIRST_PAGE = 4
"""Batches that the first call of a pass may make: mostly one group is due."""
_LEAST_S = 0.01
"""Between two passes, so that many groups that are due one after the other share calls."""
_RETRY_S = 0.5


class Aggregator:
    """Flushes in the queues of which it was told that groups are due. Lives on one event loop."""

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner
        self._due_s: dict[QueueKeys, float] = {}
        """When the next group of a queue is due, on the loop's clock."""
        self._woken = asyncio.Event()
        self._complaints = Complaints(log)
        self.batches = 0
        """Batches made."""

    def expect(self, queue: QueueKeys, wait_ms: int) -> None:
        """A look at the queue has told that its next group is due then; -1: it has none."""
        if wait_ms < 0:
            self._due_s.pop(queue, None)
            return
        due_s = asyncio.get_running_loop().time() + wait_ms / 1000
        known_s = self._due_s.get(queue)
        self._due_s[queue] = due_s
        if known_s is None or due_s < known_s:
            self._woken.set()

    async def run(self) -> None:
        """Pass after pass until cancelled. A pass that fails is logged and tried again."""
        while True:
            self._woken.clear()
            try:
                await self.run_once()
                self._complaints.clear()
                await asyncio.sleep(_LEAST_S)
                await self._sleep(self._pause_s())
            except ServerError as error:
                self._complaints.note("cannot make batches", error)
                await asyncio.sleep(_RETRY_S * random.uniform(1, 2))

    async def run_once(self) -> int:
        """Flush every queue that has a group due; returns how many batches were made. Raises ServerError."""
        now_s = asyncio.get_running_loop().time()
        due = [queue for queue, due_s in self._due_s.items() if due_s <= now_s]
        return sum(await each(due, self._flush))

    async def _flush(self, queue: QueueKeys) -> int:
        made, page = 0, _FIRST_PAGE
        while True:
            # What is told while the call is under way may be news that it has missed.
            known_s = self._due_s.pop(queue, None)
            try:
                flushed = await self._runner.run(flush_group(queue, _new_ids(page)))
            except BaseException:
                if known_s is not None:
                    self._due_s.setdefault(queue, known_s)
                raise
            made += flushed.batches
            self.batches += flushed.batches
            if flushed.orphans:
                log.error("members had no body any more queue=%s count=%d", queue.name, flushed.orphans)
            if flushed.next_ms != 0:
                self._remember(queue, flushed.next_ms)
                return made
            page = FLUSH_PAGE

    def _remember(self, queue: QueueKeys, wait_ms: int) -> None:
        if wait_ms >= 0:
            due_s = asyncio.get_running_loop().time() + wait_ms / 1000
            self._due_s[queue] = min(due_s, self._due_s.get(queue, due_s))

    def _pause_s(self) -> float | None:
        """Seconds until the next group that is known of; None when there is none."""
        if not self._due_s:
            return None
        return max(0.0, min(self._due_s.values()) - asyncio.get_running_loop().time())

    async def _sleep(self, pause_s: float | None) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._woken.wait()
        except TimeoutError:
            return


def _new_ids(count: int) -> list[str]:
    """Ids for batches. Never used twice: a call whose answer was lost may have used them."""
    return [f"b{secrets.token_hex(10)}" for _ in range(count)]
