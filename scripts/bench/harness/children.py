"""Processes the bench starts: each in a session of its own, so that its whole tree can be timed and ended.

Only members of such a session are ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class ChildFailed(Exception):
    """A child ended, or stayed silent, where it should not have."""


class _Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that matter here."""

    pid: int
    session: int
    zombie: bool
    cpu_s: float


class Child:
    """One process and all its descendants that stay in its session.

    ``talks`` opens pipes for ``say`` and ``hear``; otherwise its output goes to the log, so that it can never
    block.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        cwd: Path,
        talks: bool = False,
    ) -> None:
        self._log = log
        self._buffer = b""
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else output,
                stderr=output,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process itself; also the id of its session."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the first process still runs."""
        return self._process.poll() is None

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of the tree so far, ended children included."""
        return sum(stat.cpu_s for stat in _members(self.pid))

    def say(self, line: str) -> None:
        """Write one line to its standard input."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line.encode() + b"\n")
        stdin.flush()

    def hear(self, timeout_s: float) -> str:
        """The next line of its standard output. Raises ChildFailed on silence or end."""
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ChildFailed(f"no answer within {timeout_s:.0f} s")
            if not select.select([stdout], [], [], left)[0]:
                continue
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise ChildFailed(f"ended early: {self.last_words()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def wait(self, timeout_s: float) -> None:
        """Until it ends by itself. Raises ChildFailed when it does not, or ends badly."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"still running after {timeout_s:.0f} s") from None
        if code != 0:
            raise ChildFailed(f"exit status {code}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line it wrote to its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "nothing in its log"

    def end(self, grace_s: float = 1.0) -> None:
        """Ask it to stop, then kill what is left of its session. Safe to call twice."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        while left := [stat.pid for stat in _members(self.pid) if not stat.zombie]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()


def _members(session: int) -> Iterator[_Stat]:
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all it takes
        if entry.isdigit() and (stat := _read_stat(int(entry))) and stat.session == session:
            yield stat


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    ticks = sum(int(field) for field in fields[11:15])
    return _Stat(pid=pid, session=int(fields[3]), zombie=fields[0] in "ZX", cpu_s=ticks / _TICKS_A_SECOND)
