"""The asyncio connection, on real servers: order, failures, time limits, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from streamq.broker.address import Address
from streamq.broker.command import pack
from streamq.broker.dial import Timeouts
from streamq.broker.transport import AsyncConnection
from streamq.errors import (
    AddressError,
    AuthenticationFailed,
    OptionError,
    ServerRefused,
    ServerTimeout,
    Unavailable,
)
from tests.certificates import Certificates, issue
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import HOST, Server, free_port

PING = pack((b"PING",))


def echo(word: bytes) -> bytes:
    return pack((b"ECHO", word))


@asynccontextmanager
async def connected(url: str, timeouts: Timeouts | None = None) -> AsyncIterator[AsyncConnection]:
    connection = await AsyncConnection.open(Address.parse(url), timeouts)
    try:
        yield connection
    finally:
        connection.close()
        await connection.wait_closed()


async def test_each_build_answers_over_tcp(any_server: Server) -> None:
    async with connected(any_server.url) as connection:
        assert await connection.send(PING) == b"PONG"


async def test_a_unix_socket_works_with_database_and_client_name(server: Server) -> None:
    """A136: a socket address with a database."""
    async with connected(f"{server.unix_url}?db=3&client_name=shop") as connection:
        info = await connection.send(pack((b"CLIENT", b"LIST")))
        own = next(line for line in info.splitlines() if b"name=shop" in line)
        assert b" db=3 " in own


async def test_replies_come_back_in_the_order_of_the_requests(url: str) -> None:
    async with connected(url) as connection:
        words = [b"%d" % number for number in range(1000)]
        futures = [connection.send(echo(word)) for word in words]
        assert connection.in_flight == 1000
        assert [await future for future in futures] == words
        assert connection.in_flight == 0


async def test_a_reply_larger_than_any_buffer_arrives_whole(url: str) -> None:
    async with connected(url) as connection:
        word = bytes(range(256)) * 40_000
        assert await connection.send(echo(word)) == word


async def test_requests_larger_than_the_sockets_buffer_lose_nothing(url: str) -> None:
    """The transport asks to pause; what was given to it must go out all the same."""
    async with connected(url) as connection:
        words = [b"%06d" % number * 20_000 for number in range(200)]  # 24 MB
        assert await asyncio.gather(*[connection.send(echo(word)) for word in words]) == words


async def test_an_error_reply_is_raised_and_the_connection_goes_on(url: str) -> None:
    async with connected(url) as connection:
        with pytest.raises(ServerRefused, match="wrong number"):
            await connection.send(pack((b"ECHO",)))
        assert await connection.send(PING) == b"PONG"


async def test_several_commands_in_one_write_get_a_list_with_errors_as_items(url: str) -> None:
    async with connected(url) as connection:
        first, second, third = await connection.send_many(PING + pack((b"ECHO",)) + echo(b"x"), 3)
        assert (first, third) == (b"PONG", b"x")
        assert isinstance(second, ServerRefused)


async def test_a_request_without_replies_is_a_mistake(url: str) -> None:
    async with connected(url) as connection:
        with pytest.raises(ValueError, match="at least one"):
            connection.send_many(b"", 0)


async def test_a_cancelled_waiter_takes_its_reply_with_it(url: str) -> None:
    async with connected(url) as connection:
        futures = [connection.send(echo(b"a")), connection.send(echo(b"b")), connection.send(echo(b"c"))]
        futures[1].cancel()
        gathered = connection.send_many(PING + PING, 2)
        gathered.cancel()
        last = connection.send(echo(b"d"))
        assert [await futures[0], await futures[2], await last] == [b"a", b"c", b"d"]


async def test_a_lost_connection_fails_all_that_is_in_flight(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    async with connected(proxy.url) as connection:
        proxy.silence()
        futures: list[asyncio.Future[object]] = [connection.send(PING), connection.send_many(PING + PING, 2)]  # type: ignore[list-item]
        proxy.cut()
        for future in futures:
            with pytest.raises(Unavailable, match="lost"):
                await future
        assert connection.closed
        await connection.gone
        with pytest.raises(Unavailable, match="closed"):
            connection.send(PING)


async def test_a_silent_server_is_given_up_after_the_time_limit(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    async with connected(proxy.url, Timeouts(reply_s=0.2)) as connection:
        assert await connection.send(PING) == b"PONG"
        proxy.silence()
        futures = [connection.send(PING) for _ in range(3)]
        for future in futures:
            with pytest.raises(ServerTimeout, match="time limit"):
                await future
        assert connection.closed


async def test_a_blocking_read_brings_its_own_limit(server: Server) -> None:
    async with connected(server.url, Timeouts(reply_s=0.1)) as connection:
        waiting = connection.send(pack((b"BLPOP", b"none", b"0.4")), limit_s=30)
        behind = connection.send(PING)
        assert await waiting is None
        assert await behind == b"PONG"
        with pytest.raises(ServerTimeout):
            await connection.send(pack((b"BLPOP", b"none", b"60")))


async def test_a_blocked_loop_does_not_make_an_answered_request_time_out(server: Server) -> None:
    async with connected(server.url, Timeouts(reply_s=0.05)) as connection:
        future = connection.send(PING)
        await asyncio.sleep(0)
        server.client().blpop(["none"], timeout=0.2)  # blocks this loop past the limit; the reply waits
        assert await future == b"PONG"


async def test_garbage_ends_the_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK\r\n" * 2)  # to the two CLIENT SETINFO of the handshake
        await reader.readuntil(b"PING\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with connected(f"redis://{HOST}:{port}") as connection:
            with pytest.raises(Unavailable, match="not the Redis protocol"):
                await connection.send(PING)


async def test_closing_fails_what_is_in_flight_and_may_be_done_twice(url: str) -> None:
    async with connected(url) as connection:
        future = connection.send(pack((b"BLPOP", b"none", b"60")), limit_s=61)
        connection.close()
        connection.close()
        with pytest.raises(Unavailable, match="closed by this program"):
            await future
        await connection.wait_closed()
        await connection.wait_closed()


# Connecting


async def test_nothing_listening_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="is the server running"):
        await AsyncConnection.open(Address.parse(f"redis://{HOST}:{free_port()}"))


async def test_a_missing_socket_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await AsyncConnection.open(Address.parse(f"unix://{tmp_path}/none.sock"))


async def test_a_host_without_a_name_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await AsyncConnection.open(Address.parse("redis://no-such-host.invalid"))


@pytest.mark.parametrize("login", ["", "password=wrong", "username=nobody password=wrong"])
@pytest.mark.parametrize("way", ["tcp", "unix"])
async def test_a_wrong_login_is_refused_without_showing_it(
    private_server: PrivateServer, login: str, way: str
) -> None:
    server = private_server(password="right")
    options = dict(pair.split("=") for pair in login.split())
    bare = f"redis://{HOST}:{server.port}/1" if way == "tcp" else f"unix://{server.socket_path}?db=1"
    with pytest.raises(AuthenticationFailed) as refused:
        await AsyncConnection.open(Address.parse(bare, **options))
    assert "wrong" not in str(refused.value)


async def test_a_database_that_is_not_there_is_refused(server: Server) -> None:
    with pytest.raises(ServerRefused, match="out of range"):
        await AsyncConnection.open(Address.parse(f"redis://{HOST}:{server.port}/99"))


async def test_a_server_that_accepts_and_says_nothing_is_given_up(
    server: Server, proxy_for: ProxyFor
) -> None:
    proxy = await proxy_for(server)
    proxy.silence()
    with pytest.raises(ServerTimeout):
        await AsyncConnection.open(Address.parse(proxy.url), Timeouts(connect_s=0.2))


async def test_a_cancelled_attempt_leaves_no_connection_open(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    proxy.silence()
    attempt = asyncio.create_task(AsyncConnection.open(Address.parse(proxy.url)))
    async with asyncio.timeout(5):
        while not proxy.connections:
            await asyncio.sleep(0.005)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    proxy.resume()
    async with asyncio.timeout(5):
        while proxy.connections:
            await asyncio.sleep(0.005)
    gc.collect()  # an unclosed transport would warn now


def test_a_senseless_time_limit_is_refused() -> None:
    with pytest.raises(OptionError, match="connect_s"):
        Timeouts(connect_s=0)
    with pytest.raises(OptionError, match="reply_s"):
        Timeouts(reply_s=float("inf"))


# TLS


async def test_tls_works_with_a_verified_server(tls_server: Server) -> None:
    async with connected(tls_server.url) as connection:
        words = [b"%d" % number for number in range(100)] + [b"x" * 1_000_000]
        assert await asyncio.gather(*[connection.send(echo(word)) for word in words]) == words


async def test_a_certificate_of_an_unknown_authority_is_refused(tls_server: Server) -> None:
    with pytest.raises(Unavailable, match=r"certificate is not trusted.*ssl_ca_certs"):
        await AsyncConnection.open(Address.parse(f"rediss://{HOST}:{tls_server.port}"))


async def test_a_certificate_for_another_name_is_refused(
    private_server: PrivateServer, tmp_path: Path
) -> None:
    wrong = issue(tmp_path, "elsewhere.example")
    server = private_server(tls=wrong)
    with pytest.raises(Unavailable, match="certificate is not trusted"):
        await AsyncConnection.open(Address.parse(server.url))


async def test_plain_text_spoken_to_a_tls_server_fails_at_once(tls_server: Server) -> None:
    with pytest.raises(Unavailable):
        await AsyncConnection.open(Address.parse(f"redis://:pw@{HOST}:{tls_server.port}"))


async def test_tls_spoken_to_a_plain_server_is_given_up(server: Server) -> None:
    """Redis waits for the end of what it takes for a command."""
    with pytest.raises(Unavailable):
        await AsyncConnection.open(Address.parse(f"rediss://{HOST}:{server.port}"), Timeouts(connect_s=0.3))


async def test_a_missing_ca_file_is_named(certificates: Certificates) -> None:
    address = Address.parse("rediss://h", ssl_ca_certs=certificates.ca.parent / "none.pem")
    with pytest.raises(AddressError, match=r"ssl_ca_certs.*none\.pem"):
        await AsyncConnection.open(address)


async def test_a_ca_may_be_given_as_text(tls_server: Server, certificates: Certificates) -> None:
    address = Address.parse(f"rediss://{HOST}:{tls_server.port}", ssl_ca_data=certificates.ca.read_text())
    connection = await AsyncConnection.open(address)
    assert await connection.send(PING) == b"PONG"
    connection.close()
    await connection.wait_closed()


# uvloop


def test_everything_works_on_uvloop_too(server: Server, tls_server: Server) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def speak(url: str) -> None:
        async with connected(url, Timeouts(reply_s=0.2)) as connection:
            words = [b"%06d" % number * 2_000 for number in range(200)]
            assert await asyncio.gather(*[connection.send(echo(word)) for word in words]) == words
            server.client().blpop(["none"], timeout=0.4)
            with pytest.raises(ServerTimeout):
                await connection.send(pack((b"BLPOP", b"none", b"60")))

    for url in (server.url, server.unix_url, tls_server.url):
        uvloop.run(speak(url))
    gc.collect()
