"""Semaphores for blocking programs: as those for asyncio, with a thread that renews.

Blocking code cannot be stopped from outside, so a permit that was lost is told when the block is left,
and to whoever looks at ``held`` meanwhile.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from streamq.broker import semaphores
from streamq.broker.sync_runner import SyncRunner
from streamq.client.semaphore import FIRST_PAUSE_S, LONGEST_PAUSE_S, LOST, RENEWAL_PAUSE_S
from streamq.clock import monotonic_s
from streamq.errors import SemaphoreLost, SemaphoreTimeout, ServerError, Unavailable, UsageError
from streamq.model.durations import Duration
from streamq.model.options import UNSET, Unset
from streamq.model.semaphores import SemaphoreOptions, timeout_s

if TYPE_CHECKING:
    from streamq.client.sync_client import SyncClient

log = logging.getLogger("streamq.semaphore")


class SyncSemaphore:
    """A number of permits that programs share by name. ``with`` it, in as many threads as you like."""

    def __init__(self, client: SyncClient, options: SemaphoreOptions) -> None:
        self._client = client
        self._options = options
        self._entered = threading.local()

    @property
    def name(self) -> str:
        """What programs share it by."""
        return self._options.name

    def __repr__(self) -> str:
        return f"<SyncSemaphore {self.name!r} limit={self._options.limit}>"

    def acquire(self, timeout: Duration | Unset | None = UNSET) -> SyncPermit:
        """Wait for a permit; give it back with its ``release``. ``with`` does both.

        Raises SemaphoreTimeout when none was free for so long, and ServerError (Unavailable once Redis
        has been away for the client's ``enqueue_timeout``).
        """
        wait_s = self._options.timeout_s if isinstance(timeout, Unset) else timeout_s(timeout)
        permit = self._acquire(wait_s)
        if permit is None:
            raise SemaphoreTimeout(self.name, f"none of {self._options.limit} permits was free in time")
        return permit

    def try_acquire(self) -> SyncPermit | None:
        """A permit if one is free now, else None. Raises ServerError."""
        return self._acquire(0.0)

    def __enter__(self) -> SyncPermit:
        permit = self.acquire()
        self._permits.append(permit)
        return permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit = self._permits.pop()
        permit.give_back()
        if permit.lost and kind is None:
            raise SemaphoreLost(self.name, LOST)

    @property
    def _permits(self) -> list[SyncPermit]:
        """Those that this thread has entered with."""
        if not hasattr(self._entered, "permits"):
            self._entered.permits = []
        permits: list[SyncPermit] = self._entered.permits
        return permits

    def _acquire(self, wait_s: float | None) -> SyncPermit | None:
        client, options = self._client, self._options
        client.check_open()
        key, token = client.keys.semaphore(options.name), secrets.token_hex(8)
        command = semaphores.acquire(key, token, options.limit, options.lease_ms)
        began_s = heard_s = monotonic_s()
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                sent_s = monotonic_s()
                try:
                    busy_ms = client.runner.run(command)
                    heard_s = monotonic_s()
                except Unavailable:
                    # Asking again under the same token takes no second permit.
                    if monotonic_s() - heard_s >= client.config.enqueue_timeout_s:
                        raise
                    busy_ms = options.lease_ms
                if not busy_ms:
                    return SyncPermit(client.runner, key, token, options, sent_s)
                left_s = LONGEST_PAUSE_S if wait_s is None else wait_s - (monotonic_s() - began_s)
                if left_s <= 0:
                    return None
                time.sleep(min(pause_s * random.uniform(0.5, 1.0), left_s, busy_ms / 1000))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        except Unavailable:
            raise
        except BaseException:
            # Whether it was taken is unknown now; if so, nobody has it.
            with suppress(ServerError):
                client.runner.run(semaphores.free(key, token))
            raise


class SyncPermit:
    """One permit of a semaphore, held until it is released or lost."""

    def __init__(
        self, runner: SyncRunner, key: bytes, token: str, options: SemaphoreOptions, sent_s: float
    ) -> None:
        self._runner = runner
        self._key = key
        self._token = token
        self._options = options
        self._lease_s = options.lease_ms / 1000
        self._until_s = sent_s + self._lease_s
        self._releasing = threading.Event()
        self._lost = False
        self._thread = threading.Thread(
            target=self._renew, name=f"streamq-semaphore-{options.name}", daemon=True
        )
        self._thread.start()

    def __repr__(self) -> str:
        state = "lost" if self.lost else "held" if self.held else "released"
        return f"<SyncPermit of {self._options.name!r} {state}>"

    @property
    def lost(self) -> bool:
        """Its lease ran out: somebody else may hold it now."""
        return self._lost or (not self._releasing.is_set() and monotonic_s() >= self._until_s)

    @property
    def held(self) -> bool:
        """Whether it is still this program's."""
        return not self.lost and not self._releasing.is_set()

    def release(self) -> None:
        """Give it back. Where Redis cannot be reached, its lease runs out instead.

        Raises UsageError when it was released before, SemaphoreLost when it had been lost.
        """
        self.give_back()
        if self._lost:
            raise SemaphoreLost(self._options.name, LOST)

    def give_back(self) -> None:
        """The same without telling of a loss: ``lost`` does."""
        if self._releasing.is_set():
            raise UsageError("permit", "is not held: it was released before")
        self._lost = self.lost
        self._releasing.set()
        try:
            was_held = self._runner.run(semaphores.free(self._key, self._token))
        except ServerError as error:
            log.warning("permit not given back, its lease runs out semaphore=%s error=%s", self._name, error)
        else:
            self._lost = self._lost or not was_held

    def _renew(self) -> None:
        pause_s = self._lease_s / 3
        while not self._releasing.wait(min(pause_s, max(0.0, self._until_s - monotonic_s()))):
            sent_s = monotonic_s()
            if self.lost:
                self._lost = True
                log.warning("permit lost semaphore=%s", self._name)
                return
            try:
                held = self._runner.run(
                    semaphores.renew(self._key, self._token, self._options.lease_ms),
                    limit_s=self._until_s - sent_s,
                )
            except ServerError as error:
                log.debug("cannot renew a permit semaphore=%s error=%s", self._name, error)
                pause_s = min(RENEWAL_PAUSE_S, self._lease_s / 3)
            else:
                pause_s = self._lease_s / 3
                if held:
                    self._until_s = sent_s + self._lease_s
                elif not self._releasing.is_set():
                    self._until_s = sent_s

    @property
    def _name(self) -> str:
        return self._options.name
