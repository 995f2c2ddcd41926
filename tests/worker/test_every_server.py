"""A worker on each kind of server: the same life of tasks everywhere."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from streamq import GroupRule, Member, Retry, SkipRetry, StreamQ, current_task
from streamq.errors import ResultNotKept, TaskCancelled, TaskFailed
from streamq.worker.worker import Worker
from tests.servers import Server
from tests.support import eventually, live, make_worker, running


async def test_tasks_succeed_fail_wait_and_come_back_on_every_server(
    any_server: Server, namespace: str
) -> None:
    """Results, retries, the archive, delays, priorities, release at a stop and recovery."""
    app = StreamQ(any_server.url, namespace=namespace)
    ends = asyncio.Event()
    crashes: list[int] = []

    @app.task(name="add", retention=60)
    async def add(left: int, right: int) -> int:
        return left + right

    @app.task(name="flaky", retention=60, retry=Retry(max_retries=2, delay=0))
    def flaky() -> int:
        if current_task().attempt < 3:
            raise ValueError
        return current_task().attempt

    @app.task(name="bad")
    async def bad() -> NoReturn:
        raise SkipRetry("no use")

    @app.task(name="long", retention=60)
    async def long() -> str:
        crashes.append(current_task().crashes)
        await ends.wait()
        return "at last"

    async with app, app.inspector() as inspector:
        slow = await long.enqueue()
        first = make_worker(app, grace_s=0)
        async with live(first):
            await eventually(lambda: crashes == [0])
        assert (await inspector.queue("default")).ready == 1  # given back
        await take_and_die(app, any_server, first)
        async with running(app) as worker:
            await worker.recoverer.run_once("dead")
            await eventually(lambda: crashes == [0, 1])
            sums = await app.enqueue_many(add.options(priority="high").call(n, n) for n in range(50))
            tried, late, failed = (
                await flaky.enqueue(),
                await add.options(delay=0.05).enqueue(1, 2),
                await bad.enqueue(),
            )
            assert [await handle.result(timeout=20) for handle in sums] == [2 * n for n in range(50)]
            assert await tried.result(timeout=20) == 3
            assert await late.result(timeout=20) == 3
            with pytest.raises(TaskFailed, match="no use"):
                await failed.result(timeout=20)
            ends.set()
            assert await slow.result(timeout=20) == "at last"
        queue = await inspector.queue("default")
        assert (queue.ready, queue.active, queue.retry, queue.scheduled) == (0, 0, 0, 0)
        assert (queue.completed, queue.archived, queue.failed) == (53, 1, 3)


async def test_tasks_are_cancelled_and_held_up_on_every_server(any_server: Server, namespace: str) -> None:
    """B10, A47: a running and a waiting task, and a queue that is paused under its worker."""
    app = StreamQ(any_server.url, namespace=namespace)
    started: list[str] = []

    @app.task(name="wait")
    async def wait() -> None:
        started.append(current_task().id)
        await asyncio.Event().wait()

    async with app, app.inspector() as inspector, running(app):
        runs = await wait.enqueue()
        await eventually(lambda: started == [runs.id])
        await inspector.pause("default")
        held_up, unwanted = await wait.enqueue(), await wait.enqueue()
        assert await unwanted.cancel() is True
        assert await runs.cancel() is False
        for handle in (runs, unwanted):
            with pytest.raises(TaskCancelled):
                await handle.result(timeout=20)
        assert started == [runs.id]
        await inspector.resume("default")
        await eventually(lambda: started == [runs.id, held_up.id])
        await held_up.cancel("delete")
        with pytest.raises(ResultNotKept):
            await held_up.result(timeout=20)
        assert (await inspector.queue("default")).archived == 2


async def take_and_die(app: StreamQ, server: Server, worker: Worker) -> None:
    """Deliver what stands in front to a consumer that never settles it."""
    front = next(iter(worker.queues["default"].lanes.values()))
    assert server.client().xreadgroup("w", "dead", {front: ">"}, count=10)


async def test_groups_become_batches_on_every_server(any_server: Server, namespace: str) -> None:
    """By grace, by size, after a delay; with a member that cannot be read, and a retry."""
    app = StreamQ(any_server.url, namespace=namespace)
    runs: list[list[int]] = []

    @app.batch_task(name="t", retention=60, retry=Retry(max_retries=1, delay=0))
    async def task(members: list[Member]) -> int:
        runs.append([member.args[0] for member in members])
        if current_task().attempt == 1:
            raise ValueError
        return len(members)

    quiet, full = GroupRule(grace=0.1), GroupRule(grace=3600, max_size=3)
    async with app:
        by_grace = await task.options(group="a", group_rule=quiet).enqueue(1)
        by_size = [await task.options(group="b", group_rule=full).enqueue(number) for number in (2, 3)]
        any_server.client().hset(app.client.keys.queue("default").parked, by_size[0].id, b"n0:\xff")
        late = await task.options(group="b", group_rule=full, delay=0.05).enqueue(4)
        async with running(app):
            assert await by_grace.result(timeout=20) == 1
            assert await late.result(timeout=20) == await by_size[1].result(timeout=20) == 2
            with pytest.raises(TaskFailed):
                await by_size[0].result(timeout=20)
    assert sorted(runs) == [[1], [1], [3, 4], [3, 4]]
