"""Makes this worker known: a heartbeat that expires by itself when the process is gone.

Nothing is decided by it; leases alone say whose an entry is. It also carries Redis's clock home.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from streamq.broker import presence
from streamq.broker.keys import Keys
from streamq.broker.runner import AsyncRunner
from streamq.clock import ServerClock
from streamq.errors import ServerError
from streamq.model.info import WorkerInfo
from streamq.worker.complaints import Complaints

log = logging.getLogger("streamq.presence")

_TTL_PERIODS = 3


class Presence:
    """The heartbeat of one worker. ``describe`` says what it is doing now."""

    def __init__(
        self,
        runner: AsyncRunner,
        keys: Keys,
        clock: ServerClock,
        describe: Callable[[], WorkerInfo],
        *,
        period_s: float,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._clock = clock
        self._describe = describe
        self._period_s = period_s
        self._complaints = Complaints(log)

    async def run(self) -> None:
        """Announce until cancelled. An announcement that fails is logged and tried again."""
        while True:
            try:
                await self.run_once()
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot announce this worker", error)
            await asyncio.sleep(self._period_s)

    async def run_once(self) -> None:
        """Announce once. Raises ServerError."""
        ttl_ms = int(self._period_s * 1000 * _TTL_PERIODS)
        announcement = presence.announce(self._keys, self._describe(), self._clock.now_ms(), ttl_ms)
        replies = await self._runner.run_all([presence.server_time(), *announcement])
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        self._clock.set(replies[0])

    async def leave(self) -> None:
        """Take the heartbeat back, as the last thing this worker does. Raises ServerError."""
        worker = self._describe()
        await self._runner.run_all(presence.leave(self._keys, worker.id, worker.queues))
