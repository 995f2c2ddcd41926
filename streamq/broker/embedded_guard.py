"""The process that keeps an embedded server running while somebody uses it.

It owns the server's life and nothing else: it does not know the server's options and never talks to
it. It runs as a program of its own, by path, and imports the standard library alone, so that it is
small and starts at once. The client half is ``embedded``.

Who is there is told by advisory file locks, because the kernel drops them with the process that holds
them, also after kill -9:

    start    held for as long as somebody starts or stops the server: one at a time
    users    shared by every process that uses the server; taken under ``start``
    guard    held by this process
    server   held by the server itself, which inherits it: no second server ever opens its data

- The last user leaves or is killed: the guard sees that ``users`` is free, waits a little for the next
  one, takes ``start`` and ends the server in order.
- The starter is killed: nothing happens, this process is a session of its own.
- The server is killed: the guard starts it again.
- The guard is killed: the kernel tells the server to end (on Linux); the next connection of any user
  starts both anew. Where the server stays, the next guard ends it first: it cannot take ``server``.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START, USERS, GUARD, SERVER = "start", "users", "guard", "server"

POLL_S = 0.25
STOP_WITHIN_S = 60.0  # a server with much in memory may have much to flush
# A server that ends by itself sooner after its start than this will not do better the next time. One
# that was killed may; but not for ever.
TOO_SOON_S = 5.0
KILLED_TOO_SOON_AT_MOST = 5


def open_lock(folder: Path, name: str) -> int:
    """A descriptor of that lock's file. Closing it, in every process that has it, frees the lock."""
    return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(lock: int) -> bool:
    """Take the lock for oneself alone, if it is free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(lock: int, seconds: float) -> bool:
    """Take the lock for oneself alone, waiting that long for it."""
    deadline = time.monotonic() + seconds
    while not try_lock(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def share(lock: int) -> None:
    """Take the lock beside others who share it."""
    fcntl.flock(lock, fcntl.LOCK_SH)


def is_free(lock: int) -> bool:
    """Whether nobody has the lock at this moment."""
    if not try_lock(lock):
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


class Guard:
    """Runs ``command`` while ``users`` is held, and ``linger_s`` longer."""

    def __init__(self, locks: Path, linger_s: float, command: list[str]) -> None:
        self._locks = locks
        self._linger_s = linger_s
        self._command = command
        self._users = open_lock(locks, USERS)

    def run(self) -> None:
        """Keep the server up until nobody needs it, or until it cannot be kept up."""
        too_soon = 0
        while too_soon < KILLED_TOO_SOON_AT_MOST:
            began = time.monotonic()
            server = self._launch()
            try:
                if self._watch(server):
                    return
            except BaseException:  # SIGTERM: the machine goes down
                end(server)
                raise
            lived_s = time.monotonic() - began
            if lived_s < TOO_SOON_S and server.returncode >= 0:
                return
            too_soon = too_soon + 1 if lived_s < TOO_SOON_S else 0

    def _launch(self) -> subprocess.Popen[bytes]:
        lock = self._server_lock()
        server = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            preexec_fn=_end_with_parent(),  # noqa: PLW1509 - this process has one thread
        )
        os.pwrite(lock, b"%-20d" % server.pid, 0)
        os.close(lock)  # the server has it now
        return server

    def _server_lock(self) -> int:
        """The right to open the data; a server that lost its guard is asked to end first."""
        lock = open_lock(self._locks, SERVER)
        if not try_lock(lock):
            left_over = int(os.pread(lock, 20, 0) or b"0")
            if left_over > 1:
                os.kill(left_over, signal.SIGTERM)
            if not lock_within(lock, STOP_WITHIN_S):
                sys.exit(f"streamq: process {left_over} still has the data of this embedded server open")
        return lock

    def _watch(self, server: subprocess.Popen[bytes]) -> bool:
        """Return True when the server was ended because nobody uses it, False when it ended itself."""
        used = time.monotonic()
        while server.poll() is None:
            time.sleep(POLL_S)
            if not is_free(self._users):
                used = time.monotonic()
            elif time.monotonic() - used >= self._linger_s and self._end_unused(server):
                return True
        return False

    def _end_unused(self, server: subprocess.Popen[bytes]) -> bool:
        """End the server, unless somebody is about to use it: users come only under ``start``."""
        start = open_lock(self._locks, START)
        try:
            if not try_lock(start) or not is_free(self._users):
                return False
            end(server)
            return True
        finally:
            os.close(start)


def end(server: subprocess.Popen[bytes]) -> None:
    """End the server in order, or by force when it takes too long."""
    server.terminate()
    try:
        server.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does before it becomes the server: ask the kernel for SIGTERM when this process dies."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, parent, set_death_signal = ctypes.CDLL(None).prctl, os.getpid(), 1

    def ask() -> None:
        prctl(set_death_signal, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def main(arguments: list[str]) -> int:
    """``embedded_guard LOCKS LINGER_S COMMAND...``: return at once, guard in the background.

    The exit status is 0 once the guard holds its lock, 3 when another guard does.
    """
    locks, linger_s, command = Path(arguments[0]), float(arguments[1]), arguments[2:]
    guard = open_lock(locks, GUARD)
    if not lock_within(guard, 2.0):  # somebody may be looking whether it is free
        return 3
    if os.fork():
        os._exit(0)  # the starter waits for this process, and is never left with a dead child
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Guard(locks, linger_s, command).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
