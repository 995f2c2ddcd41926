"""docket: how it is set up here, and why.

- ``concurrency=100``: the bench's; the default is 10. ``message_batch`` and the check intervals stay at their
  defaults.
- ``execution_ttl=0``: no record of finished executions, which also drops results; keeping them is optional.
- ``max_connections=1000``: at a concurrency of 100 it runs over the 100 that redis-py 8 allows a pool by
  default, and the task in hand then waits five minutes for its redelivery.
- uvloop, which docket does not start by itself.
- Bulk is its ``add_many``, a pipeline.
- It has no supervisor: two processes are two workers.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

from docket import Docket, Worker

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_loop, spawn_workers


def _docket() -> Docket:
    docket = Docket(name="bench", url=f"{redis_url()}?max_connections=1000", execution_ttl=timedelta(0))
    for handler in handlers.ASYNC.values():
        docket.register(handler)
    return docket


def _when(delay_s: float) -> datetime | None:
    return datetime.now(UTC) + timedelta(seconds=delay_s) if delay_s else None


class Producer:
    """A docket."""

    async def open(self) -> None:
        """Connect."""
        self._stack = AsyncExitStack()
        self._docket = await self._stack.enter_async_context(_docket())

    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task."""
        await self._docket.add(handlers.ASYNC[task], when=_when(delay_s))(number, text)

    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One pipeline."""
        handler, when, call = handlers.ASYNC[task], _when(delay_s), self._docket.call
        # One ``call`` per task: the key that makes a task unique is drawn there, not with the arguments.
        await self._docket.add_many([call(handler, when=when)(number, text) for number, text in batch])

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()


async def _work(order: WorkerOrder) -> None:
    async with _docket() as docket, Worker(docket, concurrency=order.concurrency) as worker:
        await worker.run_forever()


def run_worker(order: WorkerOrder) -> None:
    """One worker here, or two in children."""
    if order.processes > 1:
        spawn_workers(order)
    run_loop(_work(order))


if __name__ == "__main__":
    main(worker=run_worker, async_producer=Producer)
