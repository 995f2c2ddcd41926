"""Semaphores: permits that programs share, for asyncio and for blocking code."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from streamq import Permit, Semaphore, StreamQ, SyncClient
from streamq.broker.scripts import script
from streamq.broker.semaphores import acquire
from streamq.errors import (
    OptionError,
    SemaphoreLost,
    SemaphoreTimeout,
    Unavailable,
    UsageError,
)
from tests.conftest import ProxyFor
from tests.servers import Server
from tests.support import eventually

LEASE_S = 0.4
"""Short enough to see it run out, long enough for a busy machine to renew."""


class Programs:
    """Async and blocking programs behind one face; blocking ones run in threads."""

    def __init__(self, app: StreamQ, sync: SyncClient | None) -> None:
        self.app = app
        self.sync = sync

    def semaphore(self, **options: Any) -> Any:
        if self.sync is None:
            return self.app.semaphore("report", **options)
        return self.sync.semaphore("report", **options)

    async def call(self, do: Callable[..., Any], *args: Any) -> Any:
        """A method of either kind, awaited."""
        return await asyncio.to_thread(do, *args) if self.sync is not None else await do(*args)

    async def enter(self, semaphore: Any) -> Any:
        return await self.call(semaphore.__enter__ if self.sync is not None else semaphore.__aenter__)


@pytest.fixture(params=["async", "sync"])
async def programs(request: pytest.FixtureRequest, app: StreamQ) -> AsyncIterator[Programs]:
    with ExitStack() as stack:
        async with app:
            yield Programs(app, stack.enter_context(app.sync()) if request.param == "sync" else None)


@pytest.fixture
def key(app: StreamQ) -> bytes:
    return app.new_client().keys.semaphore("report")


@pytest.fixture
def redis(server: Server) -> Any:
    return server.client()


# Acquire and refuse


async def test_permits_are_given_up_to_the_limit_and_again_when_released(programs: Programs) -> None:
    """A145: below the limit a permit, at the limit None."""
    semaphore = programs.semaphore(limit=2)
    one = await programs.call(semaphore.acquire)
    other = await programs.call(semaphore.try_acquire)
    assert (one.held, other.held) == (True, True)
    assert await programs.call(semaphore.try_acquire) is None
    await programs.call(one.release)
    assert not one.held
    again = await programs.call(semaphore.try_acquire)
    assert again.held
    await programs.call(again.release)
    await programs.call(other.release)


async def test_who_finds_it_full_for_too_long_is_told(programs: Programs) -> None:
    """A145: with a typed error, after the time that the semaphore or the call gives."""
    holder = await programs.call(programs.semaphore(limit=1).acquire)
    semaphore = programs.semaphore(limit=1, timeout=0.1)
    began = time.monotonic()
    with pytest.raises(SemaphoreTimeout) as caught:
        await programs.enter(semaphore)
    assert time.monotonic() - began >= 0.1
    assert (caught.value.semaphore, isinstance(caught.value, TimeoutError)) == ("report", True)
    with pytest.raises(SemaphoreTimeout):
        await programs.call(programs.semaphore(limit=1, timeout=60).acquire, 0.05)
    await programs.call(holder.release)


async def test_who_waits_gets_it_when_it_is_released(programs: Programs) -> None:
    semaphore = programs.semaphore(limit=1)
    holder = await programs.call(semaphore.acquire)
    waiting = asyncio.create_task(programs.call(semaphore.acquire))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    await programs.call(holder.release)
    permit = await waiting
    assert permit.held
    await programs.call(permit.release)


async def test_blocks_of_one_semaphore_never_run_more_than_allowed(app: StreamQ, server: Server) -> None:
    """I10: one object used by many tasks at once, and by another program."""
    running = most = through = 0

    async def work(semaphore: Semaphore) -> None:
        nonlocal running, most, through
        async with semaphore:
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.002)
            running -= 1
            through += 1

    other = StreamQ(server.url, namespace=app.config.namespace)
    async with app, other, asyncio.TaskGroup() as group:
        for program in (app, other):
            semaphore = program.semaphore("report", limit=3)
            for _ in range(10):
                group.create_task(work(semaphore))
    assert (most, through) == (3, 20)


def test_threads_share_a_blocking_semaphore(sync: SyncClient) -> None:
    """I10: each enters and leaves with its own permit, also one inside of another."""
    running, most = 0, 0
    lock = threading.Lock()
    semaphore = sync.semaphore("report", limit=2)
    other = sync.semaphore("other", limit=5)

    def work() -> None:
        nonlocal running, most
        with semaphore as permit, other:
            with lock:
                running += 1
                most = max(most, running)
            assert permit.held
            with lock:
                running -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert running == 0
    assert 1 <= most <= 2


async def test_semaphores_of_other_names_and_namespaces_are_others(app: StreamQ, server: Server) -> None:
    elsewhere = StreamQ(server.url, namespace=f"{app.config.namespace}x")
    async with (
        app,
        elsewhere,
        app.semaphore("report", limit=1, timeout=0),
        app.semaphore("mail", limit=1, timeout=0),
        elsewhere.semaphore("report", limit=1, timeout=0),
    ):
        with pytest.raises(SemaphoreTimeout):
            await app.semaphore("report", limit=1, timeout=0).acquire()


async def test_nothing_is_left_behind(programs: Programs, redis: Any, key: bytes) -> None:
    permit = await programs.call(programs.semaphore(limit=1).acquire)
    assert redis.exists(key)
    await programs.call(permit.release)
    assert not redis.exists(key)


# Leases


async def test_a_permit_is_renewed_while_it_is_held(programs: Programs, redis: Any, key: bytes) -> None:
    """However long that is: also much longer than a lease."""
    permit = await programs.call(programs.semaphore(limit=1, lease=LEASE_S).acquire)
    [(_, first)] = redis.zrange(key, 0, -1, withscores=True)
    await eventually(lambda: redis.zrange(key, 0, -1, withscores=True)[0][1] > first + 2000 * LEASE_S)
    assert permit.held
    await programs.call(permit.release)


async def test_the_permit_of_a_program_that_was_killed_is_reclaimed(
    app: StreamQ, server: Server, redis: Any, key: bytes
) -> None:
    """A146: kill -9; after its lease somebody else gets it, and not before."""
    code = (
        "import time; from streamq import StreamQ\n"
        f"with StreamQ({server.url!r}, namespace={app.config.namespace!r}).sync() as q:\n"
        f"    permit = q.semaphore('report', limit=1, lease={LEASE_S}).acquire()\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
            async with app:
                assert await app.semaphore("report", limit=1).try_acquire() is None
                holder.kill()
                [(_, ends_ms)] = redis.zrange(key, 0, -1, withscores=True)
                permit = await app.semaphore("report", limit=1, timeout=20).acquire()
                seconds, micros = redis.time()
                assert seconds * 1000 + micros // 1000 >= ends_ms
                await permit.release()
        finally:
            holder.kill()


async def test_a_holder_that_lost_its_permit_is_told(programs: Programs, redis: Any, key: bytes) -> None:
    """A146: with the next renewal at the latest. Releasing it says so, and takes nothing from anybody."""
    permit = await programs.call(programs.semaphore(limit=1, lease=LEASE_S).acquire)
    redis.delete(key)
    redis.zadd(key, {"another": 2**52})
    await eventually(lambda: permit.lost)
    assert not permit.held
    with pytest.raises(SemaphoreLost):
        await programs.call(permit.release)
    assert redis.zrange(key, 0, -1) == [b"another"]


async def test_a_loss_is_noticed_when_it_is_released_at_once(
    programs: Programs, redis: Any, key: bytes
) -> None:
    """Before any renewal could tell."""
    permit = await programs.call(programs.semaphore(limit=1, lease=3600).acquire)
    redis.delete(key)
    with pytest.raises(SemaphoreLost):
        await programs.call(permit.release)


async def test_a_block_that_lost_its_permit_is_cancelled(opened: StreamQ, redis: Any, key: bytes) -> None:
    """And ends with SemaphoreLost, not with a cancel that nobody asked for."""

    async def block() -> None:
        async with opened.semaphore("report", limit=1, lease=LEASE_S):
            redis.delete(key)
            await asyncio.Event().wait()

    with pytest.raises(SemaphoreLost):
        await block()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_that_did_not_wait_is_told_at_its_end(opened: StreamQ, redis: Any, key: bytes) -> None:
    with pytest.raises(SemaphoreLost):
        async with opened.semaphore("report", limit=1, lease=3600):
            redis.delete(key)


async def test_a_block_that_held_its_loop_up_past_the_lease_is_told_at_its_end(opened: StreamQ) -> None:
    """Nobody could renew meanwhile."""
    with pytest.raises(SemaphoreLost):
        async with opened.semaphore("report", limit=1, lease=0.1):
            time.sleep(0.15)  # blocking the loop is the point


async def test_a_blocks_own_error_is_told_in_preference(opened: StreamQ, redis: Any, key: bytes) -> None:
    async def block() -> None:
        async with opened.semaphore("report", limit=1, lease=LEASE_S) as permit:
            redis.delete(key)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                assert permit.lost
                raise KeyError from None

    with pytest.raises(KeyError):
        await block()


async def test_a_cancel_from_outside_stays_one_and_gives_the_permit_back(
    opened: StreamQ, redis: Any, key: bytes
) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with opened.semaphore("report", limit=1):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not redis.exists(key)


async def test_a_cancel_from_outside_beside_a_loss_stays_one(opened: StreamQ, redis: Any, key: bytes) -> None:
    """Whoever waits for the task must see that it was cancelled."""
    entered = asyncio.Event()
    permits: list[Permit] = []

    async def work() -> None:
        async with opened.semaphore("report", limit=1, lease=LEASE_S) as permit:
            permits.append(permit)
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.shield(asyncio.sleep(0))

    task = asyncio.create_task(work())
    await entered.wait()
    redis.delete(key)
    permits[0]._lose()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_blocking_block_that_lost_its_permit_is_told_at_its_end(
    sync: SyncClient, redis: Any, key: bytes
) -> None:
    """It cannot be stopped from outside, but it can look."""
    looked: list[bool] = []

    def block() -> None:
        with sync.semaphore("report", limit=1, lease=LEASE_S) as permit:
            redis.delete(key)
            deadline = time.monotonic() + 20
            while permit.held and time.monotonic() < deadline:
                time.sleep(0.01)
            looked.append(permit.lost)

    with pytest.raises(SemaphoreLost):
        block()
    assert looked == [True]


def test_a_blocking_blocks_own_error_is_told_in_preference(sync: SyncClient, redis: Any, key: bytes) -> None:
    def block() -> None:
        with sync.semaphore("report", limit=1, lease=3600):
            redis.delete(key)
            raise KeyError

    with pytest.raises(KeyError):
        block()


# Redis in trouble


async def test_a_permit_is_lost_when_redis_is_away_for_longer_than_its_lease(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """The holder stops before anybody else can hold it: it does not need Redis to know that."""
    proxy = await proxy_for(server)
    async with StreamQ(proxy.url, namespace=namespace) as app:

        async def block() -> None:
            async with app.semaphore("report", limit=1, lease=LEASE_S):
                proxy.silence()
                asyncio.get_running_loop().call_later(2 * LEASE_S, proxy.resume)
                await asyncio.Event().wait()

        with pytest.raises(SemaphoreLost):
            await block()


async def test_a_permit_outlives_an_outage_that_is_shorter_than_its_lease(
    server: Server, namespace: str, proxy_for: ProxyFor, redis: Any, key: bytes
) -> None:
    proxy = await proxy_for(server)
    async with (
        StreamQ(proxy.url, namespace=namespace) as app,
        app.semaphore("report", limit=1, lease=3) as permit,
    ):
        [(_, first)] = redis.zrange(key, 0, -1, withscores=True)
        proxy.cut()
        await eventually(lambda: redis.zrange(key, 0, -1, withscores=True)[0][1] > first)
        assert permit.held


async def test_a_lost_reply_takes_no_second_permit(
    server: Server, namespace: str, proxy_for: ProxyFor, redis: Any, key: bytes
) -> None:
    proxy = await proxy_for(server)
    async with StreamQ(proxy.url, namespace=namespace) as app:
        lost = proxy.lose_next_reply(script("acquire").sha)
        async with app.semaphore("report", limit=5):
            assert lost.is_set()
            assert redis.zcard(key) == 1


async def test_who_gives_up_while_asking_holds_nothing(
    server: Server, namespace: str, proxy_for: ProxyFor, redis: Any, key: bytes
) -> None:
    """Cancelled before the answer came: the permit that Redis gave is given back."""
    proxy = await proxy_for(server)
    async with StreamQ(proxy.url, namespace=namespace) as app:
        await app.client.ping()
        proxy.silence()
        task = asyncio.create_task(app.semaphore("report", limit=1, lease=3600).acquire())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        proxy.resume()
        async with app.semaphore("report", limit=1, timeout=20):
            assert redis.zcard(key) == 1


async def test_an_outage_is_told_after_a_bounded_time(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """With the error that every other call raises; also by one that would wait for ever."""
    proxy = await proxy_for(server)
    await proxy.refuse()
    app = StreamQ(proxy.url, namespace=namespace, enqueue_timeout=0.2)
    async with app:
        with pytest.raises(Unavailable):
            await app.semaphore("report", limit=1).acquire()

    def block() -> None:
        with app.sync() as client, client.semaphore("report", limit=1):
            pytest.fail("there is no Redis")

    with pytest.raises(Unavailable):
        await asyncio.to_thread(block)


# Misuse

MISUSES: list[tuple[dict[str, Any], str]] = [
    ({"limit": 0}, "limit"),
    ({"limit": -1}, "limit"),
    ({"limit": True}, "limit"),
    ({"limit": 1.5}, "limit"),
    ({"limit": 1, "name": ""}, "name"),
    ({"limit": 1, "name": "  "}, "name"),
    ({"limit": 1, "name": "a{b}"}, "name"),
    ({"limit": 1, "name": None}, "name"),
    ({"limit": 1, "lease": None}, "lease"),
    ({"limit": 1, "lease": 0}, "lease"),
    ({"limit": 1, "lease": 100_000}, "lease"),
    ({"limit": 1, "lease": "30"}, "lease"),
    ({"limit": 1, "timeout": -1}, "timeout"),
    ({"limit": 1, "timeout": "soon"}, "timeout"),
]


@pytest.mark.parametrize("options, field", MISUSES)
async def test_a_semaphore_without_meaning_is_refused(
    app: StreamQ, options: dict[str, Any], field: str
) -> None:
    """A147: no positive limit, a blank name, no lease, a bad timeout."""
    words = {"name": "report", **options}
    name = words.pop("name")
    for make in (app.semaphore, app.new_client().semaphore, SyncClient(app.address).semaphore):
        with pytest.raises(OptionError) as caught:
            make(name, **words)
        assert caught.value.field == field


async def test_a_permit_cannot_be_released_twice(programs: Programs) -> None:
    """A147: and the second time takes nobody else's."""
    semaphore = programs.semaphore(limit=1)
    permit = await programs.call(semaphore.acquire)
    await programs.call(permit.release)
    holder = await programs.call(semaphore.acquire)
    with pytest.raises(UsageError, match="not held"):
        await programs.call(permit.release)
    assert holder.held
    assert await programs.call(semaphore.try_acquire) is None
    await programs.call(holder.release)


async def test_a_bad_timeout_of_a_call_is_refused(programs: Programs) -> None:
    """A147"""
    with pytest.raises(OptionError, match="timeout"):
        await programs.call(programs.semaphore(limit=1).acquire, -1)


async def test_a_semaphore_needs_an_open_app(app: StreamQ) -> None:
    """It may be made before, for example beside the tasks."""
    semaphore = app.semaphore("report", limit=1)
    with pytest.raises(UsageError, match="not open"):
        await semaphore.acquire()
    async with app, semaphore as permit:
        assert permit.held
    client = app.new_client()
    await client.aclose()
    with pytest.raises(UsageError, match="closed"):
        await client.semaphore("report", limit=1).acquire()
    with app.sync() as sync:
        closed = sync.semaphore("report", limit=1)
    with pytest.raises(UsageError, match="closed"):
        closed.acquire()


async def test_what_they_are_can_be_read(programs: Programs, redis: Any, key: bytes) -> None:
    semaphore = programs.semaphore(limit=2)
    kind = "" if programs.sync is None else "Sync"
    assert repr(semaphore) == f"<{kind}Semaphore 'report' limit=2>"
    permit = await programs.call(semaphore.acquire)
    assert repr(permit) == f"<{kind}Permit of 'report' held>"
    await programs.call(permit.release)
    assert repr(permit) == f"<{kind}Permit of 'report' released>"


async def test_a_holder_that_never_renews_holds_no_longer_than_its_lease(app: StreamQ) -> None:
    """A146: whatever program that was."""
    async with app:
        key = app.client.keys.semaphore("report")
        assert await app.client.runner.run(acquire(key, "stale", 1, 50)) == 0
        async with app.semaphore("report", limit=1, timeout=20) as permit:
            assert permit.held
