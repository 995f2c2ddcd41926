"""The test servers and the proxy keep what they promise to the other tests."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server


def client_of(url: str, timeout_s: float = 5) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(
        url, protocol=2, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0), single_connection_client=True
    )


def test_each_build_answers_and_is_what_it_says(any_server: Server) -> None:
    info = any_server.client().info("server")
    assert isinstance(info, dict)
    version = str(info.get("valkey_version", info["redis_version"]))
    assert version.startswith(any_server.build.name.removeprefix(any_server.build.product))


def test_a_killed_server_comes_back_on_its_port_with_what_its_aof_kept(private_server: PrivateServer) -> None:
    server = private_server(aof=True, fsync="always")
    server.client().set("k", b"v")
    port = server.port
    server.restart(kill=True)
    assert server.client().get("k") == b"v"
    assert server.port == port


def test_a_paused_server_answers_after_resume(private_server: PrivateServer) -> None:
    server = private_server()
    server.pause()
    assert server.running
    server.resume()
    assert server.client().ping()


def test_options_reach_the_server(private_server: PrivateServer) -> None:
    server = private_server(password="p@ss/word", maxmemory="20mb", extra=("--maxclients", "33"))
    info = server.client().info()
    assert isinstance(info, dict)
    assert (info["maxmemory"], info["maxclients"]) == (20 * 1024 * 1024, 33)
    with redis.Redis.from_url(server.url, protocol=2) as client:
        assert client.ping()


def test_the_tls_server_speaks_tls_and_its_certificate_holds(tls_server: Server) -> None:
    with redis.Redis.from_url(tls_server.url, protocol=2) as client:
        assert client.ping()


def test_commandstats_count_calls(private_server: PrivateServer) -> None:
    server = private_server()
    before = server.commandstats()
    server.client().get("k")
    assert (server.commandstats() - before)["get"] == 1


async def test_the_proxy_loses_a_reply_after_the_server_has_acted(
    private_server: PrivateServer, proxy_for: ProxyFor
) -> None:
    server = private_server()
    proxy = await proxy_for(server)
    async with client_of(proxy.url) as client:
        await client.ping()
        lost = proxy.lose_next_reply(b"INCR")
        with pytest.raises(redis.ConnectionError):
            await client.incr("n")
        assert lost.is_set()
    assert server.client().get("n") == b"1"


async def test_the_proxy_cuts_refuses_and_accepts(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    async with client_of(proxy.url) as client:
        await client.ping()
        assert proxy.connections == 1
        await proxy.refuse()
        assert await client.ping()
        assert proxy.cut() == 1
        with pytest.raises(redis.ConnectionError):
            await client.ping()
    await proxy.accept()
    async with client_of(proxy.url) as client:
        assert await client.ping()
    assert proxy.accepted == 2


async def test_a_silent_proxy_holds_back_and_resumes(server: Server, proxy_for: ProxyFor) -> None:
    proxy = await proxy_for(server)
    async with client_of(proxy.url) as client:
        await client.ping()
        proxy.silence()
        late: asyncio.Future[bytes | str | None] = asyncio.ensure_future(client.get("k"))
        done, _ = await asyncio.wait([late], timeout=0.05)
        assert not done
        proxy.resume()
        assert await late is None
