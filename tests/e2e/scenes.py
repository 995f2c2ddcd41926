"""A server, a namespace, a journal, and the workers and producers of one test of processes."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamq import GroupRule, Inspector, QueueInfo, StreamQ, TaskInfo
from streamq.errors import BatchError, UsageError
from streamq.model.call import as_call
from tests.e2e.checker import Journal, Verdict, judge
from tests.e2e.processes import WorkerProcess, wait_until
from tests.servers import Server

PAGE = 100
RULE = GroupRule(grace=0.2, max_delay=1.0, max_size=25)
"""Of tasks that are enqueued with groups."""
QUEUE = "default"


class Scene:
    """What a test of processes needs. The journal tells the truth, Redis is only asked besides."""

    def __init__(self, server: Server, namespace: str, folder: Path) -> None:
        self.server = server
        self.app = StreamQ(server.url, namespace=namespace)
        self.journal = Journal(folder / "journal")
        self._namespace = namespace
        self._folder = folder
        self._numbers = itertools.count(1)

    def worker(self, *words: str) -> WorkerProcess:
        """A worker of ``workload``'s tasks, to be started."""
        return WorkerProcess(self.server.url, self._namespace, self.journal, self._folder, *words)

    # Producing

    def enqueue(self, name: str, count: int, *, groups: int = 0, **arguments: Any) -> list[str]:
        """Enqueue so many tasks, spread over ``groups``, and write down what came of each; their ids."""
        task_ids = [f"t{next(self._numbers):06}" for _ in range(count)]
        with self.app.sync() as client:
            for start in range(0, count, PAGE):
                page = task_ids[start : start + PAGE]
                calls = [as_call(name, arguments, _options(task_id, groups)) for task_id in page]
                self.journal.write("attempt", *page)
                try:
                    client.enqueue_many(calls)
                except BatchError as error:
                    self._write_down(page, error)
                else:
                    self.journal.write("ok", *page)
        return task_ids

    def _write_down(self, page: list[str], error: BatchError) -> None:
        for task_id, result in zip(page, error.results, strict=True):
            failed = isinstance(result, Exception)
            kind = "fail" if isinstance(result, UsageError) else "unknown" if failed else "ok"
            self.journal.write(kind, task_id)

    @contextmanager
    def enqueuing(self, name: str, count: int, **arguments: Any) -> Iterator[None]:
        """The same beside the block, which is left when it is done."""
        thread = threading.Thread(target=self.enqueue, args=(name, count), kwargs=arguments)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    # Looking

    def info(self, task_id: str) -> TaskInfo:
        with self.app.sync() as client:
            return client.info(QUEUE, task_id)

    def queue(self) -> QueueInfo:
        async def ask() -> QueueInfo:
            async with self.app.inspector() as inspector:
                return await inspector.queue(QUEUE)

        return asyncio.run(ask())

    def counters(self) -> dict[str, int]:
        async def ask() -> dict[str, int]:
            async with self.app.inspector() as inspector:
                return await inspector.counters(QUEUE)

        return asyncio.run(ask())

    def steer(self, steering: Callable[[Inspector], Awaitable[Any]]) -> None:
        """Have the inspector do something."""

        async def ask() -> None:
            async with self.app.inspector() as inspector:
                await steering(inspector)

        asyncio.run(ask())

    def started(self) -> set[str]:
        return {record.task_id for record in self.journal.read() if record.kind == "start"}

    def ended(self) -> set[str]:
        return {record.task_id for record in self.journal.read() if record.kind == "end"}

    def verdict(self) -> Verdict:
        return judge(self.journal.read())

    # Waiting

    def until_started(self, count: int) -> None:
        wait_until(lambda: self.journal.count("start") >= count, f"{count} starts")

    def until_ended(self, count: int) -> None:
        """Until so many different tasks have ended."""
        wait_until(
            lambda: self.journal.count("end") >= count and len(self.ended()) >= count, f"{count} tasks end"
        )

    def until_drained(self) -> None:
        """Until Redis, too, knows of nothing more to do."""

        def drained() -> bool:
            info = self.queue()
            return not (info.ready or info.active or info.scheduled or info.retry or info.aggregating)

        wait_until(drained, "the queue is drained")

    def until_nobody_reads(self) -> None:
        """Until no worker waits in Redis for entries of this server."""

        def reading() -> bool:
            clients = self.server.client().client_list()
            return any("b" in client["flags"] and client["cmd"] == "xreadgroup" for client in clients)

        wait_until(lambda: not reading(), "nobody reads")


def _options(task_id: str, groups: int) -> dict[str, Any]:
    if not groups:
        return {"task_id": task_id}
    return {"task_id": task_id, "group": f"g{int(task_id[1:]) % groups}", "group_rule": RULE}
