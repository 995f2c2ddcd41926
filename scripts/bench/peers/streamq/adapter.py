"""StreamQ: how it is set up here, and why.

- ``--concurrency 100``: the bench's, also its default. Nothing else is tuned; no retention, its default.
- uvloop: its worker uses it where installed; the producer here gets it as every async peer's does.
- Bulk is ``enqueue_many``; the blocking client is ``app.sync()``.
- With ``BENCH_UNIQUE`` every task is unique by its arguments until it is done. The few that warm up
  have the same ones again, so a duplicate answers with the existing task.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from streamq import StreamQ

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_tool


def _unique() -> object:
    # Not among the imports: the revision that serves as a baseline may not have it.
    from streamq import Unique

    return Unique(on_conflict="return")


app = StreamQ(redis_url(), namespace="bench")
OPTIONS: dict[str, Any] = {"unique": _unique()} if "BENCH_UNIQUE" in os.environ else {}
TASKS = {name: app.task(name=name, **OPTIONS)(handler) for name, handler in handlers.ASYNC.items()}


class Producer:
    """The app's asyncio client."""

    async def open(self) -> None:
        """Connect."""
        await app.__aenter__()

    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task."""
        bound = TASKS[task].options(delay=delay_s) if delay_s else TASKS[task]
        await bound.enqueue(number, text)

    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One ``enqueue_many``."""
        bound = TASKS[task].options(delay=delay_s) if delay_s else TASKS[task]
        await app.enqueue_many(bound.call(number, text) for number, text in batch)

    async def close(self) -> None:
        """Disconnect."""
        await app.__aexit__(None, None, None)


class BlockingProducer:
    """The app's blocking client."""

    def open(self) -> None:
        """Connect."""
        self._stack = ExitStack()
        self._client = self._stack.enter_context(app.sync())

    def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task."""
        bound = TASKS[task].options(delay=delay_s) if delay_s else TASKS[task]
        self._client.enqueue(bound.call(number, text))

    def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One ``enqueue_many``."""
        bound = TASKS[task].options(delay=delay_s) if delay_s else TASKS[task]
        self._client.enqueue_many(bound.call(number, text) for number, text in batch)

    def close(self) -> None:
        """Disconnect."""
        self._stack.close()


def run_worker(order: WorkerOrder) -> None:
    """Its own program, as a user starts it."""
    words = ("--queue", "default", "--concurrency", order.concurrency, "--processes", order.processes)
    run_tool("streamq", "worker", "adapter:app", *words, "--log-level", "warning")


if __name__ == "__main__":
    main(worker=run_worker, async_producer=Producer, sync_producer=BlockingProducer)
