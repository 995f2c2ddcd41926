"""arq: how it is set up here, and why.

- ``max_jobs=100``: the bench's concurrency; the default is 10.
- ``keep_result=0``, ``log_results=False``: storing and logging results is optional and costs it a key per
  job.
- ``poll_delay`` stays 0.5 s: it is the default, and lowering it buys latency with idle commands.
- uvloop, which arq does not start by itself.
- It has no bulk call; its best is 100 concurrent ``enqueue_job`` calls.
- It has no supervisor: two processes are two workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import Worker, func

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_loop, spawn_workers


class Producer:
    """arq's pool."""

    async def open(self) -> None:
        """Connect."""
        self._redis: ArqRedis = await create_pool(RedisSettings.from_dsn(redis_url()))

    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One job."""
        await self._redis.enqueue_job(task, number, text, _defer_by=delay_s or None)

    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """Many jobs at a time."""
        await asyncio.gather(*(self.enqueue(task, number, text, delay_s) for number, text in batch))

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose()


def _taking_context(handler: Callable[[int, str], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def run(ctx: dict[str, Any], number: int, text: str) -> None:
        await handler(number, text)

    return run


async def _work(order: WorkerOrder) -> None:
    worker = Worker(
        [func(_taking_context(handler), name=name) for name, handler in handlers.ASYNC.items()],
        redis_settings=RedisSettings.from_dsn(redis_url()),
        max_jobs=order.concurrency,
        keep_result=0,
        log_results=False,
    )
    await worker.async_run()


def run_worker(order: WorkerOrder) -> None:
    """One worker here, or two in children."""
    if order.processes > 1:
        spawn_workers(order)
    run_loop(_work(order))


if __name__ == "__main__":
    main(worker=run_worker, async_producer=Producer)
