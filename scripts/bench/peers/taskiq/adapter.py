"""taskiq with taskiq-redis: how it is set up here, and why.

- ``RedisStreamBroker``: the one of its brokers that acknowledges, hence the one that is comparable.
- ``consumer_id="0"``: its default ``$`` would skip what was enqueued before the first worker started.
- ``--max-async-tasks 100``: the bench's concurrency, also its default; ``xread_count`` stays 100.
- No result backend; ``--no-parse``: no pydantic conversion of the arguments; log level WARNING.
- uvloop: its worker uses it where installed.
- It has no bulk call; its best is 100 concurrent ``kiq`` calls.
- Delays need its scheduler, a process of its own, which looks every second at best (``--update-interval 1``).
  It is started beside the worker for the lateness workload only.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from taskiq import TaskiqScheduler
from taskiq_redis import ListRedisScheduleSource, RedisStreamBroker

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_tool

broker = RedisStreamBroker(redis_url(), consumer_id="0")
source = ListRedisScheduleSource(redis_url())
scheduler = TaskiqScheduler(broker, [source])
TASKS = {name: broker.task(task_name=name)(handler) for name, handler in handlers.ASYNC.items()}


class Producer:
    """The broker as a client."""

    async def open(self) -> None:
        """Connect."""
        await broker.startup()
        await source.startup()

    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task, by way of the schedule source when it is delayed."""
        if delay_s:
            due = datetime.now(UTC) + timedelta(seconds=delay_s)
            await TASKS[task].schedule_by_time(source, due, number, text)
        else:
            await TASKS[task].kiq(number, text)

    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """Many tasks at a time."""
        await asyncio.gather(*(self.enqueue(task, number, text, delay_s) for number, text in batch))

    async def close(self) -> None:
        """Disconnect."""
        await source.shutdown()
        await broker.shutdown()


def run_worker(order: WorkerOrder) -> None:
    """Its own program; the scheduler beside it where delays are measured."""
    if order.workload == "lateness":
        program = str(Path(sys.executable).parent / "taskiq")
        subprocess.Popen([program, "scheduler", "adapter:scheduler", "--update-interval", "1"])
    words = ("--max-async-tasks", order.concurrency, "--no-parse", "--log-level", "WARNING")
    run_tool("taskiq", "worker", "adapter:broker", "--workers", order.processes, *words)


if __name__ == "__main__":
    main(worker=run_worker, async_producer=Producer)
