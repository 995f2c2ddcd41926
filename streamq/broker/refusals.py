"""What Redis and the network answer when they refuse, as StreamQ's typed errors.

Owns the mapping from the server's words, and from redis-py's, the socket's and TLS's exceptions,
to ``streamq.errors``. Each text carries a remedy where there is one. It decides nothing about
retrying: callers do.

A script's error comes in three shapes: with its code in front (``OOM ... script: <sha>, on
@user_script:12.``, Redis 7), wrapped (``ERR Error running script (call to f_<sha>): @user_script:
12: -OOM ...``, Redis 6.2), or without a code (``ERR ... ACL failure in script``).
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator

from redis import exceptions as foreign

from streamq.errors import (
    AuthenticationFailed,
    OutOfMemory,
    PermissionDenied,
    ReadOnly,
    SequenceConflict,
    ServerError,
    ServerLoading,
    ServerRefused,
    ServerTimeout,
    Unavailable,
    UnsupportedServer,
)


class NoScript(ServerRefused):
    """The server does not know the script (restart, failover, SCRIPT FLUSH). Nothing ran."""


class NoGroup(ServerRefused):
    """The stream or its group is gone (never made, deleted, flushed)."""


class WrongType(ServerRefused):
    """The key holds something of another type: somebody else wrote there."""


_GRANT = "grant the ACL user the rights listed in the guide on connecting"
_NEEDS = "StreamQ needs Redis 6.2 or newer, with scripts enabled"

# code -> error, remedy
_BY_CODE: dict[str, tuple[type[ServerError], str]] = {
    "OOM": (OutOfMemory, "raise maxmemory, or let workers drain the queues"),
    "READONLY": (ReadOnly, "connect to the primary"),
    "MISCONF": (ReadOnly, "the server cannot save to disk; see its log, free the disk"),
    "NOREPLICAS": (ReadOnly, "the server waits for replicas (min-replicas-to-write)"),
    "UNBLOCKED": (ReadOnly, "the server became a replica; connect to the primary"),
    "NOAUTH": (AuthenticationFailed, "give a password: redis://user:password@host"),
    "WRONGPASS": (AuthenticationFailed, "check the user name and password of the address"),
    "NOPERM": (PermissionDenied, _GRANT),
    "LOADING": (ServerLoading, "try again shortly"),
    "MASTERDOWN": (Unavailable, "the replica has lost its primary"),
    "BUSY": (Unavailable, "another client's script runs for too long; SCRIPT KILL ends it"),
    "NOSCRIPT": (NoScript, ""),
    "NOGROUP": (NoGroup, ""),
    "WRONGTYPE": (WrongType, "something else writes under StreamQ's keys; rename or delete that key"),
    "SEQUENCE": (SequenceConflict, "two processes share one client's identity"),  # the enqueue script's own
    "MOVED": (ServerRefused, "this is a Redis Cluster, which is not supported yet"),
    "ASK": (ServerRefused, "this is a Redis Cluster, which is not supported yet"),
}

# Answers whose code (ERR, or none where redis-py has cut it off) says nothing: the words decide.
_BY_WORDS: tuple[tuple[str, type[ServerError], str], ...] = (
    ("no such key", NoGroup, ""),
    ("unknown command", UnsupportedServer, _NEEDS),
    ("unknown redis command", UnsupportedServer, _NEEDS),
    ("unknown subcommand", UnsupportedServer, _NEEDS),
    ("acl failure in script", PermissionDenied, _GRANT),
    ("the user executing the script", PermissionDenied, _GRANT),
    ("has no permissions", PermissionDenied, _GRANT),
    ("invalid password", AuthenticationFailed, "check the password of the address"),
    ("without any password configured", AuthenticationFailed, "the server has no password; leave it out"),
    ("max number of clients", Unavailable, "raise maxclients, or close idle clients"),
    ("db index is out of range", ServerRefused, "choose a smaller database number"),
)

_CODE = re.compile(r"[A-Z][A-Z]+\b")
_INNER_CODE = re.compile(r"(?:^|[\s:])-([A-Z][A-Z]+)\b")
_ECHOED_ARGUMENTS = re.compile(r",? with args beginning with.*", re.DOTALL)
_KEPT_CHARS = 300


def refusal(text: str) -> ServerError:
    """The typed error for an error reply, without the leading "-"."""
    kind, remedy = _classify(text)
    return kind(_worded(text, remedy))


def _classify(text: str) -> tuple[type[ServerError], str]:
    for code in _codes(text):
        found = _BY_CODE.get(code)
        if found:
            return found
    lowered = text.lower()
    for words, kind, remedy in _BY_WORDS:
        if words in lowered:
            return kind, remedy
    return ServerRefused, ""


def _codes(text: str) -> Iterator[str]:
    first = _CODE.match(text)
    if first:
        yield first.group()
    if "script" in text:
        yield from _INNER_CODE.findall(text)


def _worded(text: str, remedy: str) -> str:
    # "unknown command" echoes the arguments, and those may be payloads.
    said = _ECHOED_ARGUMENTS.sub("", text).strip()[:_KEPT_CHARS]
    return f"Redis: {said} ({remedy})" if remedy else f"Redis: {said}"


def connect_failure(error: BaseException, where: object) -> ServerError:
    """The typed error for a connection that could not be opened. Raise it ``from`` the original."""
    for link in _chain(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            why = getattr(link, "verify_message", "verification failed")
            return Unavailable(
                f"{where}: the server's certificate is not trusted: {why} "
                "(trust its CA with ssl_ca_certs=..., and use the host name it was issued for)"
            )
        if isinstance(link, ssl.SSLError):
            return Unavailable(
                f"{where}: TLS failed: {getattr(link, 'reason', None) or 'handshake broken off'}"
            )
        if isinstance(link, foreign.AuthenticationError):
            return AuthenticationFailed(_worded(str(link), f"check the user name and password for {where}"))
    for link in _chain(error):
        if isinstance(link, foreign.ResponseError | foreign.BusyLoadingError) or _too_many(link):
            return _handshake_refusal(link)
        if isinstance(link, TimeoutError | foreign.TimeoutError):
            return ServerTimeout(f"{where}: no connection within the time limit (is the server running?)")
        if isinstance(link, OSError):
            return Unavailable(f"{where}: {_os_words(link)} (is the server running?)")
    return Unavailable(f"{where}: cannot connect: {type(error).__name__}")


def _os_words(error: OSError) -> str:
    """The system's words: asyncio has its own, and packs those of several addresses into one."""
    packed = re.findall(r"\[Errno (\d+)\]", str(error))
    number = int(packed[-1]) if packed else error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or type(error).__name__


def _too_many(error: BaseException) -> bool:
    return isinstance(error, foreign.ConnectionError) and "max number of clients" in str(error)


def _handshake_refusal(error: BaseException) -> ServerError:
    """redis-py cuts known codes off its texts; its class still says which it was."""
    if isinstance(error, foreign.BusyLoadingError):
        return refusal(f"LOADING {error}")
    if isinstance(error, foreign.NoPermissionError):
        return refusal(f"NOPERM {error}")
    return refusal(str(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
