"""SAQ: how it is set up here, and why.

- ``concurrency=100``: the bench's; the default is 10.
- ``ttl=-1``: a finished job is deleted at once; keeping results is optional.
- ``timeout=0``: no time limit, hence no timer per job. Retries stay at their default, none.
- ``max_connections=1000``: each of its 100 readers holds a connection, and redis-py 8 allows a pool 100 by
  default.
- ``max_concurrent_ops=100``: otherwise concurrent enqueues queue up behind 20.
- It has no bulk call; its best is 100 concurrent ``enqueue`` calls.
- Due times are whole seconds in SAQ: 200 ms becomes the next full second, which is what a user gets.
- uvloop, which SAQ does not start by itself. Two processes are two workers, as its ``--workers`` makes them.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from saq import Queue, Worker
from saq.queue.redis import RedisQueue

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_loop, spawn_workers


def _queue() -> Queue:
    return RedisQueue.from_url(f"{redis_url()}?max_connections=1000", max_concurrent_ops=100)


class Producer:
    """A SAQ queue."""

    async def open(self) -> None:
        """Connect."""
        self._queue = _queue()
        await self._queue.connect()

    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One job."""
        scheduled = math.ceil(time.time() + delay_s) if delay_s else 0
        await self._queue.enqueue(task, number=number, text=text, ttl=-1, timeout=0, scheduled=scheduled)

    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """Many jobs at a time."""
        await asyncio.gather(*(self.enqueue(task, number, text, delay_s) for number, text in batch))

    async def close(self) -> None:
        """Disconnect."""
        await self._queue.disconnect()


async def noop(ctx: dict[str, Any], *, number: int, text: str) -> None:
    """See kit.handlers."""
    await handlers.noop(number, text)


async def yield_once(ctx: dict[str, Any], *, number: int, text: str) -> None:
    """See kit.handlers."""
    await handlers.yield_once(number, text)


async def nap(ctx: dict[str, Any], *, number: int, text: str) -> None:
    """See kit.handlers."""
    await handlers.nap(number, text)


async def stamp(ctx: dict[str, Any], *, number: int, text: str) -> None:
    """See kit.handlers."""
    await handlers.stamp(number, text)


async def _work(order: WorkerOrder) -> None:
    worker = Worker(_queue(), functions=[noop, yield_once, nap, stamp], concurrency=order.concurrency)
    await worker.queue.connect()
    await worker.start()


def run_worker(order: WorkerOrder) -> None:
    """One worker here, or two in children."""
    if order.processes > 1:
        spawn_workers(order)
    run_loop(_work(order))


if __name__ == "__main__":
    main(worker=run_worker, async_producer=Producer)
