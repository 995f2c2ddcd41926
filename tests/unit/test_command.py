"""Commands become the bytes of the Redis protocol."""

from __future__ import annotations

import pytest

from streamq.broker import command as command_module
from streamq.broker.command import Command, Word, pack, pack_call
from streamq.broker.scripts import Script

SCRIPT = Script("test", b"return 1", b"0" * 40)


def identity(reply: object) -> object:
    return reply


def plain(*words: Word) -> bytes:
    """The protocol, written as plainly as it is specified."""
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    bulk = b"".join(b"$" + str(len(word)).encode() + b"\r\n" + word + b"\r\n" for word in encoded)
    return b"*" + str(len(words)).encode() + b"\r\n" + bulk


@pytest.mark.parametrize(
    "words",
    [
        (b"PING",),
        ("SET", b"k", ""),
        ("XADD", b"k", "*", "m", b"\x00\r\n\xff"),
        ("ZADD", b"k", -1, "größe"),
        ("ECHO", b"x" * 1023),
        ("ECHO", b"x" * 1024),
        ("ECHO", b"x" * 100_000),
        tuple(range(1500)),
    ],
)
def test_words_are_packed_as_the_protocol_says(words: tuple[Word, ...]) -> None:
    assert pack(words) == plain(*words)


@pytest.mark.parametrize("keys", [(), (b"k",), (b"a", b"b" * 2000)])
@pytest.mark.parametrize("args", [(), (b"x", 5, "y"), [b"z" * 5000]])
def test_a_script_call_is_packed_as_evalsha_first_time_and_later(
    keys: tuple[bytes, ...], args: tuple[Word, ...]
) -> None:
    expected = plain("EVALSHA", SCRIPT.sha, len(keys), *keys, *args)
    assert pack_call(SCRIPT.sha, keys, args) == expected
    assert pack_call(SCRIPT.sha, keys, args) == expected
    assert Command(SCRIPT, keys, args, identity).pack() == expected


def test_a_command_without_a_script_sends_its_words_alone() -> None:
    assert Command(None, (b"slot",), ("GET", b"k"), identity).pack() == plain("GET", "k")


def test_what_is_remembered_of_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "_HEADS_KEPT", 3)
    for number in range(10):
        pack_call(SCRIPT.sha, (b"%d" % number,), ())
        assert len(command_module._heads) <= 3
    assert pack_call(SCRIPT.sha, (b"0",), (b"x",)) == plain("EVALSHA", SCRIPT.sha, 1, b"0", b"x")
