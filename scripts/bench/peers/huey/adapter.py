"""huey: how it is set up here, and why.

- ``results=False``: results are optional.
- Thread workers: one for no-ops (more only fight for the interpreter lock), 100 where handlers wait; two
  worker *processes* are two consumers.
- ``-n``: no periodic tasks. The queue is read blocking, which is its default with Redis; the scheduler looks
  every second, its finest setting.
- It has no bulk call: a batch is one ``enqueue`` after another.
"""

from __future__ import annotations

from huey import RedisHuey

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_tool, spawn_workers

huey = RedisHuey("bench", url=redis_url(), results=False)
TASKS = {name: huey.task(name=name)(handler) for name, handler in handlers.SYNC.items()}


class Producer:
    """The tasks."""

    def open(self) -> None:
        """Connect."""
        huey.storage.conn.ping()

    def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task."""
        if delay_s:
            TASKS[task].schedule((number, text), delay=delay_s)
        else:
            TASKS[task](number, text)

    def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One after another."""
        for number, text in batch:
            self.enqueue(task, number, text, delay_s)

    def close(self) -> None:
        """Disconnect."""
        huey.storage.conn.close()


def run_worker(order: WorkerOrder) -> None:
    """Its own program, once per process."""
    if order.processes > 1:
        spawn_workers(order)
    threads = order.concurrency if order.waits else 1
    run_tool("huey_consumer", "adapter.huey", "-k", "thread", "-w", threads, "-n", "-q")


if __name__ == "__main__":
    main(worker=run_worker, sync_producer=Producer)
