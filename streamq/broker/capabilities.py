"""What the server is and what it can do beyond Redis 6.2, which StreamQ always gets by with.

Owns the reading of INFO and the table of features. Decides nothing: callers ask ``has``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamq.broker.command import pack
from streamq.errors import UnsupportedServer

Product = Literal["redis", "valkey", "unknown"]
Version = tuple[int, int, int]

FLOOR: Version = (6, 2, 0)
INFO = pack((b"INFO", b"server"))
"""The question that ``read_info`` reads the answer to."""

# Feature -> the first version of each product that has it in working order.
_SINCE: dict[str, dict[str, Version]] = {
    # XACKDEL came with 8.2.0; before 8.2.3 several ids in one call could corrupt memory (CVE-2025-62507).
    "xackdel": {"redis": (8, 2, 3)},
    # XADD IDMP came with 8.6.0; unsafe with an AOF before 8.6.2.
    "xadd_idmp": {"redis": (8, 6, 2)},
    "xreadgroup_claim": {"redis": (8, 4, 0)},
    "xnack": {"redis": (8, 8, 0)},
    "evalsha_ro": {"redis": (7, 0, 0), "valkey": (7, 2, 0)},
    "hexpire": {"redis": (7, 4, 0), "valkey": (9, 0, 0)},
    "sharded_pubsub": {"redis": (7, 0, 0), "valkey": (7, 2, 0)},
    "waitaof": {"redis": (7, 2, 0), "valkey": (7, 2, 0)},
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A server's product and version. ``uptime_s`` tells a restarted server from a lost connection.

    An "unknown" product is one that does not let this user read INFO: the base path works there.
    """

    product: Product = "unknown"
    version: Version = FLOOR
    uptime_s: int | None = None

    def has(self, feature: str) -> bool:
        """Whether the server has a feature. Raises KeyError for a feature that no table knows."""
        since = _SINCE[feature].get(self.product)
        return since is not None and self.version >= since


UNKNOWN = Capabilities()


def read_info(info: bytes) -> Capabilities:
    """The capabilities told by ``INFO server``.

    Raises UnsupportedServer for a server older than 6.2. An answer that makes no sense is UNKNOWN.
    """
    fields = dict(_fields(info))
    product: Product = "valkey" if fields.get("server_name") == "valkey" else "redis"
    version = _version(fields.get("valkey_version" if product == "valkey" else "redis_version", ""))
    if version is None:
        return UNKNOWN
    if version < FLOOR:
        shown = ".".join(map(str, version))
        raise UnsupportedServer(f"this is {product} {shown}; StreamQ needs Redis 6.2 or newer, or Valkey")
    uptime = fields.get("uptime_in_seconds", "")
    return Capabilities(product, version, int(uptime) if uptime.isdecimal() else None)


def _fields(info: bytes) -> list[tuple[str, str]]:
    lines = info.decode("utf-8", "replace").splitlines()
    return [(name, value) for name, colon, value in (line.partition(":") for line in lines) if colon]


def _version(text: str) -> Version | None:
    """Read "8.2.3" or "9.0.0-rc1"; None for what is no version."""
    numbers = [int(part) for part in text.partition("-")[0].split(".") if part.isdecimal()]
    if not numbers:
        return None
    major, minor, patch, *_ = (*numbers, 0, 0)
    return major, minor, patch
