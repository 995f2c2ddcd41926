"""Commands of semaphores: permits that programs hold, each with a lease by Redis's clock."""

from __future__ import annotations

from streamq.broker.command import Command
from streamq.broker.scripts import script


def acquire(key: bytes, token: str, limit: int, lease_ms: int) -> Command[int]:
    """Take a permit. Answers 0 when it is taken, else ms until the first lease held now ends.

    Safe to send again under the same token.
    """
    return Command(script("acquire"), (key,), (token, limit, lease_ms), int)


def renew(key: bytes, token: str, lease_ms: int) -> Command[bool]:
    """Begin the lease anew. False: the permit is lost."""
    return Command(script("renew"), (key,), (token, lease_ms), bool)


def free(key: bytes, token: str) -> Command[bool]:
    """Give the permit back. False: it was not held any more."""
    return Command(None, (key,), ("ZREM", key, token), bool)
