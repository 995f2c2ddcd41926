"""Renews the leases of everything this worker holds, from a thread with a connection of its own.

A handler that hogs the event loop therefore does not lose its lease. What Redis no longer knows was
recovered by someone else: those runs are lost, their handlers are cancelled and their outcomes will
be refused anyway. With each renewal it asks whether one of the tasks has been cancelled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping

from streamq.broker import working
from streamq.broker.keys import QueueKeys
from streamq.broker.refusals import NoGroup
from streamq.broker.sync_runner import SyncRunner
from streamq.clock import monotonic_s
from streamq.errors import PermissionDenied, ServerError
from streamq.model.lanes import LANES
from streamq.worker.complaints import Complaints

log = logging.getLogger("streamq.lease_keeper")

_PAGE = 500
_RETRY_S = 0.2


class LeaseKeeper:
    """The thread that renews.

    In it are called ``on_lost``, with the lane and the ids that are gone, and ``on_marks``, with the lane
    and the marks of tasks that have been cancelled.
    """

    def __init__(
        self,
        runner: SyncRunner,
        snapshot: Callable[[], Mapping[bytes, list[bytes]]],
        on_lost: Callable[[bytes, list[bytes]], None],
        on_marks: Callable[[bytes, dict[bytes, bytes]], None] = lambda _lane, _marks: None,
        *,
        queues: Iterable[QueueKeys] = (),
        consumer: str,
        lease_ms: int,
    ) -> None:
        self._runner = runner
        self._snapshot = snapshot
        self._on_lost = on_lost
        self._on_marks = on_marks
        self._places = {queue.lanes[lane]: (queue, lane) for queue in queues for lane in LANES}
        self._consumer = consumer
        self._period_s = lease_ms / 3000
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._complaints = Complaints(log)
        self.renewed = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self.run, name="streamq-lease-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its connection. May be called twice."""
        self._stopping.set()
        self._runner.close()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def run(self) -> None:
        """Renew every third of the lease until stopped. After a failure it tries again sooner."""
        pause_s = self._period_s
        while not self._stopping.wait(pause_s):
            started_s = monotonic_s()
            try:
                self.run_once()
                self._complaints.clear()
                pause_s = max(0.0, self._period_s - (monotonic_s() - started_s))
            except ServerError as error:
                if not self._stopping.is_set():
                    self._complaints.note("cannot renew leases", error)
                pause_s = min(_RETRY_S, self._period_s)
            except Exception:
                # Without this thread every lease runs out, so nothing may end it.
                log.exception("renewing leases failed, trying again")
                pause_s = self._period_s

    def run_once(self) -> int:
        """Renew once; returns how many leases stand. Raises ServerError."""
        standing = 0
        for lane, entry_ids in self._snapshot().items():
            for start in range(0, len(entry_ids), _PAGE):
                page = entry_ids[start : start + _PAGE]
                kept = self._extend(lane, page)
                standing += len(kept)
                gone = [entry_id for entry_id in page if entry_id not in kept]
                if gone:
                    self._on_lost(lane, gone)
                self._look_for_marks(lane, [entry_id for entry_id in page if entry_id in kept])
        self.renewed += standing
        return standing

    def _look_for_marks(self, lane: bytes, page: list[bytes]) -> None:
        place = self._places.get(lane)
        if place is None or not page:
            return
        try:
            marks = self._runner.run(working.marks(*place, page))
        except PermissionDenied:
            # A right that is new must not cost the leases of the next lanes.
            return
        if marks:
            self._on_marks(lane, marks)

    def _extend(self, lane: bytes, page: list[bytes]) -> set[bytes]:
        try:
            return self._runner.run(working.extend(lane, self._consumer, page))
        except NoGroup:
            # Someone deleted the lane: its leases are gone, and those of the next lanes must not follow.
            return set()
