"""Two ways to run a server program: as a process of this machine, or as a container on it.

Both share the network and one folder with the tests, so the same arguments serve both. What the
arguments mean, and when a server counts as ready, is the business of ``servers``.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.builds import Build, binary


class Engine(ABC):
    """A running server program. ``kill`` is kill -9; ``freeze`` is SIGSTOP."""

    @abstractmethod
    def running(self) -> bool: ...

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to stop, and wait until it has."""

    @abstractmethod
    def kill(self) -> None: ...

    @abstractmethod
    def freeze(self) -> None: ...

    @abstractmethod
    def thaw(self) -> None: ...


def launch(build: Build, arguments: Sequence[str], folder: Path) -> Engine:
    """Start ``build`` with ``arguments``; what it prints goes to ``folder``/log."""
    if docker_answers():
        return Container(build, arguments, folder)
    return Process([str(binary(build)), *arguments], folder)


class Process(Engine):
    """A child process that dies with this one, whatever kills it."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        with (folder / "log").open("ab") as log:
            self._popen = _SPAWNER.submit(_spawn, command, folder, log).result()
        _alive.add(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        return self._popen.poll() is None

    def terminate(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        self._popen.send_signal(how)
        self._popen.send_signal(signal.SIGCONT)  # a frozen process would not hear SIGTERM
        try:
            self._popen.wait(15)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        _alive.discard(self)


# The kernel ends the child when the *thread* that started it ends, and tests come and go on threads of
# their own: one thread that lives as long as this process starts them all.
_SPAWNER = ThreadPoolExecutor(1, "server-spawner")
_alive: set[Process] = set()


def _spawn(command: Sequence[str], folder: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    if sys.platform == "linux" and (setpriv := shutil.which("setpriv")):
        command = [setpriv, "--pdeathsig", "KILL", *command]
    return subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )


@atexit.register
def _kill_all() -> None:
    for process in list(_alive):
        process.kill()


class Container(Engine):
    """A container with the network and the folder of its host, so that it stands in for a process."""

    def __init__(self, build: Build, arguments: Sequence[str], folder: Path) -> None:
        from testcontainers.core.container import DockerContainer

        self._container: Any = DockerContainer(build.image)
        self._container.with_command([build.program, *arguments])
        self._container.with_volume_mapping(str(folder), str(folder), "rw")
        self._container.with_kwargs(
            network_mode="host",
            user=f"{os.getuid()}:{os.getgid()}",
            working_dir=str(folder),
        )
        self._container.start()
        self._raw: Any = self._container.get_wrapped_container()

    def running(self) -> bool:
        self._raw.reload()
        return bool(self._raw.status in {"created", "running", "paused"})

    def terminate(self) -> None:
        self._raw.stop(timeout=15)
        self._container.stop()

    def kill(self) -> None:
        self._raw.kill()
        self._container.stop()

    def freeze(self) -> None:
        self._raw.pause()

    def thaw(self) -> None:
        self._raw.unpause()


@cache
def docker_answers() -> bool:
    """Whether a Docker engine of this very machine answers (a remote one shares no folder with us)."""
    if sys.platform != "linux" or os.environ.get("STREAMQ_TEST_SERVERS") == "local":
        return False
    where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return where.startswith("unix://") and _pings(where.removeprefix("unix://"))


def _pings(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2)
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in sock.recv(64)
    except OSError:
        return False
