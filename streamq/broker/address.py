"""Where Redis is: a URL and options read into one frozen value.

Owns the meaning of every part of the URL and refuses what has none. Opens nothing, and never
shows a password: not in errors, not in ``str``, not in ``repr``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from streamq.errors import AddressError

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 6379
DEFAULT_TLS_MIN_VERSION = "1.2"  # 1.0 and 1.1 are withdrawn

_SCHEMES = ("redis", "rediss", "unix", "embedded")
_LATER = ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_key_password",
    "ssl_min_version",
)
# What may stand behind the "?". Key material and passwords are arguments only: URLs end up in logs.
_IN_URL = (
    "db",
    "client_name",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_min_version",
)
_ARGUMENTS = ("db", "username", "password", "client_name", *_TLS_OPTIONS)
_NAME = re.compile(r"[!-~]+")
_UNSAFE = ("ssl_cert_reqs", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis server, how to log in, and how to trust it.

    ``path`` is the socket of ``unix://`` and the data directory of ``embedded://``.
    """

    scheme: str
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    path: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)  # "redis://secret@host" makes it a secret
    password: str | None = field(default=None, repr=False)
    client_name: str | None = None
    ssl_ca_certs: str | None = None
    ssl_ca_path: str | None = None
    ssl_ca_data: str | None = field(default=None, repr=False)
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_key_password: str | None = field(default=None, repr=False)
    ssl_min_version: str = DEFAULT_TLS_MIN_VERSION

    @classmethod
    def parse(cls, url: str, **overrides: Any) -> Address:
        """Read a URL. Keyword arguments win over what the URL says; None means "not given".

        Raises AddressError naming the part at fault.
        """
        parts = _split(url)
        given = _query(parts) | _arguments(overrides)
        place = _place(parts, given)
        return cls(scheme=parts.scheme, **place, **_login(parts, given), **_trust(parts.scheme, given))

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the server's certificate verified."""
        return self.scheme == "rediss"

    def at_socket(self, path: str) -> Address:
        """The same login and database, reached through a unix socket: what ``embedded://`` becomes."""
        return dataclasses.replace(self, scheme="unix", path=path)

    def __str__(self) -> str:
        login = "***@" if self.username or self.password else ""
        if self.scheme in ("unix", "embedded"):
            return f"{self.scheme}://{login}{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{login}{host}:{self.port}/{self.db}"


def as_address(url: str | Address) -> Address:
    """An address as it is, or read from a URL. Raises AddressError."""
    return url if isinstance(url, Address) else Address.parse(url)


def _split(url: str) -> SplitResult:
    if not isinstance(url, str):
        raise AddressError("url", f"is a {type(url).__name__}, not a string; write redis://host:6379/0")
    try:
        parts = urlsplit(url)
    except ValueError:  # its text quotes the URL, which may hold a password
        raise AddressError("url", "is not a URL; write redis://host:6379/0") from None
    _check_scheme(parts.scheme, url)
    if parts.fragment or "#" in url:
        raise AddressError("url", "has a '#'; write it as %23 where it belongs to a name or password")
    return parts


def _check_scheme(scheme: str, url: str) -> None:
    if scheme in _LATER:
        raise AddressError("url", f"{scheme}:// is not supported yet; use one server, redis:// or rediss://")
    if not scheme or "://" not in url:
        raise AddressError("url", "has no scheme; write redis://, rediss://, unix:// or embedded:// in front")
    if scheme not in _SCHEMES:
        raise AddressError("url", f"{scheme}:// is unknown; use redis://, rediss://, unix:// or embedded://")


def _query(parts: SplitResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        _check_option(name, _IN_URL)
        if name in found:
            raise AddressError(name, "is given twice")
        found[name] = value
    return found


def _arguments(overrides: dict[str, Any]) -> dict[str, Any]:
    for name in overrides:
        _check_option(name, _ARGUMENTS)
    return {name: value for name, value in overrides.items() if value is not None}


def _check_option(name: str, allowed: tuple[str, ...]) -> None:
    if name in _UNSAFE:
        raise AddressError(
            name, "the server's certificate is always verified; trust your own CA with ssl_ca_certs=..."
        )
    if name in allowed:
        return
    if name in _ARGUMENTS:
        raise AddressError(name, "is not taken from the URL; pass it as an argument")
    raise AddressError(_shown(name), f"is not an option of an address; known: {', '.join(allowed)}")


def _shown(name: str) -> str:
    """An unknown option's name, unless it may be a piece of a password with a stray '?' or '&'."""
    return name if name.isidentifier() and len(name) <= 40 else "url"


def _place(parts: SplitResult, given: dict[str, Any]) -> dict[str, Any]:
    if parts.scheme == "unix":
        return {"path": _socket_path(parts), "db": _db(given.get("db", 0))}
    if parts.scheme == "embedded":
        host = parts.netloc.rpartition("@")[2]
        return {"path": unquote(host + parts.path), "db": _db(given.get("db", 0))}
    in_path = unquote(parts.path).strip("/")
    if in_path and "db" in given and str(given["db"]) != in_path:
        raise AddressError("db", "stands twice in the address, and differs")
    return {"host": _host(parts), "port": _port(parts), "db": _db(given.get("db", in_path or 0))}


def _socket_path(parts: SplitResult) -> str:
    if parts.netloc.rpartition("@")[2]:
        raise AddressError("path", "is relative; write unix:///absolute/path/of/the.sock")
    path = unquote(parts.path)
    if path in ("", "/"):
        raise AddressError("path", "is missing; write unix:///absolute/path/of/the.sock")
    return path


def _host(parts: SplitResult) -> str:
    return unquote(parts.hostname or DEFAULT_HOST)


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:  # its text quotes what may be half a password
        port = 0
    if port is None:
        return DEFAULT_PORT
    if not 1 <= port <= 65535:
        raise AddressError(
            "port", "must be from 1 to 65535; a '/', '?' or '@' in a password is written %2F, %3F or %40"
        )
    return port


def _db(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise AddressError("db", "must be a whole number, 0 or more")
    text = str(value)
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise AddressError("db", "must be a whole number, 0 or more")
    return int(text)


def _login(parts: SplitResult, given: dict[str, Any]) -> dict[str, Any]:
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    login: dict[str, Any] = {
        "username": given.get("username", username),
        "password": given.get("password", password),
        "client_name": given.get("client_name"),
    }
    for name, value in login.items():
        if value is not None and not isinstance(value, str):
            raise AddressError(name, f"is a {type(value).__name__}, not a string")
    client_name = login["client_name"]
    if client_name is not None and not _NAME.fullmatch(client_name):
        raise AddressError("client_name", "must be printable ASCII without spaces: Redis refuses others")
    return login


def _trust(scheme: str, given: dict[str, Any]) -> dict[str, Any]:
    trust = {name: given[name] for name in _TLS_OPTIONS if name in given}
    if trust and scheme != "rediss":
        raise AddressError(next(iter(trust)), "means nothing without TLS; write rediss://")
    for name, value in trust.items():
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(plain, str) or not plain:
            raise AddressError(name, "must be a string that is not empty")
        trust[name] = plain
    if trust.get("ssl_min_version", DEFAULT_TLS_MIN_VERSION) not in ("1.2", "1.3"):
        raise AddressError("ssl_min_version", "must be 1.2 or 1.3")
    if ("ssl_keyfile" in trust or "ssl_key_password" in trust) and "ssl_certfile" not in trust:
        raise AddressError("ssl_certfile", "is missing beside the client's key")
    return trust
