"""The blocking runner and its connection, on real servers: the same Commands, the same errors."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamq.broker.address import Address
from streamq.broker.command import Command, pack
from streamq.broker.dial import Timeouts
from streamq.broker.sync_runner import SyncRunner
from streamq.broker.sync_transport import SyncConnection
from streamq.errors import (
    AddressError,
    AuthenticationFailed,
    OutOfMemory,
    PermissionDenied,
    ServerRefused,
    ServerTimeout,
    Unavailable,
)
from tests.broker.test_runner import PING, native, scripted
from tests.conftest import PrivateServer
from tests.servers import HOST, Server, free_port


@pytest.fixture
def runner(url: str) -> Iterator[SyncRunner]:
    runner = SyncRunner(Address.parse(url))
    yield runner
    runner.close()


def test_each_build_answers_and_is_recognised(any_server: Server) -> None:
    for url in (any_server.url, any_server.unix_url):
        runner = SyncRunner(Address.parse(url))
        assert runner.run(PING) == b"PONG"
        assert runner.capabilities.product == any_server.build.product
        runner.close()


def test_it_connects_when_first_needed(url: str) -> None:
    calls: list[int] = []
    runner = SyncRunner(Address.parse(url), on_connect=lambda: calls.append(1))
    assert (runner.connected, runner.connections_made) == (False, 0)
    assert runner.run(PING) == b"PONG"
    assert runner.run(PING) == b"PONG"
    assert (runner.connected, runner.connections_made, calls) == (True, 1, [1])
    runner.close()


def test_a_large_request_and_reply_arrive_whole(runner: SyncRunner) -> None:
    word = bytes(range(256)) * 40_000
    assert runner.run(native(b"ECHO", word)) == word


def test_an_error_reply_is_raised_and_the_connection_goes_on(runner: SyncRunner) -> None:
    with pytest.raises(ServerRefused, match="wrong number"):
        runner.run(native(b"ECHO"))
    assert runner.run(PING) == b"PONG"
    assert runner.connections_made == 1


def test_an_unknown_script_is_loaded_and_called_once_more(private_server: PrivateServer) -> None:
    server = private_server()
    runner = SyncRunner(Address.parse(server.url))
    command = scripted(b"return redis.call('INCR', KEYS[1])")
    assert runner.run(command) == 1
    server.client().script_flush()
    assert runner.run(command) == 2
    runner.close()


def test_in_a_pipeline_only_the_unknown_scripts_are_called_again(private_server: PrivateServer) -> None:
    server = private_server()
    runner = SyncRunner(Address.parse(server.url))
    known = scripted(b"return redis.call('INCR', KEYS[1])", keys=(b"known",))
    unknown = scripted(b"return redis.call('INCRBY', KEYS[1], ARGV[1])", b"10", keys=(b"unknown",))
    runner.run(known)
    results = runner.run_all([known, unknown, native(b"GET"), known, unknown])
    assert results[:2] + results[3:] == [2, 10, 3, 20]
    assert isinstance(results[2], ServerRefused)
    assert runner.run_all([]) == []
    runner.close()


def test_a_script_that_may_not_be_loaded_is_a_permission_error(private_server: PrivateServer) -> None:
    server = private_server()
    rights = ["+@all", "-script"]
    server.client().acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=rights)
    runner = SyncRunner(Address.parse(f"redis://limited:pw@{HOST}:{server.port}"))
    with pytest.raises(PermissionDenied):
        runner.run(scripted(b"return 'never loaded'"))
    runner.close()


def test_without_the_right_to_read_info_the_server_is_unknown(private_server: PrivateServer) -> None:
    server = private_server()
    server.client().acl_setuser("blind", enabled=True, passwords=["+pw"], keys=["*"], commands=["+ping"])
    runner = SyncRunner(Address.parse(f"redis://blind:pw@{HOST}:{server.port}"))
    assert runner.run(PING) == b"PONG"
    assert runner.capabilities.product == "unknown"
    runner.close()


def test_a_full_server_is_a_typed_error(private_server: PrivateServer) -> None:
    server = private_server(maxmemory="1")
    runner = SyncRunner(Address.parse(server.url))
    with pytest.raises(OutOfMemory):
        runner.run(native(b"SET", b"k", b"v"))
    runner.close()


# Failures


def test_nothing_listening_is_unavailable(tmp_path: Path) -> None:
    for url in (f"redis://{HOST}:{free_port()}", f"unix://{tmp_path}/none.sock"):
        with pytest.raises(Unavailable, match="is the server running"):
            SyncRunner(Address.parse(url)).run(PING)


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_a_wrong_login_is_refused_without_showing_it(private_server: PrivateServer, way: str) -> None:
    server = private_server(password="right")
    bare = f"redis://{HOST}:{server.port}" if way == "tcp" else f"unix://{server.socket_path}"
    for login in ({}, {"password": "wrong"}):
        with pytest.raises(AuthenticationFailed) as refused:
            SyncRunner(Address.parse(bare, **login)).run(PING)
        assert "wrong" not in str(refused.value)


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server((HOST, 0)) as listener:
        address = Address.parse(f"redis://:pw@{HOST}:{listener.getsockname()[1]}")
        with pytest.raises(ServerTimeout):
            SyncRunner(address, timeouts=Timeouts(connect_s=0.2)).run(PING)


def test_a_silent_server_is_given_up_after_the_time_limit_and_the_next_use_connects_again(
    private_server: PrivateServer,
) -> None:
    server = private_server()
    runner = SyncRunner(Address.parse(server.url), timeouts=Timeouts(reply_s=0.2))
    runner.run(PING)
    server.pause()
    with pytest.raises(ServerTimeout, match="time limit"):
        runner.run(PING)
    assert not runner.connected
    server.resume()
    assert runner.run(PING) == b"PONG"
    assert runner.connections_made == 2
    runner.close()


def test_a_blocking_read_brings_its_own_limit(server: Server) -> None:
    runner = SyncRunner(Address.parse(server.url), timeouts=Timeouts(reply_s=0.1))
    assert runner.run(native(b"BLPOP", b"none", b"0.3"), limit_s=5) is None
    with pytest.raises(ServerTimeout):
        runner.run(native(b"BLPOP", b"none", b"60"))
    runner.close()


def test_a_connection_that_the_server_closed_while_idle_is_replaced_before_use(
    private_server: PrivateServer,
) -> None:
    """Nothing was sent on it, so nothing is in doubt."""
    server = private_server()
    runner = SyncRunner(Address.parse(server.url))
    connection = runner.connect()
    connection._used = time.monotonic() - 60
    assert not connection.stale()
    server.restart()
    assert connection.stale()
    assert runner.run(PING) == b"PONG"
    assert runner.connections_made == 2
    runner.close()


def test_while_redis_is_down_requests_fail_and_after_it_they_work(private_server: PrivateServer) -> None:
    server = private_server()
    runner = SyncRunner(Address.parse(server.url))
    runner.run(PING)
    server.kill()
    for _ in range(2):
        with pytest.raises(Unavailable):
            runner.run(PING)
    server.start()
    assert runner.run(PING) == b"PONG"
    runner.close()


def test_an_interrupted_request_does_not_answer_the_next_one(server: Server) -> None:
    """Ctrl-C in the middle of a wait: the reply that is still to come must not be taken for another's."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    runner = SyncRunner(Address.parse(server.url))
    runner.run(PING)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            runner.run(native(b"BLPOP", b"none", b"3"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert runner.run(native(b"ECHO", b"mine")) == b"mine"
    runner.close()


def test_garbage_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    connection = SyncConnection(ours, Timeouts(), "test")
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(Unavailable, match="not the Redis protocol"):
        connection.call(pack((b"PING",)))
    assert connection.closed
    theirs.close()


def test_an_answer_too_many_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    connection = SyncConnection(ours, Timeouts(), "test")
    theirs.sendall(b"+PONG\r\n+PONG\r\n")
    with pytest.raises(Unavailable, match="nobody asked"):
        connection.call(pack((b"PING",)))
    theirs.close()


# Sharing and closing


def test_threads_may_share_a_runner(runner: SyncRunner) -> None:
    wrong: list[object] = []

    def use(mark: int) -> None:
        for number in range(200):
            word = b"%d-%d" % (mark, number)
            if runner.run(native(b"ECHO", word)) != word:
                wrong.append(word)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert runner.connections_made == 1


def test_closing_from_another_thread_breaks_a_wait_off(runner: SyncRunner) -> None:
    threading.Timer(0.1, runner.close).start()
    with pytest.raises(Unavailable):
        runner.run(native(b"BLPOP", b"none", b"60"), limit_s=61)


def test_a_closed_runner_stays_closed_and_closes_twice(runner: SyncRunner) -> None:
    runner.run(PING)
    runner.close()
    runner.close()
    with pytest.raises(Unavailable, match="closed by this program"):
        runner.run(PING)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the test runner may have threads
def test_a_forked_child_connects_anew_and_leaves_the_parents_connection_alone(runner: SyncRunner) -> None:
    assert runner.run(native(b"ECHO", b"parent")) == b"parent"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if runner.run(native(b"ECHO", b"child")) == b"child" else 2
            runner.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert runner.run(native(b"ECHO", b"parent again")) == b"parent again"
    assert runner.connections_made == 1


# TLS


def test_tls_works_with_a_verified_server(tls_server: Server) -> None:
    runner = SyncRunner(Address.parse(tls_server.url))
    word = b"x" * 1_000_000
    assert runner.run(native(b"ECHO", word)) == word
    with pytest.raises(ServerTimeout):
        runner.run(native(b"BLPOP", b"none", b"60"), limit_s=0.1)
    runner.close()


def test_a_certificate_of_an_unknown_authority_is_refused(tls_server: Server) -> None:
    with pytest.raises(Unavailable, match=r"certificate is not trusted.*ssl_ca_certs"):
        SyncRunner(Address.parse(f"rediss://{HOST}:{tls_server.port}")).run(PING)


def test_a_missing_ca_file_is_named() -> None:
    with pytest.raises(AddressError, match=r"ssl_ca_certs.*none\.pem"):
        SyncRunner(Address.parse("rediss://h", ssl_ca_certs="/none.pem")).run(PING)


async def test_sync_and_async_commands_are_the_same_values(url: str) -> None:
    from streamq.broker.runner import AsyncRunner

    command: Command[int] = Command(None, (), (b"ECHO", b"5"), int)
    blocking, waiting = SyncRunner(Address.parse(url)), AsyncRunner(Address.parse(url))
    assert blocking.run(command) == await asyncio.ensure_future(waiting.run(command)) == 5
    blocking.close()
    await waiting.aclose()
