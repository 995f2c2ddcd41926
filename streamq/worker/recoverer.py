"""Recovers the entries of dead workers: those whose lease ran out, by Redis's own clock.

Recovery must not stampede: after this process lost its connection, or when the server itself has
just started, live workers could not renew either. Then the first pass waits one full lease.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from streamq.broker import working
from streamq.broker.keys import QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import Recovered
from streamq.clock import ServerClock, utc_day
from streamq.errors import ServerError
from streamq.model.lanes import LANES, Lane
from streamq.worker.complaints import Complaints
from streamq.worker.rounds import each

log = logging.getLogger("streamq.recoverer")

_PASS_S = 1.0
"""Time between passes while tasks are active: an expired lease is noticed within about this."""
_PATIENCE = 6
"""Leases after which an entry of an adopted queue is recovered: its workers may have been given a longer one,
and one of them may still run it, although it takes no more. Nobody waits: nobody serves the queue."""


OnCrashed = Callable[[QueueKeys, Sequence[bytes]], Awaitable[None]]
"""Told of the tasks of a queue that were archived because they crashed too often."""
_LENIENCE = 3
"""Crashes that a task of an adopted queue may have at least: its own workers may bear more than this one."""


class _Terms(NamedTuple):
    """When an entry is recovered, and when its task is given up."""

    lease_ms: int
    crash_limit: int


class Recoverer:
    """Looks for expired leases in all lanes of its queues, and of those that its worker adopted."""

    def __init__(
        self,
        runner: AsyncRunner,
        queues: Collection[QueueKeys],
        clock: ServerClock,
        *,
        adopted: Collection[QueueKeys] = (),
        consumer: str,
        lease_ms: int,
        crash_limit: int,
        backoff_ms: int,
        on_crashed: OnCrashed | None = None,
    ) -> None:
        self._runner = runner
        self._queues = queues
        self._adopted = adopted
        self._clock = clock
        self._consumer = consumer
        self._lease_ms = lease_ms
        self._crash_limit = crash_limit
        self._backoff_ms = backoff_ms
        self._on_crashed = on_crashed
        self._connection = 0
        self._complaints = Complaints(log)
        self.recovered = 0

    async def run(self) -> None:
        """Pass after pass until cancelled. A pass that fails is logged and tried again."""
        while True:
            try:
                pause_s = await self._wait_before_pass()
                if not pause_s:
                    pause_s = self._next_pass_s(await self.run_once())
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot look for expired leases", error)
                pause_s = _PASS_S
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))

    async def run_once(self, dead: str = "") -> int:
        """Search every lane once; returns how many entries are active. Raises ServerError.

        With ``dead``, take all entries of that consumer at once instead.
        """
        own = _Terms(self._lease_ms, self._crash_limit)
        active = await each(self._queues, lambda queue: self._search_all(queue, own, dead))
        if not dead:
            theirs = _Terms(self._lease_ms * _PATIENCE, max(self._crash_limit, _LENIENCE))
            await each(self._adopted, lambda queue: self._search_all(queue, theirs, ""))
        return sum(active)

    async def _search_all(self, queue: QueueKeys, terms: _Terms, dead: str) -> int:
        active = 0
        for lane in LANES:
            active += await self._search(queue, lane, terms, dead)
        return active

    async def _search(self, queue: QueueKeys, lane: Lane, terms: _Terms, dead: str) -> int:
        cursor = b"0-0"
        while True:
            found = await self._runner.run(
                working.recover(
                    queue,
                    lane,
                    utc_day(self._clock.now_ms()),
                    self._consumer,
                    lease_ms=terms.lease_ms,
                    crash_limit=terms.crash_limit,
                    backoff_ms=self._backoff_ms,
                    dead=dead,
                    cursor=cursor,
                )
            )
            self._note(queue, lane, found)
            if found.crashed and self._on_crashed is not None:
                await self._on_crashed(queue, found.crashed)
            if found.taken:
                # Who waits behind the lock of one that has ended need not wait for the sweep.
                with suppress(ServerError):
                    await self._runner.run(working.tidy(queue, found.taken))
            if found.finished:
                return found.pending
            cursor = found.cursor

    def _note(self, queue: QueueKeys, lane: Lane, found: Recovered) -> None:
        self.recovered += found.front + found.retry
        if found.front or found.retry or found.archived:
            log.warning(
                "recovered from dead workers queue=%s lane=%s front=%d retry=%d archived=%d",
                queue.name, lane.name.lower(), found.front, found.retry, found.archived,
            )  # fmt: skip
        if found.vanished:
            log.error(
                "active entries had no content any more queue=%s lane=%s count=%d",
                queue.name, lane.name.lower(), found.vanished,
            )  # fmt: skip

    async def _wait_before_pass(self) -> float:
        """Seconds to wait when the connection is new and live workers may not have renewed yet."""
        await self._runner.connect()
        connection = self._runner.connections_made
        if connection == self._connection:
            return 0.0
        first = self._connection == 0
        self._connection = connection
        lease_s = self._lease_ms / 1000
        uptime_s = self._runner.capabilities.uptime_s
        just_started = uptime_s is not None and uptime_s < lease_s
        return 0.0 if first and not just_started else lease_s

    def _next_pass_s(self, active: int) -> float:
        """With nothing active no lease can run out before a whole lease from now."""
        lease_s = self._lease_ms / 1000
        return min(_PASS_S, lease_s / 3) if active else lease_s * 0.8
