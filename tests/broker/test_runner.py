"""The asyncio runner on real servers: when it connects, what it repeats, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator

import pytest

from streamq.broker.address import Address
from streamq.broker.command import Command
from streamq.broker.dial import Timeouts
from streamq.broker.runner import AsyncRunner
from streamq.broker.scripts import Script
from streamq.errors import (
    MessageError,
    OutOfMemory,
    PermissionDenied,
    ReadOnly,
    ServerLoading,
    ServerRefused,
    ServerTimeout,
    Unavailable,
)
from tests.builds import BUILDS, Build
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import HOST, Server, free_port


def native(*words: bytes) -> Command[object]:
    return Command(None, (), words, lambda reply: reply)


def scripted(source: bytes, *args: bytes, keys: tuple[bytes, ...] = (b"k",)) -> Command[object]:
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Command(Script("test", source, sha), keys, args, lambda reply: reply)


PING = native(b"PING")


@pytest.fixture
async def runner(url: str) -> AsyncIterator[AsyncRunner]:
    runner = AsyncRunner(Address.parse(url))
    yield runner
    await runner.aclose()


async def opened(url: str, timeouts: Timeouts | None = None) -> AsyncRunner:
    runner = AsyncRunner(Address.parse(url), timeouts=timeouts)
    await runner.connect()
    return runner


async def test_it_connects_when_first_needed_and_once_for_all_who_wait(
    server: Server, proxy_for: ProxyFor
) -> None:
    proxy = await proxy_for(server)
    calls: list[int] = []
    runner = AsyncRunner(Address.parse(proxy.url), on_connect=lambda: calls.append(1))
    assert (proxy.connections, runner.connected) == (0, False)
    replies = await asyncio.gather(*[runner.run(native(b"ECHO", b"%d" % n)) for n in range(50)])
    assert replies == [b"%d" % n for n in range(50)]
    assert (proxy.connections, runner.connections_made, len(calls), runner.connected) == (1, 1, 1, True)
    await runner.aclose()


async def test_the_parser_reads_the_reply_and_its_error_is_the_callers(runner: AsyncRunner) -> None:
    def refuse(_: object) -> object:
        raise MessageError("not a message")

    assert await runner.run(Command(None, (), (b"ECHO", b"5"), int)) == 5
    with pytest.raises(MessageError):
        await runner.run(Command(None, (), (b"PING",), refuse))
    assert await runner.run(PING) == b"PONG"


async def test_a_posted_command_is_sent_before_post_returns(server: Server) -> None:
    runner = await opened(server.url)
    future = runner.post(native(b"SET", b"posted", b"1"))
    deadline = asyncio.get_running_loop().time() + 5
    while server.client().get("posted") is None:  # this loop does not run meanwhile
        assert asyncio.get_running_loop().time() < deadline
    assert await future == b"OK"
    await runner.aclose()


async def test_an_unknown_script_is_loaded_and_called_once_more(private_server: PrivateServer) -> None:
    server = private_server()
    runner = await opened(server.url)
    command = scripted(b"return redis.call('INCR', KEYS[1])")
    for expected in (1, 2):
        server.client().script_flush()
        assert await runner.run(command) == expected
    before = server.commandstats()
    assert await runner.run(command) == 3
    assert (server.commandstats() - before)["script|load"] == 0
    await runner.aclose()


async def test_in_a_pipeline_only_the_unknown_scripts_are_called_again(private_server: PrivateServer) -> None:
    server = private_server()
    runner = await opened(server.url)
    known = scripted(b"return redis.call('INCR', KEYS[1])", keys=(b"known",))
    unknown = scripted(b"return redis.call('INCRBY', KEYS[1], ARGV[1])", b"10", keys=(b"unknown",))
    await runner.run(known)
    results = await runner.run_all([known, unknown, native(b"GET"), known, unknown])
    assert results[:2] + results[3:] == [2, 10, 3, 20]
    assert isinstance(results[2], ServerRefused)
    assert await runner.run_all([]) == []
    await runner.aclose()


@pytest.mark.parametrize("build", BUILDS, ids=repr)
async def test_a_right_that_a_script_lacks_is_a_permission_error(
    private_server: PrivateServer, build: Build
) -> None:
    server = private_server(build)
    rights = ["+@all", "-xadd"]
    server.client().acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["a"], commands=rights)
    runner = await opened(f"redis://limited:pw@{HOST}:{server.port}")
    for source in (b"return redis.call('XADD', 'a', '*', 'f', 'v')", b"return redis.call('GET', 'b')"):
        with pytest.raises(PermissionDenied):
            await runner.run(scripted(source, keys=()))
    await runner.aclose()


async def test_a_script_that_may_not_be_loaded_is_a_permission_error(private_server: PrivateServer) -> None:
    server = private_server()
    rights = ["+@all", "-script"]
    server.client().acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=rights)
    runner = await opened(f"redis://limited:pw@{HOST}:{server.port}")
    command = scripted(b"return 'never loaded'")
    with pytest.raises(PermissionDenied):
        await runner.run(command)
    [item] = await runner.run_all([command])
    assert isinstance(item, PermissionDenied)
    await runner.aclose()


async def test_without_the_right_to_read_info_the_server_is_unknown(private_server: PrivateServer) -> None:
    server = private_server()
    server.client().acl_setuser("blind", enabled=True, passwords=["+pw"], keys=["*"], commands=["+ping"])
    runner = await opened(f"redis://blind:pw@{HOST}:{server.port}")
    assert runner.capabilities.product == "unknown"
    assert await runner.run(PING) == b"PONG"
    await runner.aclose()


async def test_each_build_is_recognised(any_server: Server) -> None:
    runner = await opened(any_server.url)
    name = any_server.build.name.removeprefix(any_server.build.product)
    assert runner.capabilities.product == any_server.build.product
    assert ".".join(map(str, runner.capabilities.version)).startswith(name)
    await runner.aclose()


@pytest.mark.parametrize("build", BUILDS, ids=repr)
async def test_a_full_server_is_a_typed_error_from_scripts_too(
    private_server: PrivateServer, build: Build
) -> None:
    server = private_server(build, maxmemory="1")
    runner = await opened(server.url)
    for command in (native(b"SET", b"k", b"v"), scripted(b"return redis.call('SET', KEYS[1], 'v')")):
        with pytest.raises(OutOfMemory, match="raise maxmemory"):
            await runner.run(command)
    await runner.aclose()


async def test_refusals_inside_scripts_are_typed_on_each_build(any_server: Server) -> None:
    runner = await opened(any_server.url)
    source = b"redis.call('SET', KEYS[1], 'v') return redis.call('XADD', KEYS[1], '*', 'a', 'b')"
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await runner.run(scripted(source, keys=(b"refusals",)))
    any_server.client().delete("refusals")
    await runner.aclose()


@pytest.mark.parametrize("build", BUILDS, ids=repr)
async def test_a_replica_refuses_writes_as_read_only(private_server: PrivateServer, build: Build) -> None:
    server = private_server(build)
    server.client().replicaof(HOST, free_port())
    runner = await opened(server.url)
    for command in (native(b"SET", b"k", b"v"), scripted(b"return redis.call('SET', KEYS[1], 'v')")):
        with pytest.raises(ReadOnly):
            await runner.run(command)
    await runner.aclose()


async def test_a_server_that_is_loading_says_so(private_server: PrivateServer) -> None:
    server = private_server(aof=True, extra=("--key-load-delay", "200"))  # microseconds a key
    with server.client().pipeline(transaction=False) as pipeline:
        for number in range(20_000):
            pipeline.set(f"k{number}", b"v")
        pipeline.execute()
    server.stop()
    server.start(wait=False)
    runner = AsyncRunner(Address.parse(server.url))
    async with asyncio.timeout(20):
        while not runner.connected:  # it does not listen yet
            with contextlib.suppress(Unavailable):
                await runner.connect()
    with pytest.raises(ServerLoading, match="try again shortly"):
        await runner.run(native(b"GET", b"k1"))
    await runner.aclose()


async def test_a_server_with_too_many_clients_is_unavailable(private_server: PrivateServer) -> None:
    server = private_server(extra=("--maxclients", "1"))
    first, second = AsyncRunner(Address.parse(server.url)), AsyncRunner(Address.parse(server.url))
    await first.connect()
    with pytest.raises(Unavailable):
        await second.connect()
    await first.aclose()
    await second.aclose()


# Outages


async def test_after_a_loss_the_next_use_connects_again(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    runner = await opened(proxy.url)
    in_flight = runner.post(native(b"BLPOP", b"none", b"0"))
    proxy.cut()
    with pytest.raises(Unavailable):
        await in_flight
    assert not runner.connected
    assert await runner.run(PING) == b"PONG"
    assert runner.connections_made == 2
    await runner.aclose()


async def test_a_request_whose_reply_was_lost_is_not_repeated(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    runner = await opened(proxy.url)
    lost = proxy.lose_next_reply(b"only-once")
    with pytest.raises(Unavailable):
        await runner.run(native(b"RPUSH", b"only-once", b"x"))
    assert lost.is_set()
    assert await runner.run(native(b"LLEN", b"only-once")) == 1
    server.client().delete("only-once")
    await runner.aclose()


async def test_while_redis_is_down_each_request_gets_an_error_of_its_own(
    private_server: PrivateServer,
) -> None:
    server = private_server()
    runner = await opened(server.url)
    server.kill()
    async with asyncio.timeout(5):
        while runner.connected:
            await asyncio.sleep(0.005)
    errors = await asyncio.gather(*[runner.run(PING) for _ in range(5)], return_exceptions=True)
    assert {type(error) for error in errors} == {Unavailable}
    assert len({id(error) for error in errors}) == 5
    with pytest.raises(Unavailable):
        await runner.run_all([PING])
    server.start()
    assert await runner.run(PING) == b"PONG"
    assert runner.connections_made == 2
    await runner.aclose()


async def test_a_server_that_hangs_while_connecting_is_given_up(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    proxy.silence()
    runner = AsyncRunner(Address.parse(proxy.url), timeouts=Timeouts(connect_s=0.2))
    with pytest.raises(ServerTimeout):
        await runner.run(PING)
    await runner.aclose()


async def test_a_cancelled_caller_does_not_cancel_the_attempt_of_the_others(
    server: Server, proxy_for: ProxyFor
) -> None:
    proxy = await proxy_for(server)
    proxy.silence()
    runner = AsyncRunner(Address.parse(proxy.url))
    first, second = asyncio.create_task(runner.run(PING)), asyncio.create_task(runner.run(PING))
    await asyncio.sleep(0)
    first.cancel()
    proxy.resume()
    assert await second == b"PONG"
    with pytest.raises(asyncio.CancelledError):
        await first
    await runner.aclose()


# Closing


async def test_closing_ends_an_attempt_and_those_who_wait_for_it(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    proxy.silence()
    runner = AsyncRunner(Address.parse(proxy.url))
    waiters = [asyncio.create_task(runner.run(PING)), asyncio.create_task(runner.run_all([PING]))]
    await asyncio.sleep(0)
    await runner.aclose()
    for waiter in waiters:
        with pytest.raises(Unavailable, match="closed by this program"):
            await waiter
    assert [task for task in asyncio.all_tasks() if task.get_name() == "streamq-connect"] == []


async def test_a_closed_runner_stays_closed_and_closes_twice(runner: AsyncRunner) -> None:
    await runner.run(PING)
    await runner.aclose()
    await runner.aclose()
    with pytest.raises(Unavailable, match="closed by this program"):
        await runner.run(PING)
    with pytest.raises(Unavailable, match="closed by this program"):
        await runner.connect()


async def test_a_runner_closed_before_its_first_use_opens_nothing(runner: AsyncRunner) -> None:
    await runner.aclose()
    with pytest.raises(Unavailable):
        await runner.run(PING)
    assert runner.connections_made == 0


# Other loops, other processes


async def test_a_second_event_loop_gets_a_connection_of_its_own(runner: AsyncRunner) -> None:
    async def use() -> None:
        assert await runner.run(PING) == b"PONG"
        connection = await runner.connect()
        connection.close()
        await connection.wait_closed()

    own = await runner.connect()
    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    while thread.is_alive():
        assert await runner.run(PING) == b"PONG"
    assert runner.connections_made == 2
    assert await runner.connect() is own


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the test runner may have threads
def test_a_forked_child_connects_anew_and_leaves_the_parents_connection_alone(url: str) -> None:
    async def child(runner: AsyncRunner) -> int:
        reply = await runner.run(native(b"ECHO", b"child"))
        await runner.aclose()
        return 0 if reply == b"child" else 1

    def fork(runner: AsyncRunner) -> int:
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                asyncio.events._set_running_loop(None)
                status = asyncio.run(child(runner))
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def main() -> None:
        runner = AsyncRunner(Address.parse(url))
        assert await runner.run(native(b"ECHO", b"parent")) == b"parent"
        assert fork(runner) == 0
        assert await runner.run(native(b"ECHO", b"parent again")) == b"parent again"
        assert runner.connections_made == 1
        await runner.aclose()

    asyncio.run(main())
