"""The Redis of one run: started on a free loopback port, flushed between workloads, ended with the run."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness.children import Child, ChildFailed
from harness.wire import Wire

_START_LIMIT_S = 15.0


@dataclass(frozen=True)
class Counters:
    """Redis's own counters at one moment."""

    cpu_s: float
    commands: int
    reads: int
    used_memory: int

    def minus(self, earlier: Counters) -> Counters:
        """What happened since ``earlier``."""
        return Counters(
            cpu_s=self.cpu_s - earlier.cpu_s,
            commands=self.commands - earlier.commands,
            reads=self.reads - earlier.reads,
            used_memory=self.used_memory - earlier.used_memory,
        )


class Server:
    """One redis-server. ``aof`` turns on the append-only file with fsync every second."""

    def __init__(self, *, aof: bool) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise SystemExit("redis-server is not on PATH; on Debian: apt-get install redis-server")
        self.port = _free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="streamq-bench-"))
        self._child = Child(
            self._command(binary, aof=aof),
            environment={"LC_ALL": "C"},
            log=self._directory / "redis.log",
            cwd=self._directory,
        )
        try:
            self.wire = self._connect()
        except BaseException:
            self._child.end()
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        self.version = self.wire.info("server")["redis_version"]

    @property
    def url(self) -> str:
        """Where adapters find it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Empty it, scripts included, so that no workload inherits from another."""
        self.wire.call("FLUSHALL", "SYNC")
        self.wire.call("SCRIPT", "FLUSH", "SYNC")

    def counters(self) -> Counters:
        """CPU, commands and memory so far. Costs Redis a few tens of microseconds."""
        cpu, stats, memory = self.wire.info("cpu"), self.wire.info("stats"), self.wire.info("memory")
        return Counters(
            cpu_s=float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]),
            commands=int(stats["total_commands_processed"]),
            reads=int(stats["total_reads_processed"]) if "total_reads_processed" in stats else 0,
            used_memory=int(memory["used_memory"]),
        )

    def count_issued(self, seconds: float) -> int:
        """Commands that clients issue during ``seconds``, by MONITOR; not what scripts call inside."""
        monitor = Wire(self.port)
        try:
            monitor.call("MONITOR")
            return _count_lines(monitor, seconds)
        finally:
            monitor.close()

    def close(self) -> None:
        """End it and remove its files."""
        self.wire.close()
        self._child.end(grace_s=5.0)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _command(self, binary: str, *, aof: bool) -> list[str]:
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
        command += [
            "--dir",
            str(self._directory),
            "--appendonly",
            "yes" if aof else "no",
            "--appendfsync",
            "everysec",
        ]
        return command

    def _connect(self) -> Wire:
        deadline = time.monotonic() + _START_LIMIT_S
        while True:
            try:
                wire = Wire(self.port)
                wire.call("PING")
                return wire
            except OSError:
                if not self._child.running or time.monotonic() > deadline:
                    raise ChildFailed("redis-server did not start") from None
                time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _count_lines(monitor: Wire, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    count = 0
    while (left := deadline - time.monotonic()) > 0:
        monitor.set_timeout(left)
        try:
            line = monitor.read_line()
        except TimeoutError:
            break
        count += b" lua]" not in line
    return count
