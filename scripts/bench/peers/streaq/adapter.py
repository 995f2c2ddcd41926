"""streaQ: how it is set up here, and why.

- ``concurrency=100``: the bench's; the default is 16. ``prefetch`` stays at its default, equal to the
  concurrency.
- ``ttl=0``: results are not stored; ``silent=True``: no log lines per task.
- uvloop, through anyio's option.
- Bulk is its ``enqueue_many``, a pipeline.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta

from streaq import Worker

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_tool

CONCURRENCY = 100

worker = Worker(redis_url=redis_url(), concurrency=CONCURRENCY, anyio_kwargs={"use_uvloop": True})
TASKS = {
    name: worker.task(name=name, ttl=0, silent=True)(handler) for name, handler in handlers.ASYNC.items()
}


class Producer:
    """The worker object as a client, which is how streaQ enqueues."""

    async def open(self) -> None:
        """Connect."""
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(worker)

    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task."""
        call = TASKS[task].enqueue(number, text)
        await (call.start(delay=timedelta(seconds=delay_s)) if delay_s else call)

    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One pipeline."""
        calls = [TASKS[task].enqueue(number, text) for number, text in batch]
        if delay_s:
            calls = [call.start(delay=timedelta(seconds=delay_s)) for call in calls]
        await worker.enqueue_many(calls)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()


def run_worker(order: WorkerOrder) -> None:
    """Its own program."""
    run_tool("streaq", "run", "adapter:worker", "--workers", order.processes)


if __name__ == "__main__":
    main(worker=run_worker, async_producer=Producer)
