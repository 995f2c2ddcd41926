"""Real servers for the tests: one object per server, which starts, stops, kills and freezes it.

Owns the server's folder, ports and options. Which binary runs is the business of ``builds``, how it
runs that of ``engines``.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.builds import Build
from tests.certificates import Certificates
from tests.engines import Engine, launch

READY_WITHIN_S = 60.0  # generous: a container may have to be fetched, and the machine may be busy
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a server is to be set up. The default keeps nothing and asks for no password.

    ``extra`` are more words for the server's command line, such as ``("--maxclients", "20")``.
    """

    aof: bool = False
    fsync: str = "everysec"
    maxmemory: str | None = None
    password: str | None = None
    tls: Certificates | None = None
    extra: tuple[str, ...] = ()


class Server:
    """One server on a port and a unix socket of its own. ``start`` returns when it answers."""

    def __init__(self, build: Build, options: Options | None = None) -> None:
        self.build = build
        self.options = options or Options()
        self.folder = Path(tempfile.mkdtemp(prefix="sq-"))  # short: a socket's path has 107 bytes
        self.port = free_port()
        self._engine: Engine | None = None
        self._client: redis.Redis | None = None

    @property
    def socket_path(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        """The address over TCP; over TLS when the server has certificates."""
        tls = self.options.tls
        scheme, query = ("rediss", f"?ssl_ca_certs={quote(str(tls.ca))}") if tls else ("redis", "")
        return f"{scheme}://{self._user()}{HOST}:{self.port}/0{query}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._user()}{self.socket_path}"

    def _user(self) -> str:
        return f":{quote(self.options.password, safe='')}@" if self.options.password else ""

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    # Life

    def start(self, *, wait: bool = True) -> Server:
        if self._engine is None:
            self._engine = self._launch()
        if wait:
            self._wait_until_ready()
        return self

    def stop(self) -> None:
        """End it as an operator would (SIGTERM: an AOF is flushed)."""
        if engine := self._forget_engine():
            engine.terminate()

    def kill(self) -> None:
        """kill -9."""
        if engine := self._forget_engine():
            engine.kill()

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill -9) and start again on the same port, with what it had persisted."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay up, nothing answers."""
        assert self._engine is not None
        self._engine.freeze()

    def resume(self) -> None:
        assert self._engine is not None
        self._engine.thaw()

    def close(self) -> None:
        """End it and remove its folder."""
        if self._client is not None:
            self._client.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self._engine is not None and self._engine.running()

    def _forget_engine(self) -> Engine | None:
        engine, self._engine = self._engine, None
        return engine

    def _launch(self) -> Engine:
        self.socket_path.unlink(missing_ok=True)  # left by a kill -9
        return launch(self.build, self._arguments(), self.folder)

    def _arguments(self) -> list[str]:
        options = self.options
        words = ["--bind", HOST, "--unixsocket", str(self.socket_path)]
        words += ["--dir", str(self.folder), "--save", ""]
        words += ["--appendonly", "yes" if options.aof else "no", "--appendfsync", options.fsync]
        if options.maxmemory is not None:
            words += ["--maxmemory", options.maxmemory, "--maxmemory-policy", "noeviction"]
        if options.password is not None:
            words += ["--requirepass", options.password]
        return [*words, *self._port_arguments(), *options.extra]

    def _port_arguments(self) -> list[str]:
        if (tls := self.options.tls) is None:
            return ["--port", str(self.port)]
        words = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
        return [
            *words,
            *("--tls-ca-cert-file", str(tls.ca)),
            *("--tls-cert-file", str(tls.cert)),
            *("--tls-key-file", str(tls.key)),
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.build.name} did not start:\n{self.log[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """Whether it has loaded its data and takes commands (with a password: asks for it)."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(self.socket_path))
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    # Looking inside

    def client(self) -> redis.Redis:
        """A plain blocking client for assertions, over the unix socket. It answers in bytes.

        There is one per server, made on first use and closed with the server; it reconnects after a
        restart.
        """
        if self._client is None:
            self._client = redis.Redis(
                unix_socket_path=str(self.socket_path),
                password=self.options.password,
                protocol=2,
                socket_timeout=10,
                retry=Retry(NoBackoff(), 2),
                health_check_interval=0,
            )
        return self._client

    def commandstats(self) -> Counter[str]:
        """Calls of each command so far, by lower-case name. Subtract two of them."""
        info = self.client().info("commandstats")
        assert isinstance(info, dict)
        return Counter({name.removeprefix("cmdstat_"): int(row["calls"]) for name, row in info.items()})


def free_port() -> int:
    """A port that nothing listens on, below those that the kernel gives to outgoing connections.

    Above, a port could be taken by somebody's connection while its server restarts.
    """
    chooser = random.Random(os.urandom(8))
    while True:
        port = chooser.randrange(10_240, 32_000)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
            return port
