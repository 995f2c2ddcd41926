"""Cancels what this worker runs: at once on a hint, surely when the lease keeper has read the marks.

A mark in Redis says what becomes of the task; the hint only says that there is one. Who runs another
task than the one that is meant asks nothing and does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from streamq.broker import working
from streamq.broker.keys import QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.errors import ServerError
from streamq.model.cancelling import Cancel
from streamq.model.lanes import LANES
from streamq.worker.complaints import Complaints
from streamq.worker.held import Held, Run

log = logging.getLogger("streamq.canceller")

_RETRY_S = 0.5


class Canceller:
    """Carries marks to the runs they mean. Lives on one event loop; ``apply`` says what it was told."""

    def __init__(
        self,
        runner: AsyncRunner,
        queues: Iterable[QueueKeys],
        held: Held,
        cancel: Callable[[Run, Cancel], None],
    ) -> None:
        self._runner = runner
        self._lanes = {(queue.name, lane.value): queue.lanes[lane] for queue in queues for lane in LANES}
        self._held = held
        self._cancel = cancel
        self._hinted: set[Run] = set()
        self._woken = asyncio.Event()
        self._complaints = Complaints(log)
        self.cancelled = 0

    def hint(self, queue: str, place: bytes) -> None:
        """The task in this place (lane letter and entry id) has been cancelled, somebody says."""
        lane = self._lanes.get((queue, place[:1].decode("ascii", "replace")))
        run = None if lane is None else self._held.get(lane, place[1:])
        if run is not None:
            self._hinted.add(run)
            self._woken.set()

    def apply(self, lane: bytes, marks: Mapping[bytes, bytes]) -> int:
        """Cancel the runs that these marks mean, by entry id; returns how many had not been told yet."""
        count = 0
        for entry_id, mark in marks.items():
            run = self._held.get(lane, entry_id)
            # One whose outcome is on its way meets its mark in the script that settles it.
            if run is None or run.cancel is not None or run.outcome_recorded:
                continue
            count += 1
            cancel = Cancel.unpack(mark)
            task_id = run.entry.task_id.decode("utf-8", "replace")
            log.info("cancelling id=%s queue=%s outcome=%s", task_id, run.source.queue.name, cancel.outcome)
            self._cancel(run, cancel)
        self.cancelled += count
        return count

    async def run(self) -> None:
        """Look whenever there was a hint, until cancelled. A look that fails is tried again."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self.run_once()
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot read who is cancelled", error)
                await asyncio.sleep(_RETRY_S)
                self._woken.set()

    async def run_once(self) -> int:
        """Read the marks of those hinted at; returns how many were cancelled. Raises ServerError."""
        count = 0
        for run in [run for run in self._hinted if not run.outcome_recorded]:
            source = run.source
            marks = await self._runner.run(working.marks(source.queue, source.lane, [run.entry.entry_id]))
            self._hinted.discard(run)
            count += self.apply(source.key, marks)
        self._hinted = {run for run in self._hinted if not run.outcome_recorded}
        return count
