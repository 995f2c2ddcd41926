"""Commands by which workers are told from outside to take no more tasks, or to end.

An order stands in a hash, with the server's time at which it was given. It counts for workers that were
there by then: one that starts later, under whatever id, is not meant.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from streamq.broker.command import Command
from streamq.broker.keys import Keys

ALL = "*"
"""The field of orders to all workers. No worker may have this id."""
_KEPT_S = 86_400
"""Orders are read within seconds. Those to workers that have died go with the last order to anybody."""


class Verb(StrEnum):
    """What a worker is told."""

    QUIET = "quiet"
    """Take no more tasks."""
    DRAIN = "drain"
    """Take no more, and end when everything that runs has ended."""
    STOP = "stop"
    """Take no more, and end within the grace period."""


class Order(NamedTuple):
    """What a worker is told, and when."""

    verb: Verb
    given_ms: int


def order(keys: Keys, worker_id: str, verb: Verb, now_ms: int) -> list[Command[Any]]:
    """Tell a worker, or ``ALL``. ``now_ms`` is Redis's time. The last order to the same one counts."""
    key = keys.orders
    return [
        Command(None, (key,), ("HSET", key, worker_id, f"{verb} {now_ms}"), int),
        Command(None, (key,), ("EXPIRE", key, _KEPT_S), int),
        Command(None, (), ("PUBLISH", keys.hints, "order"), int),
    ]


def orders(keys: Keys, worker_id: str) -> Command[list[Order]]:
    """What this worker and all workers have been told."""
    return Command(None, (keys.orders,), ("HMGET", keys.orders, worker_id, ALL), _parse)


def forget_orders(keys: Keys, worker_id: str) -> Command[int]:
    """What this worker was told, as the last thing that it does."""
    return Command(None, (keys.orders,), ("HDEL", keys.orders, worker_id), int)


def _parse(reply: Any) -> list[Order]:
    return [order for value in reply if (order := _read(value)) is not None]


def _read(value: bytes | None) -> Order | None:
    """None also for what a newer version may have written."""
    verb, _, given_ms = (value or b"").decode("ascii", "replace").partition(" ")
    if verb not in set(Verb) or not given_ms.isdigit():
        return None
    return Order(Verb(verb), int(given_ms))
