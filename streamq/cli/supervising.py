"""Several worker processes: wires the supervisor to the command line and to the recoverer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import suppress

from streamq.app import StreamQ
from streamq.broker import presence
from streamq.broker.keys import Keys
from streamq.broker.runner import AsyncRunner
from streamq.cli.reporting import FAILED
from streamq.cli.working import listen
from streamq.clock import ServerClock
from streamq.errors import ServerError
from streamq.worker.config import WorkerConfig
from streamq.worker.coroner import Coroner
from streamq.worker.recoverer import Recoverer
from streamq.worker.supervisor import Supervisor
from streamq.worker.teller import Teller
from streamq.worker.worker import new_worker_id

_STOP_MARGIN_S = 12.0
"""What a worker may need beyond its grace period: to cancel handlers, and to settle."""
_HOOKS_S = 5.0


def supervise(
    app: StreamQ, config: WorkerConfig, words: list[str], processes: int, *, new_id: Callable[[], str]
) -> int:
    """Run that many workers until told to stop. ``words`` are a child's command line but for its id."""
    return asyncio.run(_supervise(app, config, words, processes, new_id))


async def _supervise(
    app: StreamQ, config: WorkerConfig, words: list[str], processes: int, new_id: Callable[[], str]
) -> int:
    undertaker = Undertaker(app, config)
    supervisor = Supervisor(
        processes,
        lambda worker_id: start_child(words, worker_id),
        undertaker.recover,
        new_id=new_id,
        stop_within_s=config.grace_s + _STOP_MARGIN_S,
    )
    listen(supervisor.stop, supervisor.quiet)
    try:
        return 0 if await supervisor.run() else FAILED
    finally:
        await undertaker.aclose()


async def start_child(words: list[str], worker_id: str, *, output: int | None = None) -> Process:
    """A worker process with this id, which ends when this process does. It prints to ``output``.

    In a process group of its own: Ctrl-C reaches this process alone, which passes it on once.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "streamq", "worker", *words, "--supervised", worker_id),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        process_group=0,
    )


class Undertaker:
    """Recovers what a dead worker held, and takes back its heartbeat."""

    def __init__(self, app: StreamQ, config: WorkerConfig) -> None:
        self._keys = Keys(config.namespace)
        self._runner = AsyncRunner(app.address, timeouts=config.timeouts)
        # Hooks are called here, too, outside of any lifespan: no worker will hear of these tasks.
        self._teller, clock = Teller(config.hooks), ServerClock()
        self._recoverer = Recoverer(
            self._runner,
            [self._keys.queue(name) for name in config.queues],
            clock,
            consumer=new_worker_id(),
            lease_ms=config.lease_ms,
            crash_limit=config.crash_limit,
            backoff_ms=config.crash_backoff_ms,
            on_crashed=Coroner(self._runner, clock, self._teller, app.definitions()).report,
        )

    async def recover(self, dead: str) -> int:
        """Issue its tasks again; returns how many. Raises ServerError."""
        before = self._recoverer.recovered
        await self._recoverer.run_once(dead)
        with suppress(ServerError):
            await self._runner.run_all(presence.leave(self._keys, dead))
        return self._recoverer.recovered - before

    async def aclose(self) -> None:
        """Let the hooks end, for a while, and close the connection."""
        await self._teller.aclose(_HOOKS_S)
        await self._runner.aclose()
