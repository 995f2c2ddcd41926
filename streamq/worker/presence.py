"""Makes this worker known: a heartbeat that expires by itself when the process is gone.

Nothing is decided by it; leases alone say whose an entry is. It also carries home Redis's clock and what
this worker has been told to do, and tells whoever wants to know whether Redis could be reached.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextlib import suppress

from streamq.broker import ordering, presence
from streamq.broker.keys import Keys
from streamq.broker.ordering import Order, Verb
from streamq.broker.runner import AsyncRunner
from streamq.clock import ServerClock
from streamq.errors import ServerError
from streamq.model.info import WorkerInfo
from streamq.worker.complaints import Complaints
from streamq.worker.config import OnHealth

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
        on_order: Callable[[Verb], None] = lambda _verb: None,
        on_health: OnHealth | None = None,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._clock = clock
        self._describe = describe
        self._period_s = period_s
        self._on_order = on_order
        self._on_health = on_health
        self._since_ms: int | None = None
        self._woken = asyncio.Event()
        self._complaints = Complaints(log)

    def wake(self) -> None:
        """Announce now: there may be an order."""
        self._woken.set()

    async def run(self) -> None:
        """Announce until cancelled. An announcement that fails is logged and tried again."""
        while True:
            self._woken.clear()
            failure: ServerError | None = None
            try:
                await self.run_once()
                self._complaints.clear()
            except ServerError as error:
                failure = error
                self._complaints.note("cannot announce this worker", error)
            await self._tell(failure)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._woken.wait()

    async def run_once(self) -> None:
        """Announce once, and hear what there is to do. Raises ServerError."""
        ttl_ms = int(self._period_s * 1000 * _TTL_PERIODS)
        worker = self._describe()
        announcement = presence.announce(self._keys, worker, self._clock.now_ms(), ttl_ms)
        [time_ms, orders, *others] = await self._runner.run_all(
            [presence.server_time(), ordering.orders(self._keys, worker.id), *announcement]
        )
        for reply in (time_ms, orders, *others):
            if isinstance(reply, BaseException):
                raise reply
        self._clock.set(time_ms)
        self._obey(time_ms, orders)

    def _obey(self, now_ms: int, orders: list[Order]) -> None:
        """Pass on what was said since this worker came: the first heartbeat is its beginning."""
        if self._since_ms is None:
            self._since_ms = now_ms
        for order in orders:
            if order.given_ms >= self._since_ms:
                self._on_order(order.verb)

    async def _tell(self, failure: ServerError | None) -> None:
        """Call the user's hook. Whatever it does, the heartbeat goes on."""
        if self._on_health is None:
            return
        try:
            told = self._on_health(failure)
            if inspect.isawaitable(told):
                async with asyncio.timeout(self._period_s):
                    await told
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # it is this component that is told to end, and not the hook that failed
            log.exception("on_health raised")

    async def leave(self) -> None:
        """Take the heartbeat back, as the last thing this worker does. Raises ServerError."""
        worker = self._describe()
        forget = ordering.forget_orders(self._keys, worker.id)
        await self._runner.run_all([*presence.leave(self._keys, worker.id, worker.queues), forget])
