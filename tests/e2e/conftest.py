"""Fixtures of the tests with processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.scenes import Scene
from tests.servers import Server

SceneOn = Callable[[Server], Scene]


@pytest.fixture
def scene_on(namespace: str, tmp_path: Path) -> Iterator[SceneOn]:
    """Makes the scene on a server of the test's choice."""
    with ExitStack() as stack:

        def make(server: Server) -> Scene:
            scene = Scene(server, namespace, tmp_path)
            stack.callback(scene.journal.close)
            return scene

        yield make


@pytest.fixture
def scene(scene_on: SceneOn, server: Server) -> Scene:
    """The scene on the shared default server."""
    return scene_on(server)
