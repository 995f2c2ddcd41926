"""An app of one's own on the shared server, open, and closed after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from streamq import StreamQ
from streamq.inspector import Inspector
from tests.servers import Server


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[StreamQ]:
    """An open app on the default server."""
    async with StreamQ(server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
async def inspector(app: StreamQ) -> AsyncIterator[Inspector]:
    """The inspector of ``app``."""
    async with app.inspector() as inspector:
        yield inspector
