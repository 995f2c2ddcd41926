"""Opening a connection: redis-py connects, secures and logs in; StreamQ takes the socket over.

Owns every option given to redis-py and the hand-over. Nothing is sent here after the hand-over.
redis-py's version decides none of the behaviour: all options whose defaults differ between its
versions are given.
"""
# ruff: noqa: SLF001  # the hand-over is what this file is for: redis-py has no public name for its socket

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import redis
from redis import asyncio as redis_asyncio
from redis.asyncio import connection as redis_asyncio_connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamq.broker.address import Address
from streamq.broker.embedded import resolve
from streamq.broker.refusals import connect_failure
from streamq.errors import AddressError, OptionError, Unavailable

_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds: for a connection to be ready, and for a reply."""

    connect_s: float = 5.0
    reply_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "reply_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise OptionError(name, "must be a number of seconds above 0")


async def dial(address: Address, timeouts: Timeouts) -> asyncio.StreamWriter:
    """Connect and log in. The caller owns the writer's transport from here on.

    Raises AddressError for files that are not there, ServerError when it cannot connect.
    """
    _check_files(address)
    if address.scheme == "embedded":
        # Starting the server blocks for a moment, the first time.
        address = await asyncio.to_thread(resolve, address)
    opener = _async_class(address)(**_options(address, timeouts), retry=AsyncRetry(NoBackoff(), 0))
    try:
        async with asyncio.timeout(timeouts.connect_s):
            await opener.connect()
    except BaseException as error:
        _drop(opener)
        if not isinstance(error, Exception):
            raise
        raise connect_failure(error, address) from error
    return _take_writer(opener, address)


def dial_blocking(address: Address, timeouts: Timeouts) -> socket.socket:
    """The same from blocking code: a connected socket, wrapped in TLS where the address says so."""
    _check_files(address)
    address = resolve(address)
    opener = _sync_class(address)(**_options(address, timeouts), retry=Retry(NoBackoff(), 0))
    try:
        opener.connect()
    except BaseException as error:
        opener.disconnect()
        if not isinstance(error, Exception):
            raise
        raise connect_failure(error, address) from error
    sock = opener._sock
    opener._sock = None
    if sock is None:
        raise Unavailable(f"{address}: the connection was lost while it was made")
    return sock  # type: ignore[no-any-return]


def _take_writer(opener: Any, address: Address) -> asyncio.StreamWriter:
    reader, writer = opener._reader, opener._writer
    opener._reader = opener._writer = None
    if writer is None or writer.transport.is_closing() or reader.at_eof():
        # Its end was reported to redis-py's reader already, so it would never be reported to us.
        if writer is not None:
            writer.transport.abort()
        raise Unavailable(f"{address}: the connection was lost while it was made")
    return writer  # type: ignore[no-any-return]


def _drop(opener: Any) -> None:
    """Leave nothing open behind a failed or cancelled attempt."""
    writer = opener._writer
    opener._reader = opener._writer = None
    if writer is not None:
        writer.transport.abort()


def _async_class(address: Address) -> Any:
    return {
        "redis": redis_asyncio.Connection,
        "rediss": redis_asyncio.SSLConnection,
        "unix": redis_asyncio_connection.UnixDomainSocketConnection,
    }[address.scheme]


def _sync_class(address: Address) -> Any:
    return {
        "redis": redis.Connection,
        "rediss": redis.SSLConnection,
        "unix": redis.UnixDomainSocketConnection,
    }[address.scheme]


def _options(address: Address, timeouts: Timeouts) -> dict[str, Any]:
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "client_name": address.client_name,
        "protocol": 2,
        "socket_timeout": timeouts.connect_s,
        "socket_connect_timeout": timeouts.connect_s,
        "health_check_interval": 0,
        "retry_on_timeout": False,
        "driver_info": _driver_info(),
    }
    if address.scheme == "unix":
        return options | {"path": address.path}
    options |= {"host": address.host, "port": address.port, "socket_keepalive": True}
    options["socket_keepalive_options"] = _keepalive()
    return options | (_tls_options(address) if address.tls else {})


def _keepalive() -> dict[int, int]:
    """A dead peer is noticed after 30 + 3 x 5 seconds without a word, even with nothing in flight."""
    wished = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    return {getattr(socket, name): value for name, value in wished.items() if hasattr(socket, name)}


def _tls_options(address: Address) -> dict[str, Any]:
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": address.ssl_ca_certs,
        "ssl_ca_path": address.ssl_ca_path,
        "ssl_ca_data": address.ssl_ca_data,
        "ssl_certfile": address.ssl_certfile,
        "ssl_keyfile": address.ssl_keyfile,
        "ssl_password": address.ssl_key_password,
        "ssl_min_version": _TLS_VERSIONS[address.ssl_min_version],
    }


def _check_files(address: Address) -> None:
    for name in _FILES:
        path = getattr(address, name)
        if path is not None and not Path(path).exists():
            raise AddressError(name, f"no such file or directory: {path}")


def _driver_info() -> Any:
    """Shown by CLIENT LIST as lib-name, so that operators can tell whose connection it is."""
    try:
        version = metadata.version("streamq")
    except metadata.PackageNotFoundError:
        version = "0"
    return redis.DriverInfo().add_upstream_driver("streamq", version)
