"""Adopts queues that no live worker serves, so that they do not stand still in everything.

Of an adopted queue nothing is ever fetched: this worker may not know its tasks. But due tasks are
forwarded, dead workers' tasks recovered, groups made batches and schedules fired, so that they are
ready when someone comes. Such a queue is let go as soon as a worker serves it.

Who adopts is drawn by lot, which every worker draws alike, so that a large fleet does not do it many
times over. Two are drawn, in case one of them cannot. When workers disagree for a moment, a queue is
tended twice or not at all for one period, and either is harmless: each step is one script.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Collection

from streamq.broker import inspecting, presence
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.presence import Serving
from streamq.broker.runner import AsyncRunner
from streamq.clock import ServerClock
from streamq.errors import OptionError, ServerError, Unavailable
from streamq.worker.complaints import Complaints

log = logging.getLogger("streamq.caretaker")

_DRAWN = 2
"""Workers that adopt an unserved queue."""


class Caretaker:
    """Keeps the list of adopted queues, which others read anew in each of their passes."""

    def __init__(
        self,
        runner: AsyncRunner,
        keys: Keys,
        queues: Collection[QueueKeys],
        clock: ServerClock,
        *,
        worker_id: str,
        period_s: float,
        on_adopted: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._own = tuple(queues)
        self._clock = clock
        self._worker_id = worker_id
        self._period_s = period_s
        self._on_adopted = on_adopted
        self._complaints = Complaints(log)
        self.adopted: list[QueueKeys] = []
        """The adopted queues. The list stays the same object."""
        self.tended: list[QueueKeys] = list(self._own)
        """The worker's own queues, then the adopted ones. The list stays the same object."""

    async def run(self) -> None:
        """Look until cancelled. A look that fails is logged and tried again; what is adopted stays so."""
        while True:
            await asyncio.sleep(self._period_s * random.uniform(0.75, 1.25))
            try:
                await self.run_once()
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot look for unserved queues", error)

    async def run_once(self) -> int:
        """Adopt what is unserved, let go what is served; returns how many are adopted. Raises ServerError."""
        names = await self._runner.run(inspecting.queue_names(self._keys))
        others = set(names) - {queue.name for queue in self._own}
        wanted: set[str] = set()
        if others:
            served = await self._runner.run(presence.serving(self._keys, self._clock.now_ms()))
            wanted = {name for name in others - served.queues if self._is_drawn(name, served)}
        await self._keep(wanted)
        return len(self.adopted)

    def _is_drawn(self, queue: str, serving: Serving) -> bool:
        """Whether this worker is among those that adopt the queue, by highest random weight."""

        def weight(worker: str) -> bytes:
            return hashlib.blake2b(f"{queue} {worker}".encode()).digest()

        workers = serving.workers | {self._worker_id}
        return self._worker_id in sorted(workers, key=weight)[-_DRAWN:]

    async def _keep(self, wanted: set[str]) -> None:
        before = {queue.name for queue in self.adopted}
        kept = [queue for queue in self.adopted if queue.name in wanted]
        for name in sorted(wanted - before):
            queue = self._keys_of(name)
            if queue is not None and await self._is_reachable(queue):
                log.info("adopted a queue that no worker serves queue=%s", name)
                kept.append(queue)
        for name in sorted(before - wanted):
            log.info("let go of an adopted queue queue=%s", name)
        self.adopted[:] = kept
        self.tended[:] = [*self._own, *kept]
        if {queue.name for queue in kept} - before:
            self._on_adopted()

    def _keys_of(self, name: str) -> QueueKeys | None:
        try:
            return self._keys.queue(name)
        except OptionError:
            log.debug("a name in the registry is no queue's name=%r", name)
            return None

    async def _is_reachable(self, queue: QueueKeys) -> bool:
        """Whether this user may touch the queue: others may keep theirs to themselves."""
        try:
            await self._runner.run(inspecting.is_paused(queue))
        except Unavailable:
            raise
        except ServerError as error:
            log.debug("cannot adopt a queue that no worker serves queue=%s error=%s", queue.name, error)
            return False
        return True
