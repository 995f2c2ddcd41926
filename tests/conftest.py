"""Fixtures that every test may ask for: real servers, a namespace of one's own, a proxy.

Servers are started on first use, once per test process (so once per xdist worker), and shared; a test
keeps out of the others' way by its namespace. A test that stops, kills or fills a server asks for a
private one.
"""

from __future__ import annotations

import faulthandler
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from tests.builds import BUILDS, REDIS_7, Build
from tests.certificates import Certificates, issue
from tests.proxy import Proxy
from tests.servers import HOST, Options, Server

Fleet = Callable[[Build], Server]
PrivateServer = Callable[..., Server]
ProxyFor = Callable[[Server], Awaitable[Proxy]]

# Far above what any test takes, its fixtures included: a test that waits for ever fails by itself.
TEST_LIMIT_S = 120.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a test that hangs, and show where each thread stood."""

    def stop(*_: object) -> None:
        faulthandler.dump_traceback()
        pytest.fail(f"{item.nodeid} has not ended within {TEST_LIMIT_S:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    # And again each few seconds, should something swallow the first one.
    signal.setitimer(signal.ITIMER_REAL, TEST_LIMIT_S, 5.0)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def started(server: Server) -> Server:
    """The server, running; nothing of it is left when it does not start."""
    try:
        return server.start()
    except BaseException:  # a skip, too, is one
        server.close()
        raise


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """The shared server of a build."""
    servers: dict[str, Server] = {}

    def get(build: Build) -> Server:
        if build.name not in servers:
            servers[build.name] = started(Server(build))
        return servers[build.name]

    yield get
    for server in servers.values():
        server.close()


@pytest.fixture
def server(fleet: Fleet) -> Server:
    """The default server: Redis 7, shared."""
    return fleet(REDIS_7)


@pytest.fixture(params=BUILDS, ids=repr)
def any_server(request: pytest.FixtureRequest, fleet: Fleet) -> Server:
    """Each build in turn, shared."""
    build: Build = request.param
    return fleet(build)


@pytest.fixture
def url(server: Server) -> str:
    """The default server's address."""
    return server.url


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session", autouse=True)
def _no_data_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``embedded://`` without a path keeps its data with the test's, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def private_server() -> Iterator[PrivateServer]:
    """Makes and starts servers for this test alone: ``private_server(build=..., aof=True, ...)``.

    The keywords are those of ``Options``; the build is Redis 7 unless given.
    """
    with ExitStack() as stack:

        def make(build: Build = REDIS_7, **options: object) -> Server:
            server = Server(build, Options(**options))  # type: ignore[arg-type]  # Options checks the names
            stack.callback(server.close)
            return server.start()

        yield make


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for the address that the test servers listen on, and for ``localhost``."""
    return issue(tmp_path_factory.mktemp("tls"), HOST, "localhost")


@pytest.fixture(scope="session")
def tls_server(certificates: Certificates) -> Iterator[Server]:
    """A Redis 7 that speaks TLS alone on its port (its unix socket stays plain), shared."""
    server = Server(REDIS_7, Options(tls=certificates))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
async def proxy_for() -> AsyncIterator[ProxyFor]:
    """Puts a proxy of this test's own before a server: ``await proxy_for(server)``."""
    async with AsyncExitStack() as stack:

        async def make(server: Server) -> Proxy:
            return await stack.enter_async_context(Proxy(server))

        yield make


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path, for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sq-") as name:
        yield Path(name)
