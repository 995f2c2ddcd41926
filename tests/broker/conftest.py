"""Stages for the script tests: a queue of one's own on each kind of server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker.stage import Stage
from tests.builds import BUILDS
from tests.conftest import PrivateServer
from tests.servers import Server


def played(server: Server, namespace: str) -> Iterator[Stage]:
    stage = Stage(server, namespace)
    try:
        yield stage
        if stage.consistent:
            stage.check()
    finally:
        stage.close()


@pytest.fixture
def stage(any_server: Server, namespace: str) -> Iterator[Stage]:
    """An empty queue on each kind of server in turn. Afterwards every task must be in one place."""
    yield from played(any_server, namespace)


@pytest.fixture
def stage7(server: Server, namespace: str) -> Iterator[Stage]:
    """The same on Redis 7 alone, for what costs seconds."""
    yield from played(server, namespace)


@pytest.fixture(params=BUILDS, ids=repr)
def full(request: pytest.FixtureRequest, private_server: PrivateServer, namespace: str) -> Iterator[Stage]:
    """A queue on a server of its own, of each kind, which a test may fill: ``CONFIG SET maxmemory 1``."""
    yield from played(private_server(request.param, maxmemory="0"), namespace)
