"""What a server refuses reaches the producer as a typed error with a remedy, and without any secret."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest

from streamq import StreamQ, StreamQError, TaskCall
from streamq.errors import (
    AddressError,
    AuthenticationFailed,
    OutOfMemory,
    PermissionDenied,
    ReadOnly,
    ServerError,
    ServerLoading,
    Unavailable,
)
from tests.certificates import issue
from tests.conftest import PrivateServer
from tests.servers import HOST, Server, free_port
from tests.support import WITHIN_S, running

SECRET = "s3cret/p@ss:word"
QUOTED = "s3cret%2Fp%40ss%3Aword"


@pytest.fixture(params=["async", "sync"])
def refused(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Enqueue with either client and return the error."""

    async def enqueue(url: str, payload: str = "x", **settings: Any) -> StreamQError:
        app = StreamQ(url, **{"enqueue_timeout": 0.3, **settings})

        def blocking() -> None:
            with app.sync() as client:
                client.enqueue("t", {"payload": payload})

        async def produce() -> None:
            async with app:
                await app.enqueue("t", {"payload": payload})

        with pytest.raises(StreamQError) as caught:
            await (asyncio.to_thread(blocking) if request.param == "sync" else produce())
        return caught.value

    return enqueue


def with_user(server: Server, user: str) -> str:
    return f"redis://{user}@{HOST}:{server.port}/0"


async def test_a_wrong_password_fails_at_once(
    private_server: PrivateServer, refused: Callable[..., Any]
) -> None:
    server = private_server(password=SECRET)
    error = await refused(with_user(server, ":wr0ng"), enqueue_timeout=60)
    assert type(error) is AuthenticationFailed
    assert "password" in str(error)
    assert "wr0ng" not in everything_said(error)


async def test_a_missing_password_fails_at_once(
    private_server: PrivateServer, refused: Callable[..., Any]
) -> None:
    server = private_server(password=SECRET)
    error = await refused(f"redis://{HOST}:{server.port}/0", enqueue_timeout=60)
    assert type(error) is AuthenticationFailed
    assert "redis://user:password@host" in str(error)


async def test_a_right_password_is_let_in(private_server: PrivateServer) -> None:
    server = private_server(password=SECRET)
    for url in (with_user(server, f":{QUOTED}"), f"unix://:{QUOTED}@{server.socket_path}"):
        async with StreamQ(url) as app:
            assert (await app.enqueue("t")).created


async def test_a_full_server_refuses_at_once_and_stores_nothing(
    private_server: PrivateServer, refused: Callable[..., Any]
) -> None:
    server = private_server(maxmemory="1")
    assert type(await refused(server.url, enqueue_timeout=60)) is OutOfMemory
    assert server.client().exists("sq:{default}:normal", "sq:{default}:producers") == 0


async def test_a_replica_is_read_only(private_server: PrivateServer, refused: Callable[..., Any]) -> None:
    server = private_server(extra=("--replicaof", f"{HOST} {free_port()}"))
    error = await refused(server.url, enqueue_timeout=60)
    assert type(error) is ReadOnly
    assert "connect to the primary" in str(error)


@pytest.mark.parametrize(
    "rights",
    [
        {"keys": ["other:*"], "commands": ["+@all"]},
        {"keys": ["*"], "commands": ["+@all", "-evalsha"]},
        {"keys": ["*"], "commands": ["+@all", "-xadd"]},
    ],
    ids=["keys", "script", "command inside the script"],
)
async def test_a_user_without_the_rights_is_told_so_at_once(
    private_server: PrivateServer, refused: Callable[..., Any], rights: Any
) -> None:
    server = private_server()
    server.client().acl_setuser("weak", enabled=True, passwords=[f"+{SECRET}"], **rights)
    error = await refused(with_user(server, f"weak:{QUOTED}"), enqueue_timeout=60)
    assert type(error) is PermissionDenied
    assert SECRET not in everything_said(error)
    assert QUOTED not in everything_said(error)


@asynccontextmanager
async def loading_server(refusals: int) -> AsyncIterator[str]:
    """The address of a server that is loading for the first so many calls of a script.

    A real one loads for as long as it likes; that it is told as ServerLoading is shown by the runner's tests.
    """

    answers = {
        b"EVALSHA": b"*2\r\n$5\r\nknown\r\n$5\r\nready\r\n",
        b"INFO": b"$20\r\nredis_version:7.0.15\r\n",
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refusals
        requests = hiredis.Reader()
        while data := await reader.read(65536):
            requests.feed(data)
            while request := requests.gets():
                if request[0] == b"EVALSHA" and refusals > 0:
                    refusals -= 1
                    writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
                else:
                    writer.write(answers.get(request[0], b":1\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield f"redis://{HOST}:{server.sockets[0].getsockname()[1]}"


async def test_a_loading_server_is_named(refused: Callable[..., Any]) -> None:
    async with loading_server(refusals=1000) as url:
        error = await refused(url)
    assert type(error) is ServerLoading
    assert "try again shortly" in str(error)


async def test_a_loading_server_is_waited_for() -> None:
    async with loading_server(refusals=3) as url, StreamQ(url) as app:
        assert (await app.enqueue("t")).created


async def test_a_database_that_is_not_there_is_named(url: str, refused: Callable[..., Any]) -> None:
    error = await refused(url.replace("/0", "/9999"), enqueue_timeout=60)
    assert isinstance(error, ServerError)
    assert "smaller database number" in str(error)


async def test_a_socket_that_is_not_there_is_unavailable(
    short_tmp: Path, refused: Callable[..., Any]
) -> None:
    assert type(await refused(f"unix://{short_tmp}/none")) is Unavailable


async def test_work_goes_over_a_unix_socket(server: Server, namespace: str) -> None:
    app = StreamQ(server.unix_url, namespace=namespace)
    task = app.task(name="t", retention=60)(lambda: "done")
    async with app, running(app):
        assert await (await task.enqueue()).result(WITHIN_S) == "done"


# TLS


async def test_work_goes_over_tls(tls_server: Server, namespace: str) -> None:
    """Enqueue, run and result, with the certificate and the host name verified; also the blocking client."""
    assert tls_server.url.startswith("rediss://")
    app = StreamQ(tls_server.url, namespace=namespace)

    @app.task(name="double", retention=60)
    async def double(n: int) -> int:
        return 2 * n

    async with app, running(app):
        handle = await double.enqueue(21)
        assert await handle.result(WITHIN_S) == 42

        def blocking() -> Any:
            with app.sync() as client:
                return client.enqueue(double.call(4)).result(WITHIN_S)

        assert await asyncio.to_thread(blocking) == 8


async def test_a_certificate_of_an_unknown_authority_is_refused(
    tls_server: Server, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    """Both where no authority is named (the system's are asked), and where another one is."""
    stranger = issue(tmp_path / "stranger", HOST)
    plain = f"rediss://{HOST}:{tls_server.port}/0"
    for url in (plain, f"{plain}?ssl_ca_certs={stranger.ca}"):
        error = await refused(url)
        assert isinstance(error, Unavailable)
        assert "certificate is not trusted" in str(error)
        assert "ssl_ca_certs" in str(error)


async def test_a_certificate_for_another_host_is_refused(
    private_server: PrivateServer, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    server = private_server(tls=issue(tmp_path / "tls", "elsewhere.example"))
    error = await refused(server.url)
    assert isinstance(error, Unavailable)
    assert "certificate is not trusted" in str(error)
    assert "host name" in str(error)


async def test_a_server_without_tls_is_named(url: str, refused: Callable[..., Any]) -> None:
    assert isinstance(await refused(url.replace("redis://", "rediss://")), Unavailable)


async def test_a_tls_server_asked_in_plain_words_is_unavailable(
    tls_server: Server, refused: Callable[..., Any]
) -> None:
    assert isinstance(await refused(f"redis://{HOST}:{tls_server.port}/0"), Unavailable)


@pytest.mark.parametrize("query", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_verification_cannot_be_switched_off(query: str) -> None:
    with pytest.raises(AddressError, match="ssl_ca_certs"):
        StreamQ(f"rediss://localhost?{query}")


# Secrets


def everything_said(error: BaseException) -> str:
    """All that a log with tracebacks would show of an error: its causes, their texts and notes."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error.args)


async def test_a_password_is_never_shown(
    private_server: PrivateServer, refused: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in reprs nor in errors, their causes and pickles, nor in logs; in no spelling."""
    caplog.set_level(logging.DEBUG)
    server = private_server(password="other")
    said: list[str] = []
    for url in (
        with_user(server, f":{QUOTED}"),
        with_user(server, f"user:{QUOTED}"),
        f"redis://user:{QUOTED}@{HOST}:{free_port()}/0",
        f"rediss://:{QUOTED}@{HOST}:{server.port}/0",
        f"unix://:{QUOTED}@/nowhere/at/all",
    ):
        error = await refused(url)
        app = StreamQ(url)
        client = app.new_client()
        said += [everything_said(error), str(pickle.dumps(error)), repr(app), str(app), repr(app.address)]
        said += [repr(client), repr(app.inspector()), repr(app.worker()), str(app.address), repr(app.config)]
        await client.aclose()
    for url in (f"redsi://:{QUOTED}@h", f"redis://:{QUOTED}@h:port/0", f"redis://:{QUOTED}@h/db"):
        with pytest.raises(AddressError) as caught:
            StreamQ(url)
        said.append(everything_said(caught.value))
    said.append(caplog.text)
    for secret in (SECRET, QUOTED, "p@ss"):
        assert not [text for text in said if secret in text]


async def test_a_payload_is_never_shown(
    private_server: PrivateServer, refused: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where Redis echoes the arguments of what it refuses."""
    caplog.set_level(logging.DEBUG)
    server = private_server(maxmemory="1")
    said = [everything_said(await refused(server.url, payload=SECRET))]
    server.client().config_set("maxmemory", 0)
    server.client().set("sq:{default}:normal", "of another type")
    said.append(everything_said(await refused(server.url, payload=SECRET)))
    async with StreamQ(server.url) as app:
        call: TaskCall[None] = TaskCall("t", (SECRET,), {"word": SECRET})
        said += [repr(call), repr(await app.enqueue(call, queue="other"))]
        with pytest.raises(StreamQError) as caught:
            await app.enqueue("t", {"list": [SECRET, object()]})
        said.append(str(caught.value))
    assert not [text for text in [*said, caplog.text] if SECRET in text]
