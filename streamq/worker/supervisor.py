"""Keeps several worker processes alive: starts them, passes on signals, replaces those that die.

It runs no task and never reads from a queue. When a child dies it has that child's entries recovered
at once, instead of letting the lease run out: nobody else can know so soon, and so surely, that the
process is gone. What starting and recovering mean it is told by its caller.

1. A child that ends although nobody told it to is replaced: the first time at once, then with a
   growing pause, for ever. One that had lived for a while starts the count again.
2. Each child gets a worker id of its own, never one that was used before: what a dead one had still
   under way to Redis must not look like its successor's.
3. After ``quiet`` and ``stop`` nothing is replaced, but what dies is still recovered.
4. A child that was told to end from outside, through Redis, says so with its exit code. It is not replaced;
   when the last has gone like that, the supervisor ends, too.
5. A child that has not ended ``stop_within_s`` after ``stop`` is killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from contextlib import suppress

from streamq.clock import monotonic_s
from streamq.errors import ServerError

log = logging.getLogger("streamq.supervisor")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
"""Waits between replacements double from the first to the longest."""
_SETTLED_S = 30.0
"""A child that lived so long is taken to have worked well."""
ORDERED = 4
"""Exit code of a child that somebody else told to end, and that has given everything back."""
_RECOVER_AGAIN_S = 0.5
_RECOVER_AT_END_S = 5.0
"""How long the last recoveries may take when everything has been stopped."""


class Backoff:
    """The pause before a replacement. Pure: told how long the last one lived."""

    def __init__(self) -> None:
        self._deaths = 0

    def after(self, lived_s: float) -> float:
        """Seconds to wait now: none after a long life, then longer with each early death."""
        self._deaths = 1 if lived_s >= _SETTLED_S else self._deaths + 1
        if self._deaths == 1:
            return 0.0
        return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._deaths - 2, 30)))


class Supervisor:
    """``count`` children, until it is told to stop.

    ``start`` starts a worker process with the id it is given, which ends with exit code 0, or ORDERED, when
    it has given everything back. ``recover`` recovers all entries of a worker id.
    """

    def __init__(
        self,
        count: int,
        start: Callable[[str], Awaitable[Process]],
        recover: Callable[[str], Awaitable[int]],
        *,
        new_id: Callable[[], str],
        stop_within_s: float,
    ) -> None:
        self._count = count
        self._start = start
        self._recover = recover
        self._new_id = new_id
        self._stop_within_s = stop_within_s
        self._children: dict[str, Process] = {}
        self._recovering: set[asyncio.Task[None]] = set()
        self._quieted = False
        self._stopped = False
        self._done_replacing = asyncio.Event()
        self._unclean_at_end = 0
        self.replaced = 0

    @property
    def children(self) -> dict[str, int]:
        """Worker id to process id of those that run."""
        return {worker_id: process.pid for worker_id, process in self._children.items()}

    async def run(self) -> bool:
        """Keep the children up until stopped. Returns whether all ended in order after that."""
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(self._count):
                    group.create_task(self._keep(), name=f"streamq-child-{place}")
        finally:
            if self._recovering:
                log.info("recovering what the last workers left count=%d", len(self._recovering))
                await asyncio.wait(self._recovering, timeout=_RECOVER_AT_END_S)
            for task in self._recovering:
                task.cancel()
        return not self._unclean_at_end

    def quiet(self) -> None:
        """Let the children take no more tasks. May be called twice."""
        if not self._quieted:
            self._quieted = True
            self._done_replacing.set()
            self._tell(signal.SIGUSR1)

    def stop(self) -> None:
        """Let the children end within their grace period. A second call hurries them."""
        self._tell(signal.SIGTERM)
        if not self._stopped:
            self._stopped = self._quieted = True
            self._done_replacing.set()
            asyncio.get_running_loop().call_later(self._stop_within_s, self._kill_rest)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._children.values():
            _send(process, number)

    def _kill_rest(self) -> None:
        for worker_id, process in self._children.items():
            log.error("worker process does not end, killing it id=%s pid=%d", worker_id, process.pid)
            _send(process, signal.SIGKILL)

    async def _keep(self) -> None:
        """One place: a child after the other."""
        backoff = Backoff()
        while not self._quieted:
            worker_id, began_s = self._new_id(), monotonic_s()
            code = await self._live(worker_id)
            lived_s = monotonic_s() - began_s
            if code == ORDERED:
                log.info("worker process ended as it was ordered to id=%s", worker_id)
                return
            if code != 0:
                self._have_recovered(worker_id)
                self._unclean_at_end += self._stopped
            if self._quieted:
                return
            pause_s = backoff.after(lived_s)
            log.warning(
                "worker process ended, replacing it id=%s end=%s lived_s=%.1f pause_s=%.1f",
                worker_id, _describe(code), lived_s, pause_s,
            )  # fmt: skip
            self.replaced += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._done_replacing.wait()

    async def _live(self, worker_id: str) -> int | None:
        """Start a child and wait for its end. Returns its exit code, None when it did not start."""
        try:
            process = await self._start(worker_id)
        except OSError as error:  # No memory or no process number left: it may be better in a while.
            log.error("worker process cannot be started error=%s", error)
            return None
        self._children[worker_id] = process
        log.info("worker process started id=%s pid=%d", worker_id, process.pid)
        if self._stopped:
            _send(process, signal.SIGTERM)
        elif self._quieted:
            _send(process, signal.SIGUSR1)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:  # This function was cancelled.
                _send(process, signal.SIGKILL)
                await process.wait()
            if process.stdin is not None:
                process.stdin.close()
            del self._children[worker_id]

    def _have_recovered(self, worker_id: str) -> None:
        """Beside everything else: while Redis is away the replacement starts all the same."""
        task = asyncio.get_running_loop().create_task(
            self._recover_until_done(worker_id), name=f"streamq-recover-{worker_id}"
        )
        self._recovering.add(task)
        task.add_done_callback(self._recovering.discard)

    async def _recover_until_done(self, worker_id: str) -> None:
        while True:
            try:
                count = await self._recover(worker_id)
            except ServerError as error:
                log.warning("cannot recover now, trying again id=%s error=%s", worker_id, error)
            except Exception:
                # The lease is still there: others recover it when it runs out.
                log.exception("recovering failed; the lease will have to do id=%s", worker_id)
                return
            else:
                log.info("recovered what the worker process held id=%s count=%d", worker_id, count)
                return
            await asyncio.sleep(_RECOVER_AGAIN_S)


def _send(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _describe(code: int | None) -> str:
    if code is None:
        return "not-started"
    if code >= 0:
        return f"exit-{code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal-{-code}"
