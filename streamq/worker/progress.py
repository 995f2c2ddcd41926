"""Writes how far running tasks are: soon, seldom, and for many tasks at once.

A handler may say it as often as it likes, from any thread. What it says first is written at once;
after that its newest word twice a second. What a task says when it is settled is not written any more,
and Redis refuses what comes from a worker that does not hold the task.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress

from streamq.broker import working
from streamq.broker.keys import QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import MAX_SETTLE_TASKS, Said
from streamq.clock import monotonic_s
from streamq.errors import ServerError
from streamq.worker.complaints import Complaints
from streamq.worker.held import Run

log = logging.getLogger("streamq.progress")

WRITE_EVERY_S = 0.5
"""Between two writes for one task."""


class ProgressWriter:
    """What the tasks of one worker say."""

    def __init__(self, runner: AsyncRunner, *, consumer: str, every_s: float = WRITE_EVERY_S) -> None:
        self._runner = runner
        self._consumer = consumer
        self._every_s = every_s
        self._lock = threading.Lock()
        self._latest: dict[Run, bytes] = {}
        self._written_s: dict[Run, float] = {}
        """When it was written last, for those who must wait."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._noted = asyncio.Event()
        self._complaints = Complaints(log)

    def note(self, run: Run, said: bytes) -> None:
        """Take what a handler says, packed. Any thread may."""
        with self._lock:
            if run.entry.task_id not in run.beside:
                run.beside = (*run.beside, run.entry.task_id)
            known = run in self._latest
            self._latest[run] = said
        if not known and self._loop is not None:
            with suppress(RuntimeError):  # The loop is closed: the worker has gone without this handler.
                self._loop.call_soon_threadsafe(self._noted.set)

    async def run(self) -> None:
        """Write until cancelled. A write that fails is logged and tried again, with the newest words."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._noted.clear()
            try:
                await self.run_once()
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot write progress", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s()):
                    await self._noted.wait()

    async def run_once(self) -> int:
        """Write what is due; returns for how many tasks. Raises ServerError."""
        due = self._take_due()
        queues: dict[QueueKeys, list[tuple[Run, bytes]]] = {}
        for run, said in due:
            queues.setdefault(run.source.queue, []).append((run, said))
        commands = [
            working.progress(queue, self._consumer, [Said(run.entry, said) for run, said in some])
            for queue, items in queues.items()
            for some in (items[at : at + MAX_SETTLE_TASKS] for at in range(0, len(items), MAX_SETTLE_TASKS))
        ]
        if not commands:
            return 0
        try:
            for reply in await self._runner.run_all(commands):
                if isinstance(reply, BaseException):
                    raise reply
        except ServerError:
            self._put_back(due)
            raise
        return len(due)

    def _take_due(self) -> list[tuple[Run, bytes]]:
        now_s = monotonic_s()
        due = []
        with self._lock:
            for run in list(self._latest):
                if run.outcome_recorded:
                    del self._latest[run]
                elif self._due_s(run) <= now_s:
                    due.append((run, self._latest.pop(run)))
            self._written_s = {run: at for run, at in self._written_s.items() if at + self._every_s > now_s}
            self._written_s.update((run, now_s) for run, _ in due)
        return due

    def _put_back(self, due: list[tuple[Run, bytes]]) -> None:
        with self._lock:
            for run, said in due:
                self._latest.setdefault(run, said)

    def _due_s(self, run: Run) -> float:
        return self._written_s.get(run, float("-inf")) + self._every_s

    def _wait_s(self) -> float | None:
        """Seconds until something is due; None when nothing waits."""
        with self._lock:
            if not self._latest:
                return None
            return max(0.0, min(map(self._due_s, self._latest)) - monotonic_s())
