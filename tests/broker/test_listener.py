"""The listeners, on real servers: nothing missed while connected, told when something may have been."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Self

import pytest

from streamq.broker import listener as listener_module
from streamq.broker import push
from streamq.broker.address import Address
from streamq.broker.dial import Timeouts
from streamq.broker.listener import Listener
from streamq.broker.sync_listener import SyncListener
from streamq.errors import AddressError, AuthenticationFailed, PermissionDenied, Unavailable
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import HOST, Server, free_port

Heard = list[tuple[bytes, bytes]]


async def until(true: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)


class Ears:
    """A listener, what it heard, and how often it said that it stands."""

    def __init__(self, url: str, timeouts: Timeouts | None = None) -> None:
        self.heard: Heard = []
        self.connects = 0
        self.listener = Listener(Address.parse(url), self.hear, on_connect=self.connected, timeouts=timeouts)

    def hear(self, channel: bytes, payload: bytes) -> None:
        self.heard.append((channel, payload))

    def connected(self) -> None:
        self.connects += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.listener.aclose()


async def test_once_subscribe_returns_no_message_is_missed(any_server: Server, namespace: str) -> None:
    channel, other = f"{namespace}:a", f"{namespace}:b"
    async with Ears(any_server.url) as ears:
        await ears.listener.subscribe(channel.encode(), other.encode())
        for number in range(3):
            assert any_server.client().publish(channel, str(number)) == 1
        any_server.client().publish(other, b"\xff\x00")
        await until(lambda: len(ears.heard) == 4)
        assert ears.heard[:3] == [(channel.encode(), b"%d" % number) for number in range(3)]
        assert ears.heard[3] == (other.encode(), b"\xff\x00")
        assert ears.connects == 1


async def test_a_channel_no_longer_wanted_is_not_heard(server: Server, namespace: str) -> None:
    channel, other = f"{namespace}:a".encode(), f"{namespace}:b".encode()
    async with Ears(server.url) as ears:
        await ears.listener.subscribe(channel, other)
        ears.listener.unsubscribe(channel)
        server.client().publish(channel, b"1")
        server.client().publish(other, b"2")
        await until(lambda: ears.heard)
        assert ears.heard == [(other, b"2")]


async def test_wanted_again_right_after_it_is_heard_again(server: Server, namespace: str) -> None:
    """The confirmation of the first SUBSCRIBE is not taken for that of the second."""
    channel = f"{namespace}:a".encode()
    async with Ears(server.url) as ears:
        await ears.listener.subscribe(f"{namespace}:b".encode())
        first = asyncio.create_task(ears.listener.subscribe(channel))
        await asyncio.sleep(0)  # it has asked; this loop has read no answer yet
        ears.listener.unsubscribe(channel)
        await ears.listener.subscribe(channel)
        await first
        assert server.client().publish(channel, b"1") == 1
        await until(lambda: ears.heard)


async def test_many_may_wait_for_the_same_channel_and_one_may_give_up(
    server: Server, proxy_for: ProxyFor, namespace: str
) -> None:
    proxy = await proxy_for(server)
    channel = f"{namespace}:a".encode()
    async with Ears(proxy.url) as ears:
        proxy.silence()
        waiters = [asyncio.create_task(ears.listener.subscribe(channel)) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        proxy.resume()
        await asyncio.gather(*waiters[1:])
        assert waiters[0].cancelled()
        await ears.listener.subscribe(channel)


async def test_after_a_loss_it_subscribes_again_and_tells(
    server: Server, proxy_for: ProxyFor, namespace: str
) -> None:
    proxy = await proxy_for(server)
    channel, other = f"{namespace}:a".encode(), f"{namespace}:b".encode()
    async with Ears(proxy.url) as ears:
        await ears.listener.subscribe(channel, other)
        proxy.cut()
        await until(lambda: ears.connects == 2)
        server.client().publish(other, b"x")
        await until(lambda: ears.heard == [(other, b"x")])


async def test_subscribe_waits_through_an_outage(private_server: PrivateServer) -> None:
    """A124: Redis is down at the start, and comes later."""
    server = private_server()
    server.kill()
    async with Ears(server.url) as ears:
        subscribing = asyncio.create_task(ears.listener.subscribe(b"a"))
        await until(lambda: ears.listener._failures >= 3)
        server.start()
        await subscribing
        server.client().publish("a", b"1")
        await until(lambda: ears.heard)
        assert ears.connects == 1


async def test_an_outage_makes_one_line_when_it_begins_and_one_when_it_ends(
    private_server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamq")
    server = private_server()
    async with Ears(server.url) as ears:
        await ears.listener.subscribe(b"a")
        server.kill()
        await until(lambda: ears.listener._failures >= 4)
        server.start()
        await until(lambda: ears.connects == 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_attempts_grow_apart_up_to_a_bound_and_are_spread() -> None:
    waits = [[listener_module._wait_s(failures) for _ in range(50)] for failures in (1, 3, 7, 1000)]
    assert max(waits[0]) <= 0.1
    assert max(waits[0]) < min(waits[1])
    assert max(waits[1]) < min(waits[2])
    assert max(waits[3]) <= 5.0
    assert len(set(waits[0])) > 10


async def test_a_server_that_falls_silent_is_noticed(
    server: Server, proxy_for: ProxyFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open connection reports no end by itself."""
    monkeypatch.setattr(push, "PING_AFTER_S", 0.05)
    proxy = await proxy_for(server)
    async with Ears(proxy.url, Timeouts(reply_s=0.2)) as ears:
        await ears.listener.subscribe(b"silent")
        pings = server.commandstats()["ping"]
        await until(lambda: server.commandstats()["ping"] >= pings + 3)
        assert ears.connects == 1  # answered pings keep it
        proxy.silence()
        await until(lambda: ears.listener._connection is None)
        proxy.resume()
        await until(lambda: ears.connects == 2)


async def test_a_refused_channel_is_the_subscribers_error_and_others_stand(
    private_server: PrivateServer,
) -> None:
    server = private_server()
    server.client().acl_setuser(
        "limited", enabled=True, passwords=["+pw"], commands=["+@all"], channels=["mine"], reset_channels=True
    )
    async with Ears(f"redis://limited:pw@{HOST}:{server.port}") as ears:
        await ears.listener.subscribe(b"mine")
        for _ in range(2):
            with pytest.raises(PermissionDenied):
                await ears.listener.subscribe(b"theirs")
        server.client().publish("mine", b"1")
        await until(lambda: ears.heard)


async def test_a_wrong_password_is_the_subscribers_error(private_server: PrivateServer) -> None:
    server = private_server(password="right")
    async with Ears(f"redis://:wrong@{HOST}:{server.port}") as ears:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed):
                await ears.listener.subscribe(b"a")


async def test_a_senseless_address_is_the_subscribers_error() -> None:
    async with Ears("rediss://h?ssl_ca_certs=/none.pem") as ears:
        with pytest.raises(AddressError):
            await ears.listener.subscribe(b"a")


async def test_a_fault_in_the_callback_is_logged_and_ends_nothing(
    server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[bytes] = []

    def fail(_: bytes, payload: bytes) -> None:
        calls.append(payload)
        raise RuntimeError("oops")

    listener = Listener(Address.parse(server.url), fail)
    await listener.subscribe(namespace.encode())
    for number in range(2):
        server.client().publish(namespace, str(number))
    await until(lambda: len(calls) == 2)
    assert caplog.text.count("oops") >= 2
    await listener.aclose()


async def test_closing_ends_all_waits_and_may_be_done_twice() -> None:
    listener = Listener(Address.parse(f"redis://{HOST}:{free_port()}"), lambda channel, payload: None)
    subscribing = asyncio.create_task(listener.subscribe(b"a"))
    closed = asyncio.create_task(listener.wait_closed())
    await until(lambda: listener._failures)
    await listener.aclose()
    await listener.aclose()
    await closed
    with pytest.raises(Unavailable, match="closed by this program"):
        await subscribing
    with pytest.raises(Unavailable, match="closed by this program"):
        await listener.subscribe(b"a")
    assert [task for task in asyncio.all_tasks() if task.get_name() == "streamq-listener"] == []


async def test_one_that_never_subscribed_opened_nothing() -> None:
    await Listener(Address.parse("redis://no-such-host.invalid"), lambda channel, payload: None).aclose()


def test_a_second_event_loop_begins_anew(server: Server, namespace: str) -> None:
    channel = namespace.encode()

    async def use() -> None:
        await listener.subscribe(channel)
        server.client().publish(namespace, b"x")
        await until(lambda: heard)
        assert listener._task is not None
        listener._task.cancel()  # as asyncio.run does with what is left running
        await asyncio.wait([listener._task])

    heard: Heard = []
    listener = Listener(Address.parse(server.url), lambda *message: heard.append(message))
    for _ in range(2):
        heard.clear()
        asyncio.run(use())
    asyncio.run(listener.aclose())


def test_it_works_on_uvloop_too(server: Server, tls_server: Server, namespace: str) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def listen(server: Server) -> None:
        async with Ears(server.url) as ears:
            await ears.listener.subscribe(namespace.encode())
            server.client().publish(namespace, b"x")
            await until(lambda: ears.heard)

    uvloop.run(listen(server))
    uvloop.run(listen(tls_server))


# Blocking code


def test_a_blocking_wait_ends_with_a_message_or_with_its_time(server: Server, namespace: str) -> None:
    with SyncListener(Address.parse(server.url)) as listener:
        assert listener.subscribe(namespace.encode())
        assert not listener.wait(0.01)
        threading.Timer(0.05, lambda: server.client().publish(namespace, b"x")).start()
        assert listener.wait(10)
        assert not listener.wait(0.01)


def test_a_message_that_came_before_the_wait_is_not_missed(server: Server, namespace: str) -> None:
    with SyncListener(Address.parse(server.url)) as listener:
        listener.subscribe(namespace.encode())
        server.client().publish(namespace, b"x")
        listener.subscribe(f"{namespace}:b".encode())
        assert listener.wait(10)


def test_a_blocking_listener_comes_back_after_a_loss_and_says_look_now(private_server: PrivateServer) -> None:
    server = private_server()
    with SyncListener(Address.parse(server.url)) as listener:
        assert listener.subscribe(b"a")
        server.kill()
        assert listener.wait(10)  # something may have been missed: look
        started = time.monotonic()
        listener.wait(0.2)
        assert time.monotonic() - started < 5
        server.start()
        deadline = time.monotonic() + 10
        while listener._sock is None:
            listener.wait(0.5)
            assert time.monotonic() < deadline
        server.client().publish("a", b"x")
        assert listener.wait(10)


def test_a_blocking_listener_is_calm_while_redis_is_away() -> None:
    with SyncListener(Address.parse(f"redis://{HOST}:{free_port()}")) as listener:
        assert not listener.subscribe(b"a")
        looks, deadline = 0, time.monotonic() + 0.5
        while time.monotonic() < deadline:
            listener.wait(5)
            looks += 1
        assert looks <= 6


def test_a_blocking_listener_refused_by_the_server_waits_without_it(private_server: PrivateServer) -> None:
    server = private_server(password="right")
    with SyncListener(Address.parse(f"redis://:wrong@{HOST}:{server.port}")) as listener:
        assert not listener.subscribe(b"a")
        listener.wait(0.01)


def test_a_blocking_listener_works_over_tls(tls_server: Server, namespace: str) -> None:
    with SyncListener(Address.parse(tls_server.url)) as listener:
        assert listener.subscribe(namespace.encode())
        assert not listener.wait(0.01)
        tls_server.client().publish(namespace, b"x")
        assert listener.wait(10)
