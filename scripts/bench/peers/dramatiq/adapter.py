"""dramatiq: how it is set up here, and why.

- Threads: 16 a process for no-ops, measured as good as or better than 8, its default, and 32; 100 where
  handlers wait.
- No results middleware; the default middleware stays, as its manual advises.
- It has no bulk call: a batch is one ``send`` after another.
"""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from kit import handlers
from kit.commands import Batch, WorkerOrder, main, redis_url, run_tool

THREADS = 16

broker = RedisBroker(url=redis_url())
dramatiq.set_broker(broker)
ACTORS = {name: dramatiq.actor(handler, actor_name=name) for name, handler in handlers.SYNC.items()}


class Producer:
    """The actors."""

    def open(self) -> None:
        """Connect."""
        broker.client.ping()

    def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None:
        """One message."""
        if delay_s:
            ACTORS[task].send_with_options(args=(number, text), delay=int(delay_s * 1000))
        else:
            ACTORS[task].send(number, text)

    def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None:
        """One after another."""
        for number, text in batch:
            self.enqueue(task, number, text, delay_s)

    def close(self) -> None:
        """Disconnect."""
        broker.close()


def run_worker(order: WorkerOrder) -> None:
    """Its own program."""
    threads = order.concurrency if order.waits else THREADS
    run_tool("dramatiq", "adapter:broker", "--processes", order.processes, "--threads", threads)


if __name__ == "__main__":
    main(worker=run_worker, sync_producer=Producer)
