"""The entries that this worker holds: fetched, not settled yet. What the lease keeper renews.

Fetcher, executor, settler and lease keeper share it. It is changed by the event loop alone; the
lease keeper's thread reads it through ``snapshot``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from streamq.broker.keys import QueueKeys
from streamq.broker.working import Entry
from streamq.model.cancelling import Cancel
from streamq.model.definition import Definition
from streamq.model.lanes import Lane
from streamq.model.message import Message

if TYPE_CHECKING:
    from streamq.worker.batching import Batch


class Stop(Enum):
    """Why a run was told to stop before its handler ended by itself."""

    TIMEOUT = "timeout"
    LOST = "lost"
    SHUTDOWN = "shutdown"
    CANCEL = "cancel"


class Source:
    """One lane of one queue. Compared by identity: it is looked up for every task."""

    __slots__ = ("key", "lane", "queue")

    def __init__(self, queue: QueueKeys, lane: Lane) -> None:
        self.queue = queue
        self.lane = lane
        self.key = queue.lanes[lane]


class Run:
    """One entry on its way through this worker."""

    __slots__ = (
        "batch",
        "began",
        "beside",
        "cancel",
        "definition",
        "entry",
        "handle",
        "leaving",
        "message",
        "outcome_recorded",
        "outliving",
        "source",
        "stop",
        "timer",
        "tokens",
    )

    def __init__(self, source: Source, entry: Entry) -> None:
        self.source = source
        self.entry = entry
        self.message: Message | None = None
        self.definition: Definition | None = None
        self.batch: Batch | None = None
        """The members that its handler gets, where it takes batches."""
        self.began = False
        """Its task has had its first step. One cancelled before would end without a word."""
        self.beside: tuple[bytes, ...] = ()
        """Ids of tasks that may leave something beside them (a lock, progress) when this run is settled."""
        self.handle: asyncio.Task[None] | None = None
        """The handler's task, while it runs."""
        self.outliving: asyncio.Future[Any] | None = None
        """What runs the handler and cannot be cancelled (a thread): the slot is taken until it ends."""
        self.leaving = False
        """Dependencies are being cleaned up after: that has a limit of its own, and is not cut off."""
        self.timer: asyncio.TimerHandle | None = None
        self.stop: Stop | None = None
        self.tokens: Sequence[tuple[str, bytes]] = ()
        """What is given back when it is settled: names of limiters, and the tokens taken of them."""
        self.cancel: Cancel | None = None
        """Somebody cancelled the task. What that asked for is its outcome, whatever else happens."""
        self.outcome_recorded = False
        """The settler has it: whatever becomes of the lease, the handler is through."""


class Held:
    """Runs by lane and entry id."""

    def __init__(self) -> None:
        self._lanes: dict[bytes, dict[bytes, Run]] = {}

    def add(self, run: Run) -> None:
        lane = run.source.key
        runs = self._lanes.get(lane)
        if runs is None:
            runs = self._lanes[lane] = {}
        runs[run.entry.entry_id] = run

    def remove(self, run: Run) -> None:
        self._lanes[run.source.key].pop(run.entry.entry_id, None)

    def get(self, lane: bytes, entry_id: bytes) -> Run | None:
        return self._lanes.get(lane, {}).get(entry_id)

    def snapshot(self) -> dict[bytes, list[bytes]]:
        """Entry ids by lane key, for another thread: list(dict) is one step of the interpreter."""
        return {lane: entry_ids for lane, runs in list(self._lanes.items()) if (entry_ids := list(runs))}

    def runs(self) -> list[Run]:
        return [run for runs in self._lanes.values() for run in runs.values()]

    def __len__(self) -> int:
        return sum(len(runs) for runs in self._lanes.values())
