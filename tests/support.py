"""What tests of running workers share: a worker in the background, and waiting for facts.

Nothing here sleeps for a fixed time: ``eventually`` asks again until it is so, or a generous deadline.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from streamq import StreamQ
from streamq.broker.keys import Keys, QueueKeys
from streamq.worker.worker import Worker

WITHIN_S = 20.0
"""How long a fact may take on a busy machine. A test that passes does not wait for it."""

SHORT: dict[str, Any] = {
    "concurrency": 10,
    "lease_ms": 3_000,
    "block_ms": 200,
    "presence_s": 0.2,
    "crash_backoff_ms": 50,
    "grace_s": 10,
}
"""Settings of a worker that notices everything soon; its lease bears a machine that is very busy."""


async def eventually(ask: Callable[[], Any], what: str = "", *, within_s: float = WITHIN_S) -> Any:
    """Ask until the answer is true, and return it. Fails the test when that takes too long."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        answer = ask()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within_s} s: {what or ask}; last answer: {answer!r}")
        await asyncio.sleep(0.005)


async def _unused() -> None:
    """Nobody enqueues it."""


def make_worker(app: StreamQ, **settings: Any) -> Worker:
    """A worker of this app with short times; ``settings`` win. It has a task, or it would not run."""
    if not app.tasks:
        app.task(name="unused")(_unused)
    return app.worker(**{**SHORT, **settings})


@asynccontextmanager
async def running(app: StreamQ, *, wait: bool = True, **settings: Any) -> AsyncIterator[Worker]:
    """A worker that runs for the length of the block; at its end it is told to stop at once.

    ``wait`` until it reads. An error that ended the worker is raised at the end of the block.
    """
    worker = make_worker(app, **settings)
    async with live(worker, wait=wait):
        yield worker


@asynccontextmanager
async def live(worker: Worker, *, wait: bool = True) -> AsyncIterator[asyncio.Task[None]]:
    """Run this worker for the length of the block; yields the task in which it runs."""
    task = asyncio.create_task(worker.run(), name="worker-under-test")
    try:
        if wait:
            await eventually(lambda: reads(worker) or task.done(), "the worker reads")
        yield task
    finally:
        worker.stop()
        worker.stop()
        await asyncio.wait([task], timeout=WITHIN_S)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise AssertionError("the worker did not stop")
    await task


def reads(worker: Worker) -> bool:
    """Whether the worker has connected and takes tasks."""
    return worker.fetcher.client_id is not None


def keys_of(app: StreamQ, queue: str = "default") -> QueueKeys:
    """The keys of one of the app's queues."""
    return Keys(app.config.namespace).queue(queue)
