"""Replies that get lost, and a Redis that is away: exactly one task, or a typed error in bounded time."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streamq import Inspector, State, StreamQ, SyncClient
from streamq.errors import ServerTimeout, TaskIdConflict, Unavailable
from tests.client.conftest import call
from tests.conftest import PrivateServer, ProxyFor
from tests.proxy import Proxy
from tests.servers import HOST, Server, free_port
from tests.support import eventually

LATE_S = 5.0
"""Added to a time limit for a machine that is busy. Without the limit these tests take far longer."""


@pytest.fixture
async def proxy(server: Server, proxy_for: ProxyFor) -> Proxy:
    return await proxy_for(server)


async def test_a_lost_reply_gets_the_same_task_once(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    """B5: the batch is sent again under its sequence number; the script adds nothing twice."""
    async with StreamQ(proxy.url, namespace=namespace) as app:
        await app.enqueue("warm-up")
        lost = proxy.lose_next_reply(b"EVALSHA")
        handle = await app.enqueue("t", {"n": 1})
        assert lost.is_set()
        assert handle.created
        assert (await handle.info()).state is State.READY
        assert (await inspector.queue("default")).ready == 2


async def test_a_lost_reply_to_the_very_first_call_gets_the_same_task_once(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    """B5: the queue was new, and its name reaches the registry all the same."""
    async with StreamQ(proxy.url, namespace=namespace) as app:
        lost = proxy.lose_next_reply(b"EVALSHA")
        await app.enqueue("t")
        assert lost.is_set()
    assert await inspector.queues() == ["default"]
    assert (await inspector.queue("default")).ready == 1


async def test_lost_replies_to_batches_and_ids_of_ones_own_are_no_conflicts(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    """B5: a re-send is told from somebody else's task with the same id."""
    async with StreamQ(proxy.url, namespace=namespace) as app:
        await app.enqueue("warm-up")
        lost = proxy.lose_next_reply(b"EVALSHA")
        handle = await app.enqueue("t", task_id="mine")
        assert lost.is_set()
        assert (handle.id, handle.created) == ("mine", True)
        lost = proxy.lose_next_reply(b"EVALSHA")
        handles = await app.enqueue_many(call() for _ in range(600))
        assert lost.is_set()
        assert len({handle.id for handle in handles}) == 600
        with pytest.raises(TaskIdConflict):
            await app.enqueue("t", task_id="mine")
    assert (await inspector.queue("default")).ready == 602


async def test_a_blocking_client_gets_the_same_task_once(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    """B5"""

    def produce() -> list[str]:
        with StreamQ(proxy.url, namespace=namespace).sync() as client:
            client.enqueue("warm-up")
            proxy.lose_next_reply(b"EVALSHA")
            handle = client.enqueue("t", task_id="mine")
            proxy.lose_next_reply(b"EVALSHA")
            return [handle.id, *(task.id for task in client.enqueue_many(call() for _ in range(300)))]

    ids = await asyncio.to_thread(produce)
    assert ids[0] == "mine"
    assert len(set(ids)) == 301
    assert (await inspector.queue("default")).ready == 302


async def test_connections_cut_over_and_over_lose_and_double_nothing(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    """B5: twenty coroutines enqueue while every other reply gets lost."""
    async with StreamQ(proxy.url, namespace=namespace) as app:
        await app.enqueue("warm-up")
        answered = asyncio.Event()

        async def lose_replies() -> None:
            while True:
                await proxy.lose_next_reply(b"EVALSHA").wait()
                answered.clear()
                await answered.wait()

        async def produce() -> None:
            for _ in range(5):
                await app.enqueue("t")
                answered.set()

        losing = asyncio.create_task(lose_replies())
        await asyncio.gather(*(produce() for _ in range(20)))
        losing.cancel()
        assert proxy.accepted >= 4
        assert (await inspector.queue("default")).ready == 101


async def test_a_redis_that_comes_back_in_time_is_waited_for(private_server: PrivateServer) -> None:
    server = private_server(aof=True, fsync="always")
    async with StreamQ(server.url) as app:
        await app.enqueue("t")
        server.stop()
        waiting = [asyncio.create_task(app.enqueue("t")) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(server.start)
        assert {(await task).created for task in waiting} == {True}
        async with app.inspector() as inspector:
            assert (await inspector.queue("default")).ready == 21


async def bounded(limit_s: float, call: Any) -> Unavailable:
    """The error of the call, which must come in time."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await call
    assert time.monotonic() - began < limit_s + LATE_S
    return caught.value


async def blocking(app: StreamQ) -> None:
    def enqueue() -> None:
        with app.sync() as client:
            client.enqueue("t")

    await asyncio.to_thread(enqueue)


async def test_nobody_listening_is_an_error_in_bounded_time() -> None:
    app = StreamQ(f"redis://{HOST}:{free_port()}", enqueue_timeout=0.3)
    async with app:
        error = await bounded(0.3, app.enqueue("t"))
    assert "is the server running?" in str(error)
    assert "is the server running?" in str(await bounded(0.3, blocking(app)))


async def test_a_server_that_never_answers_is_an_error_in_bounded_time() -> None:
    """It takes the connection and says nothing: the attempt is cut short by the enqueue's own limit."""
    with socket.create_server((HOST, 0)) as deaf:
        app = StreamQ(f"redis://{HOST}:{deaf.getsockname()[1]}", enqueue_timeout=0.3)
        began = time.monotonic()
        async with app:
            assert isinstance(await bounded(0.3, app.enqueue("t")), ServerTimeout)
            assert isinstance(await bounded(0.3, blocking(app)), ServerTimeout)
        assert time.monotonic() - began < 4.5, "each would be 5 s by the limits of the connection alone"


async def test_a_frozen_server_is_an_error_in_bounded_time_and_then_forgiven(
    private_server: PrivateServer,
) -> None:
    """What the frozen server finds in its sockets when it thaws is old, and known by its sequence."""
    server = private_server()
    async with StreamQ(server.url, enqueue_timeout=0.3) as app:
        with app.sync() as client:
            await app.enqueue("t")
            client.enqueue("t")
            server.pause()
            assert isinstance(await bounded(0.3, app.enqueue("late")), ServerTimeout)
            with pytest.raises(ServerTimeout):
                client.enqueue("late")
            server.resume()
            assert (await app.enqueue("t")).created
            assert client.enqueue("t").created
        async with app.inspector() as inspector:
            assert 4 <= (await inspector.queue("default")).ready <= 6, "a late one may be there, but once"


async def test_thousands_of_waiting_coroutines_all_hear_of_an_outage_in_the_time_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with StreamQ(f"redis://{HOST}:{free_port()}", enqueue_timeout=0.5) as app:
        tried: set[int] = set()
        run = app.client.runner.run

        async def counted(command: Any, **limits: Any) -> Any:
            tried.add(command.args[1])  # its sequence number
            return await run(command, **limits)

        monkeypatch.setattr(app.client.runner, "run", counted)
        began = time.monotonic()
        calls = [app.enqueue("t") for _ in range(5000)]  # twenty calls of the script
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 5, "one after the other it would be 10 s"
    assert all(isinstance(error, Unavailable) for error in errors)
    assert len(tried) <= 12, "what waited its time out behind another call is not tried itself"
    assert len({id(error) for error in errors}) == 5000, "each caller raises an error of its own"


def test_threads_that_wait_for_their_turn_hear_of_an_outage_in_the_time_of_one() -> None:
    with (
        socket.create_server((HOST, 0)) as deaf,
        StreamQ(f"redis://{HOST}:{deaf.getsockname()[1]}", enqueue_timeout=0.4).sync() as client,
        ThreadPoolExecutor(15) as pool,
    ):

        def enqueue(_: int) -> None:
            with pytest.raises(Unavailable):
                client.enqueue("t")

        began = time.monotonic()
        list(pool.map(enqueue, range(15)))
        assert time.monotonic() - began < 4, "one after the other it would be 6 s"


async def test_after_an_outage_the_same_client_works_again(proxy: Proxy, namespace: str) -> None:
    async with StreamQ(proxy.url, namespace=namespace, enqueue_timeout=0.2) as app:
        await app.enqueue("t")
        await proxy.refuse()
        proxy.cut()
        await bounded(0.2, app.enqueue("t"))
        await proxy.accept()
        assert (await app.enqueue("t")).created


async def test_an_outage_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets the error; a log line for each attempt would only repeat it."""
    caplog.set_level(logging.INFO)
    async with StreamQ(f"redis://{HOST}:{free_port()}", enqueue_timeout=0.5) as app:
        await bounded(0.5, app.enqueue("t"))
    assert len(caplog.records) <= 2


async def test_a_failed_registration_is_no_error_of_the_enqueue(
    private_server: PrivateServer,
) -> None:
    """A user without rights to the registry enqueues all the same; workers register their queues."""
    server = private_server()
    admin = server.client()
    admin.acl_setuser("producer", enabled=True, passwords=["+x"], keys=["sq:{*"], commands=["+@all"])
    app = StreamQ(server.url.replace("redis://", "redis://producer:x@"))
    async with app:
        assert (await app.enqueue("t")).created
        assert (await app.enqueue("t")).created
    with app.sync() as client:
        assert isinstance(client, SyncClient)
        assert client.enqueue("t").created
    async with StreamQ(server.url).inspector() as inspector:
        await eventually(lambda: admin.hlen("sq:{default}:index") == 3, "all are stored")
        assert await inspector.queues() == []
