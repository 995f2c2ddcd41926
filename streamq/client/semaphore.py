"""Semaphores for asyncio programs: permits held across processes and machines, inside tasks or outside.

A permit has a lease by Redis's clock. A task of the holder's loop renews it every third of the lease, so
a permit is lost only when its program dies, its loop is blocked or Redis is away for longer than that.
The holder notices before anybody else can get the permit: it counts its lease from before the renewal
was sent, by its monotonic clock. It does not need to ask: the block that holds the permit is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from streamq.broker import semaphores
from streamq.broker.runner import AsyncRunner
from streamq.clock import monotonic_s
from streamq.errors import SemaphoreLost, SemaphoreTimeout, ServerError, Unavailable, UsageError
from streamq.model.durations import Duration
from streamq.model.options import UNSET, Unset
from streamq.model.semaphores import SemaphoreOptions, timeout_s

if TYPE_CHECKING:
    from streamq.client.client import Client

log = logging.getLogger("streamq.semaphore")

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5
"""Between two looks at a semaphore that is full. Each look costs Redis about 5 us."""
RENEWAL_PAUSE_S = 0.2
"""Before a renewal that failed is tried again."""
LOST = "the lease ran out while the permit was held; another program may hold it"
_GIVE_BACK_S = 5.0
"""How long giving back may keep a program that has done its work."""


class Semaphore:
    """A number of permits that programs share by name. ``async with`` it, as often as you like at once."""

    def __init__(self, client: Callable[[], Client], options: SemaphoreOptions) -> None:
        self._client = client
        self._options = options
        self._entered: dict[asyncio.Task[object], list[Permit]] = {}

    @property
    def name(self) -> str:
        """What programs share it by."""
        return self._options.name

    def __repr__(self) -> str:
        return f"<Semaphore {self.name!r} limit={self._options.limit}>"

    async def acquire(self, timeout: Duration | Unset | None = UNSET) -> Permit:
        """Wait for a permit; give it back with its ``release``. ``async with`` does both.

        Raises SemaphoreTimeout when none was free for so long, and ServerError (Unavailable once Redis
        has been away for the client's ``enqueue_timeout``).
        """
        wait_s = self._options.timeout_s if isinstance(timeout, Unset) else timeout_s(timeout)
        permit = await self._acquire(wait_s)
        if permit is None:
            raise SemaphoreTimeout(self.name, f"none of {self._options.limit} permits was free in time")
        return permit

    async def try_acquire(self) -> Permit | None:
        """A permit if one is free now, else None. Raises ServerError."""
        return await self._acquire(0.0)

    async def __aenter__(self) -> Permit:
        permit = await self.acquire()
        task = _this_task()
        permit.cancel_when_lost(task)
        self._entered.setdefault(task, []).append(permit)
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = _this_task()
        permits = self._entered[task]
        permit = permits.pop()
        if not permits:
            del self._entered[task]
        cancelled = await permit.give_back()
        if permit.settle_cancel(task):
            # Nobody but the loss cancelled the block. An error of its own is told in preference.
            if kind is None or issubclass(kind, asyncio.CancelledError):
                raise SemaphoreLost(self.name, LOST) from error
        elif cancelled is not None:
            raise cancelled
        elif permit.lost and kind is None:
            raise SemaphoreLost(self.name, LOST)

    async def _acquire(self, wait_s: float | None) -> Permit | None:
        client, options = self._client(), self._options
        client.check_open()
        key, token = client.keys.semaphore(options.name), secrets.token_hex(8)
        command = semaphores.acquire(key, token, options.limit, options.lease_ms)
        began_s = heard_s = monotonic_s()
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                sent_s = monotonic_s()
                try:
                    busy_ms = await client.runner.run(command)
                    heard_s = monotonic_s()
                except Unavailable:
                    # Asking again under the same token takes no second permit.
                    if monotonic_s() - heard_s >= client.config.enqueue_timeout_s:
                        raise
                    busy_ms = options.lease_ms
                if not busy_ms:
                    return Permit(client.runner, key, token, options, sent_s)
                left_s = LONGEST_PAUSE_S if wait_s is None else wait_s - (monotonic_s() - began_s)
                if left_s <= 0:
                    return None
                await asyncio.sleep(min(pause_s * random.uniform(0.5, 1.0), left_s, busy_ms / 1000))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        except BaseException:
            # Whether it was taken is unknown now; if so, nobody has it.
            client.runner.post(semaphores.free(key, token)).add_done_callback(_forget)
            raise


class Permit:
    """One permit of a semaphore, held until it is released or lost."""

    def __init__(
        self, runner: AsyncRunner, key: bytes, token: str, options: SemaphoreOptions, sent_s: float
    ) -> None:
        self._runner = runner
        self._key = key
        self._token = token
        self._options = options
        self._lease_s = options.lease_ms / 1000
        self._until_s = sent_s + self._lease_s
        self._released = False
        self._guarded: asyncio.Task[object] | None = None
        self._cancelling: int | None = None
        """How many cancels the guarded task had before ours."""
        self.lost = False
        """Its lease ran out: somebody else may hold it now."""
        loop = asyncio.get_running_loop()
        self._renewing = loop.create_task(self._renew(), name=f"streamq-semaphore-{options.name}")

    def __repr__(self) -> str:
        state = "lost" if self.lost else "held" if self.held else "released"
        return f"<Permit of {self._options.name!r} {state}>"

    @property
    def held(self) -> bool:
        """Whether it is still this program's."""
        return not self.lost and not self._released

    async def release(self) -> None:
        """Give it back. Where Redis cannot be reached, its lease runs out instead.

        Raises UsageError when it was released before, SemaphoreLost when it had been lost.
        """
        cancelled = await self.give_back()
        if cancelled is not None:
            raise cancelled
        if self.lost:
            raise SemaphoreLost(self._options.name, LOST)

    async def give_back(self) -> asyncio.CancelledError | None:
        """The same, however often its task is cancelled meanwhile; answers the last of these cancels."""
        if self._released:
            raise UsageError("permit", "is not held: it was released before")
        self._released = True
        self._renewing.cancel()
        giving = asyncio.get_running_loop().create_task(self._free(), name="streamq-semaphore-free")
        cancelled: asyncio.CancelledError | None = None
        while not giving.done():
            try:
                await asyncio.wait([giving])
            except asyncio.CancelledError as error:
                cancelled = error
        return cancelled

    def cancel_when_lost(self, task: asyncio.Task[object]) -> None:
        """Cancel that task as soon as the permit is lost."""
        self._guarded = task
        if self.lost:
            self._cancel_guarded(task)

    def settle_cancel(self, task: asyncio.Task[object]) -> bool:
        """Whether the task was cancelled because of the loss, and by nobody else."""
        if self._cancelling is None:
            return False
        return task.uncancel() <= self._cancelling

    async def _free(self) -> None:
        if self.lost:
            return
        try:
            async with asyncio.timeout(_GIVE_BACK_S):
                was_held = await self._runner.run(semaphores.free(self._key, self._token))
        except (ServerError, TimeoutError) as error:
            log.warning("permit not given back, its lease runs out semaphore=%s error=%s", self._name, error)
        else:
            if not was_held:
                self._lose()

    async def _renew(self) -> None:
        pause_s = self._lease_s / 3
        while not self.lost:
            await asyncio.sleep(min(pause_s, max(0.0, self._until_s - monotonic_s())))
            sent_s = monotonic_s()
            if sent_s >= self._until_s:
                self._lose()
                return
            try:
                async with asyncio.timeout(self._until_s - sent_s):
                    held = await self._runner.run(
                        semaphores.renew(self._key, self._token, self._options.lease_ms)
                    )
            except (ServerError, TimeoutError) as error:
                log.debug("cannot renew a permit semaphore=%s error=%s", self._name, error)
                pause_s = min(RENEWAL_PAUSE_S, self._lease_s / 3)
            else:
                pause_s, self._until_s = self._lease_s / 3, sent_s + self._lease_s
                if not held:
                    self._lose()

    def _lose(self) -> None:
        self.lost = True
        log.warning("permit lost semaphore=%s", self._name)
        if self._guarded is not None and not self._released:
            self._cancel_guarded(self._guarded)

    def _cancel_guarded(self, task: asyncio.Task[object]) -> None:
        self._cancelling = task.cancelling()
        task.cancel(LOST)

    @property
    def _name(self) -> str:
        return self._options.name


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise UsageError("semaphore", "must be used inside an asyncio task")
    return task


def _forget(done: asyncio.Future[bool]) -> None:
    if not done.cancelled():
        done.exception()
