"""Spinning: a near reply is read without sleeping, and a far one is soon waited for as usual."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from streamq.broker import spinning
from streamq.broker.spinning import Spinner


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.settimeout(5)
    with near, far:
        yield near, far


def test_what_is_there_is_read_and_the_socket_keeps_its_time_limit(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    spinner = Spinner(near)
    far.sendall(b"reply")
    assert spinner.read(100) == b"reply"
    assert near.gettimeout() == 5
    far.sendall(b"next")
    assert near.recv(100) == b"next"
    spinner.close()


def test_the_end_of_the_stream_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    spinner = Spinner(near)
    far.close()
    assert spinner.read(100) == b""
    spinner.close()
    with pytest.raises(OSError, match="descriptor"):
        spinner.read(100)


def test_it_gives_up_where_replies_are_far_and_tries_again_now_and_then(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = ends
    monkeypatch.setattr(spinning, "_SPIN_NS", 0)
    spinner = Spinner(near)
    for _ in range(spinning._MOST_LUCK):
        assert spinner.read(100) is None
    far.sendall(b"reply")
    for _ in range(spinning._TRY_AGAIN - 1):
        assert spinner.read(100) is None, "it does not even look"
    assert spinner.read(100) == b"reply"
    far.sendall(b"again")
    assert spinner.read(100) == b"again", "a hit makes it worth looking again"
    spinner.close()
