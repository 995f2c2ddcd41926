"""Deletes what has had its time.

That is: completed and archived tasks, silent producers, consumers of workers that left.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection

from streamq.broker import moving, presence
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.refusals import NoGroup
from streamq.broker.runner import AsyncRunner
from streamq.errors import ServerError
from streamq.worker.complaints import Complaints
from streamq.worker.rounds import each

log = logging.getLogger("streamq.janitor")

_LONGEST_S = 10.0
"""Longest time that a completed task outstays its retention."""
_SWEEP_S = 300.0
"""Time between searches for producers and consumers that left."""
_PRODUCER_SILENCE_MS = 86_400_000
_KEEP_ARCHIVE = (2**53, 2**53)
"""Age and size: how much of an adopted queue's archive is kept is for its own workers to say."""


class Janitor:
    """Cleans the queues it is given, and those that its worker adopted."""

    def __init__(
        self,
        runner: AsyncRunner,
        keys: Keys,
        queues: Collection[QueueKeys],
        *,
        adopted: Collection[QueueKeys] = (),
        archive_age_ms: int,
        archive_size: int,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._queues = queues
        self._adopted = adopted
        self._archive = (archive_age_ms, archive_size)
        self._complaints = Complaints(log)
        self.purged = 0

    async def run(self) -> None:
        """Clean until cancelled. A pass that fails is logged and tried again."""
        since_sweep_s = _SWEEP_S * random.random()
        while True:
            next_ms = await self._attempt("cannot clean up", self.run_once)
            if since_sweep_s >= _SWEEP_S:
                since_sweep_s = 0.0
                await self._attempt("cannot forget who left", self.sweep)
            pause_s = _LONGEST_S
            if 0 <= next_ms < _LONGEST_S * 1000:
                pause_s = max(0.05, next_ms / 1000)
            pause_s *= random.uniform(1.0, 1.2)
            since_sweep_s += pause_s
            await asyncio.sleep(pause_s)

    async def _attempt(self, event: str, step: Callable[[], Awaitable[int]]) -> int:
        try:
            answer = await step()
            self._complaints.clear()
        except ServerError as error:
            self._complaints.note(event, error)
            return -1
        return answer

    async def run_once(self) -> int:
        """Purge every queue; returns ms until the next retention ends, or -1. Raises ServerError."""
        adopted = tuple(self._adopted)

        def purge(queue: QueueKeys) -> Awaitable[int]:
            return self._purge(queue, *(_KEEP_ARCHIVE if queue in adopted else self._archive))

        waits = await each((*self._queues, *adopted), purge)
        return min((wait for wait in waits if wait >= 0), default=-1)

    async def _purge(self, queue: QueueKeys, archive_age_ms: int, archive_size: int) -> int:
        while True:
            purged = await self._runner.run(moving.purge(queue, archive_age_ms, archive_size))
            self.purged += purged.purged
            if purged.next_ms != 0:
                return purged.next_ms

    async def sweep(self) -> int:
        """Forget silent producers and idle consumers of workers that are gone; returns how many of both."""
        now_ms = await self._runner.run(presence.server_time())
        await self._runner.run_all(presence.forget_expired(self._keys, now_ms))
        alive = await self._runner.run(presence.alive(self._keys, now_ms))
        tended = (*self._queues, *self._adopted)
        return sum(await each(tended, lambda queue: self._forget(queue, alive)))

    async def _forget(self, queue: QueueKeys, alive: list[str]) -> int:
        forgotten = await self._forget_producers(queue)
        for lane in queue.lanes.values():
            forgotten += await self._forget_consumers(lane, alive)
        return forgotten

    async def _forget_producers(self, queue: QueueKeys) -> int:
        cursor, forgotten = b"0", 0
        while True:
            command = moving.forget_producers(queue, _PRODUCER_SILENCE_MS, cursor)
            cursor, count = await self._runner.run(command)
            forgotten += count
            if cursor == b"0":
                return forgotten

    async def _forget_consumers(self, lane: bytes, alive: list[str]) -> int:
        forgotten = 0
        try:
            consumers = await self._runner.run(moving.consumers(lane))
        except NoGroup:  # nobody has ever read from it
            return 0
        for consumer in consumers:
            if (
                consumer not in alive
                and await self._runner.run(moving.forget_consumer(lane, consumer)) == b"ok"
            ):
                forgotten += 1
        return forgotten
