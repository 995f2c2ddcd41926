"""Locks of unique tasks over the life of their tasks, as workers live it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from streamq import Drop, Inspector, SkipRetry, State, StreamQ, Unique
from streamq.broker import working
from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.errors import DuplicateTask
from streamq.model.lanes import Lane
from streamq.model.retry import Retry
from tests.servers import Server
from tests.support import eventually, keys_of, make_worker, running

MODES = ["until_start", "until_done", "debounce", "keep_last"]


def locks(server: Server, app: StreamQ) -> int:
    """Records of locks and owners that are stored."""
    keys: Any = keys_of(app)
    redis: Any = server.client()
    return int(redis.hlen(keys.unique) + redis.hlen(keys.owners))


async def returns() -> str:
    return "done"


async def fails() -> None:
    raise SkipRetry


async def drops() -> None:
    raise Drop


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("handler", [returns, fails, drops], ids=lambda handler: handler.__name__)
@pytest.mark.parametrize("retention", [None, 60], ids=["forgotten", "kept"])
async def test_a_lock_is_freed_at_once_when_its_task_has_ended(
    app: StreamQ, server: Server, mode: Any, handler: Any, retention: int | None
) -> None:
    """A33, A34, B36: the worker frees it right behind settling, so nothing is left of it in Redis."""
    task = app.task(name="t", unique=mode, retention=retention)(handler)
    async with running(app):
        await task.enqueue()
        await eventually(lambda: locks(server, app) == 0)
        assert (await task.enqueue()).created
        await eventually(lambda: locks(server, app) == 0)


async def test_a_task_that_was_kept_is_still_there_when_its_lock_is_gone(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """A34"""
    task = app.task(name="t", unique=True, retention=60)(returns)
    async with running(app):
        first = await task.enqueue()
        assert await first.result(10) == "done"
        await eventually(lambda: locks(server, app) == 0)
        second = await task.enqueue()
        assert second.id != first.id
    assert (await inspector.task("default", first.id)).state is State.COMPLETED


async def test_a_task_stays_unique_through_all_its_retries(app: StreamQ, server: Server) -> None:
    """B35: also when they take longer than the window that was asked for."""
    attempts = 0

    @app.task(name="t", unique=Unique("window", ttl=0.001), retry=Retry(3, delay=0.01))
    async def flaky() -> None:
        nonlocal attempts
        with pytest.raises(DuplicateTask):
            await flaky.enqueue()
        attempts += 1
        raise ValueError

    handle = await flaky.enqueue()
    async with running(app), app.inspector() as inspector:
        await eventually(lambda: attempts == 4)

        async def archived() -> bool:
            return (await inspector.task("default", handle.id)).state is State.ARCHIVED

        await eventually(archived)
        await eventually(lambda: locks(server, app) == 0)


async def test_an_archived_task_keeps_its_lock_where_asked(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """B36: as configured; deleting the task frees it."""
    task = app.task(name="t", unique=Unique(keep_when_archived=True))(fails)
    async with running(app) as worker:
        handle = await task.enqueue()
        await eventually(lambda: worker.settler.settled == 1)
    with pytest.raises(DuplicateTask):
        await task.enqueue()
    await inspector.delete("default", handle.id)
    assert locks(server, app) == 0


async def test_a_removed_queue_has_no_locks(app: StreamQ, server: Server, inspector: Inspector) -> None:
    """B36"""
    task = app.task(name="t", unique=Unique("window", ttl=3600))(returns)
    await task.enqueue()
    await inspector.remove_queue("default", force=True)
    assert locks(server, app) == 0
    assert (await task.enqueue()).created


@pytest.mark.parametrize("outcome", ["archive", "delete"])
@pytest.mark.parametrize("unique", [Unique("window", ttl=3600), Unique(), Unique("keep_last")], ids=str)
async def test_cancelling_frees_the_lock_of_a_task_that_waits(
    app: StreamQ, server: Server, inspector: Inspector, unique: Unique, outcome: Any
) -> None:
    """B36: at once, a window included."""
    task = app.task(name="t", unique=unique)(returns)
    handle = await task.options(delay=60).enqueue()
    await inspector.cancel("default", handle.id, outcome=outcome)
    assert locks(server, app) == 0
    assert (await task.enqueue()).created


async def test_cancelling_frees_the_lock_of_a_task_that_runs(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """B36"""
    started = asyncio.Event()

    @app.task(name="t", unique=True)
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    async with running(app):
        handle = await endless.enqueue()
        await started.wait()
        await inspector.cancel("default", handle.id)
        await eventually(lambda: locks(server, app) == 0)


async def test_a_task_that_expired_has_no_lock(app: StreamQ, server: Server) -> None:
    """B36"""
    task = app.task(name="t", unique=True)(returns)
    await task.options(expires=0.001).enqueue()
    async with running(app) as worker:
        await eventually(lambda: worker.settler.settled == 1)
        await eventually(lambda: locks(server, app) == 0)


async def test_until_start_lets_the_next_one_wait_while_the_first_one_runs(
    app: StreamQ, server: Server
) -> None:
    """A35: the first one's end does not free the second one's lock."""
    started, go_on = asyncio.Semaphore(0), asyncio.Semaphore(0)

    @app.task(name="t", unique="until_start")
    async def handler() -> None:
        started.release()
        await go_on.acquire()

    async with running(app, concurrency=1) as worker:
        await handler.enqueue()
        await started.acquire()
        await handler.enqueue()
        with pytest.raises(DuplicateTask):
            await handler.enqueue()
        go_on.release()
        await started.acquire()
        await handler.enqueue()
        go_on.release()
        go_on.release()
        await eventually(lambda: worker.settler.settled == 3)
    assert locks(server, app) == 0


async def test_keep_last_runs_the_newest_when_the_running_one_has_ended(app: StreamQ, server: Server) -> None:
    """At most one runs and one waits; of a hundred that came meanwhile the last one's arguments run."""
    seen: list[int] = []
    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task(name="t", unique=Unique("keep_last", key="one"))
    async def handler(n: int) -> None:
        seen.append(n)
        started.set()
        await go_on.wait()

    async with running(app):
        await handler.enqueue(0)
        await started.wait()
        waiting = {(await handler.enqueue(n)).id for n in range(1, 101)}
        assert len(waiting) == 1
        assert seen == [0]
        go_on.set()
        await eventually(lambda: seen == [0, 100])
        await eventually(lambda: locks(server, app) == 0)


async def test_keep_last_lets_the_newest_win_over_a_retry(app: StreamQ, server: Server) -> None:
    seen: list[int] = []
    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task(name="t", unique=Unique("keep_last", key="one"), retry=Retry(5, delay=3600))
    async def handler(n: int) -> None:
        seen.append(n)
        started.set()
        await go_on.wait()
        if n == 0:
            raise ValueError

    async with running(app), app.inspector() as inspector:
        await handler.enqueue(0)
        await started.wait()
        await handler.enqueue(1)
        go_on.set()
        await eventually(lambda: seen == [0, 1])
        await eventually(lambda: locks(server, app) == 0)
        assert (await inspector.queue("default")).size == 0


@pytest.mark.parametrize("unique", [None, True])
async def test_only_tasks_with_a_lock_cause_tidying(
    app: StreamQ, monkeypatch: pytest.MonkeyPatch, unique: Any
) -> None:
    """Nothing of this costs those who do not ask for it: one script call settles them, as before."""
    tidied: list[bytes] = []
    tidy = working.tidy

    def noted(queue: QueueKeys, ids: Sequence[bytes]) -> Command[working.Tidied]:
        tidied.extend(ids)
        return tidy(queue, ids)

    monkeypatch.setattr(working, "tidy", noted)

    @app.task(name="t", unique=unique)
    async def task(n: int) -> None: ...

    async with running(app) as worker:
        handles = await app.enqueue_many(task.call(n) for n in range(10))
        await eventually(lambda: worker.settler.settled == 10)
    assert sorted(tidied) == sorted(handle.id.encode() for handle in handles if unique)


async def test_keep_last_runs_the_newest_when_the_running_one_has_crashed_too_often(
    app: StreamQ, inspector: Inspector
) -> None:
    """At once, by whoever archives the crashed one: not when the next sweep comes by."""

    @app.task(name="t", unique=Unique("keep_last", key="one"))
    async def handler(n: int) -> None: ...

    crashed, lane = await handler.enqueue(0), keys_of(app).lanes[Lane.NORMAL]
    await app.client.runner.run_all(
        [working.make_group(lane), working.read([(Lane.NORMAL, lane)], "dead", 1)]
    )
    newest = await handler.enqueue(1)
    assert (await inspector.task("default", newest.id)).state is State.SCHEDULED
    worker = make_worker(app, crash_limit=0)
    try:
        await worker.recoverer.run_once("dead")
    finally:
        await worker.recoverer._runner.aclose()  # not run, so nobody closes it
    assert (await inspector.task("default", crashed.id)).state is State.ARCHIVED
    assert (await inspector.task("default", newest.id)).state is State.READY
