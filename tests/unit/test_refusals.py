"""What the server or the network says when it refuses becomes one typed error, with a remedy."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest
from redis import exceptions as foreign

from streamq.broker.refusals import NoGroup, NoScript, WrongType, connect_failure, refusal
from streamq.errors import (
    AuthenticationFailed,
    OutOfMemory,
    PermissionDenied,
    ReadOnly,
    ServerError,
    ServerLoading,
    ServerRefused,
    ServerTimeout,
    Unavailable,
    UnsupportedServer,
)

OOM = "OOM command not allowed when used memory > 'maxmemory'."
WRAPPED = "ERR Error running script (call to f_96ad): @user_script:3: @user_script: 3: "


@pytest.mark.parametrize(
    "text,kind",
    [
        (OOM, OutOfMemory),
        (f"{OOM} script: 96ad, on @user_script:3.", OutOfMemory),
        (f"{WRAPPED}-{OOM} ", OutOfMemory),
        ("READONLY You can't write against a read only replica.", ReadOnly),
        (f"{WRAPPED}-READONLY You can't write against a read only replica. ", ReadOnly),
        ("MISCONF Redis is configured to save RDB snapshots, but it is not able to", ReadOnly),
        (f"{WRAPPED}-MISCONF Redis is configured to save RDB snapshots, but", ReadOnly),
        ("NOREPLICAS Not enough good replicas to write.", ReadOnly),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", ReadOnly),
        ("NOAUTH Authentication required.", AuthenticationFailed),
        ("WRONGPASS invalid username-password pair or user is disabled.", AuthenticationFailed),
        ("ERR AUTH <password> called without any password configured for", AuthenticationFailed),
        ("NOPERM this user has no permissions to run the 'xadd' command", PermissionDenied),
        ("ERR ACL failure in script: User x has no permissions to run 'xadd'", PermissionDenied),
        (f"{WRAPPED}The user executing the script can't run this command", PermissionDenied),
        ("LOADING Redis is loading the dataset in memory", ServerLoading),
        ("BUSY Redis is busy running a script.", Unavailable),
        ("ERR max number of clients reached", Unavailable),
        ("MASTERDOWN Link with MASTER is down", Unavailable),
        ("NOSCRIPT No matching script. Please use EVAL.", NoScript),
        ("NOGROUP No such key 'x' or consumer group 'w'", NoGroup),
        (f"{WRAPPED}-NOGROUP No such consumer group", NoGroup),
        ("ERR unknown command 'EVALSHA', with args beginning with: ", UnsupportedServer),
        (f"{WRAPPED}Unknown Redis command called from Lua script", UnsupportedServer),
        ("BUSYGROUP Consumer Group name already exists", ServerRefused),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", WrongType),
        ("EXECABORT Transaction discarded because of previous errors.", ServerRefused),
        ("MOVED 3999 127.0.0.1:6381", ServerRefused),
        ("ERR value is not an integer or out of range", ServerRefused),
        ("", ServerRefused),
    ],
)
def test_an_error_reply_becomes_its_typed_error(text: str, kind: type[ServerError]) -> None:
    assert type(refusal(text)) is kind


def test_the_text_is_the_servers_with_a_remedy() -> None:
    assert str(refusal(OOM)) == f"Redis: {OOM} (raise maxmemory, or let workers drain the queues)"


def test_arguments_echoed_by_the_server_are_cut_off() -> None:
    error = refusal("ERR unknown command 'XADD', with args beginning with: 'sq:{q}:normal' 'secret payload' ")
    assert "secret" not in str(error)
    assert "XADD" in str(error)


def test_a_long_text_is_cut() -> None:
    assert len(str(refusal("ERR " + "x" * 100_000))) < 400


def raised(outer: Exception, inner: Exception) -> Exception:
    """``outer`` as it arrives when redis-py raises it while it handles ``inner``."""
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    "error,kind",
    [
        (foreign.AuthenticationError("invalid username-password pair"), AuthenticationFailed),
        (foreign.ConnectionError(foreign.AuthenticationError("x")), Unavailable),
        (raised(foreign.ConnectionError("x"), foreign.AuthenticationError("y")), AuthenticationFailed),
        (foreign.BusyLoadingError("Redis is loading the dataset in memory"), ServerLoading),
        (foreign.NoPermissionError("this user has no permissions"), PermissionDenied),
        (foreign.ResponseError("DB index is out of range"), ServerRefused),
        (foreign.ConnectionError("max number of clients reached"), Unavailable),
        (foreign.TimeoutError("Timeout connecting to server"), ServerTimeout),
        (TimeoutError(), ServerTimeout),
        (
            raised(foreign.ConnectionError("x"), ConnectionRefusedError(111, "Connection refused")),
            Unavailable,
        ),
        (raised(foreign.ConnectionError("x"), ssl.SSLCertVerificationError("x")), Unavailable),
        (ssl.SSLError(1, "wrong version number"), Unavailable),
        (RuntimeError("x"), Unavailable),
    ],
)
def test_a_failed_connect_becomes_its_typed_error(error: Exception, kind: type[ServerError]) -> None:
    failure = connect_failure(error, "redis://h:6379/0")
    assert type(failure) is kind


@pytest.mark.parametrize(
    "error,words",
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('h', 1)"), "Connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect call ..., [Errno 111] ..."), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (BrokenPipeError(), "BrokenPipeError"),
    ],
)
def test_a_failed_connect_tells_where_and_what_to_do(error: OSError, words: str) -> None:
    text = str(connect_failure(raised(foreign.ConnectionError("x"), error), "redis://h:6379/0"))
    assert text == f"redis://h:6379/0: {words} (is the server running?)"
