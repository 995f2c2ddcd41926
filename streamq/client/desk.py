"""A client's place on one event loop: who it is there, its outboxes, and what it waits for.

Futures and sequences belong to the loop that made them. A client used from two loops (two threads,
two ``asyncio.run``, a forked child) so has a desk on each, and each desk is a producer of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from streamq.broker.producing import register
from streamq.client.notices import Notices
from streamq.client.outbox import Outbox
from streamq.client.producer import Producer

if TYPE_CHECKING:
    from streamq.broker.dial import Timeouts
    from streamq.broker.keys import Keys
    from streamq.broker.runner import AsyncRunner


class Desk:
    """Made on the loop that it belongs to."""

    def __init__(self, runner: AsyncRunner, keys: Keys, timeouts: Timeouts, enqueue_timeout_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.producer = Producer()
        self.notices = Notices(runner.address, timeouts)
        self._runner = runner
        self._keys = keys
        self._enqueue_timeout_s = enqueue_timeout_s
        self._outboxes: dict[str, Outbox] = {}
        self._registering: set[asyncio.Future[int]] = set()

    def outbox(self, queue: str) -> Outbox:
        """Where tasks for this queue go."""
        outbox = self._outboxes.get(queue)
        if outbox is None:
            outbox = self._outboxes[queue] = Outbox(
                runner=self._runner,
                queue=self._keys.queue(queue),
                producer=self.producer,
                timeout_s=self._enqueue_timeout_s,
                on_new_queue=self._register,
            )
            self._register(queue)
        return outbox

    async def aclose(self) -> None:
        """Wait for what was submitted; end what waits for results. May be called twice."""
        for outbox in self._outboxes.values():
            await outbox.drain()
        if self._registering:
            await asyncio.wait(self._registering)
        await self.notices.aclose()

    def _register(self, queue: str) -> None:
        """Tell the registry of the queue. It lies in another slot, so the enqueue script cannot do it.

        A failure is no error of the enqueue: workers register the queues they serve as well.
        """
        registering = self._runner.post(register(self._keys.queues, queue))
        self._registering.add(registering)
        registering.add_done_callback(self._registered)

    def _registered(self, registering: asyncio.Future[int]) -> None:
        self._registering.discard(registering)
        if not registering.cancelled():
            registering.exception()
