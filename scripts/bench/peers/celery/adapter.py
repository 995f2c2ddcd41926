"""Celery: how it is set up here, and why.

- ``task_ignore_result``: results are optional.
- ``--without-gossip --without-mingle --without-heartbeat``: as its manual advises where they are not needed.
- Threads, in one process as the others: 20 for no-ops (measured as good as ``solo``; prefork spends a second
  process and 40 % more CPU), 100 where handlers wait. Two worker processes are two workers.
- ``worker_prefetch_multiplier = 64``: its manual's advice for many short tasks; the default is 4.
- ``task_acks_late`` stays off, its default: it acknowledges *before* running, which is less than the others
  promise.
- It has no bulk call: a batch is one ``apply_async`` after another, over one producer.
- Delayed tasks are handed to the worker at once and wait in its memory, so there is nothing to measure in
  Redis's memory for a scheduled task that would compare.
"""

from __future__ import annotations

from celery import Celery

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_tool, spawn_workers

THREADS = 20

app = Celery("bench", broker=redis_url())
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 64
app.conf.broker_connection_retry_on_startup = True
TASKS = {name: app.task(handler, name=name) for name, handler in handlers.SYNC.items()}


class Producer:
    """The tasks, over one kombu producer."""

    def open(self) -> None:
        """Connect."""
        self._connection = app.connection_for_write()
        self._producer = self._connection.Producer()

    def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One task."""
        TASKS[task].apply_async((number, text), countdown=delay_s or None, producer=self._producer)

    def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One after another."""
        for number, text in batch:
            self.enqueue(task, number, text, delay_s)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def run_worker(order: WorkerOrder) -> None:
    """Its own program, once per process."""
    if order.processes > 1:
        spawn_workers(order)
    threads = order.concurrency if order.waits else THREADS
    lean = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")
    run_tool("celery", "-A", "adapter:app", "worker", "--pool", "threads", "--concurrency", threads, *lean)


if __name__ == "__main__":
    main(worker=run_worker, sync_producer=Producer)
