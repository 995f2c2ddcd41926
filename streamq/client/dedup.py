"""Dedup keys: what two tasks must have in common to be one, as a short text that tells nothing of it.

A key is the hash of canonical CBOR (RFC 8949, 4.2), so the order in which a map was filled does not
matter. With a secret it is a keyed hash: whoever reads Redis cannot try out arguments.
"""

from __future__ import annotations

import hashlib
import hmac
from binascii import b2a_base64
from collections.abc import Iterator, Mapping
from typing import Any

from streamq.codec import Chosen, check_value, encode_canonical, encode_chosen
from streamq.errors import OptionError
from streamq.model.unique import Unique

_BYTES = 15
"""Of the hash: 120 bits, 20 characters. Two of a billion keys are the same with a chance of 10^-18."""
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_PLANS_KEPT = 64
_KINDS = {type(None): b"a", tuple: b"n", str: b"t"}
"""So that the same text means something else as a key and as an argument; b"f" for functions."""


class KeyMaker:
    """Makes the keys of tasks of one type with the same ``unique`` option."""

    __slots__ = ("_hash", "_key", "_parameters", "_plans", "_secret")

    def __init__(
        self, unique: Unique, task_type: str, parameters: tuple[str, ...] | None, secret: bytes | None
    ) -> None:
        """``parameters`` are the handler's by position, where it is known here; None where it is not."""
        self._key = unique.key
        kind = _KINDS.get(type(unique.key), b"f")
        self._hash = hashlib.sha256(encode_canonical(task_type, "type") + kind)
        self._parameters = parameters or ()
        self._secret = secret
        # By the number of arguments, and the names of those passed by name where there are some.
        self._plans: dict[int | tuple[int, tuple[str, ...]], Chosen] = {}

    def make(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The key of a task with these arguments, which have been checked.

        Raises OptionError, and PayloadError for what a function returns.
        """
        hashed = self._hash.copy()
        hashed.update(self._what(args, kwargs))
        digest = hashed.digest()
        if self._secret is not None:
            digest = hmac.digest(self._secret, digest, "sha256")
        return b2a_base64(digest[:_BYTES], newline=False).translate(_URL_SAFE)

    def _what(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """What the task is unique by."""
        key = self._key
        if key is None or type(key) is tuple:
            shape = (len(args), tuple(kwargs)) if kwargs else len(args)
            plan = self._plans.get(shape)
            if plan is None:
                plan = self._make_plan(shape, len(args), tuple(kwargs))
            return encode_chosen(plan, {**dict(enumerate(args)), **kwargs} if kwargs else args, "unique.key")
        if isinstance(key, str):
            return key.encode()
        return encode_canonical(_called(key, args, kwargs), "unique.key")

    def _make_plan(self, shape: Any, given: int, keywords: tuple[str, ...]) -> Chosen:
        """Arguments by name, as far as the names are known, so that f(1) and f(a=1) are one.

        What has no name has its place for one.
        """
        known = self._parameters[:given]
        places: dict[str | int, int | str] = {name: place for place, name in enumerate(known)}
        places.update((place, place) for place in range(len(known), given))
        places.update((name, name) for name in keywords)
        if self._key is not None:
            places = {name: places[name] for name in _existing(self._key, places)}
        if len(self._plans) >= _PLANS_KEPT:
            self._plans.clear()
        plan = [(encode_canonical(name, "unique.key"), places[name]) for name in sorted(places, key=str)]
        self._plans[shape] = plan
        return plan


def _existing(names: Any, places: Mapping[str | int, Any]) -> Iterator[str]:
    """The arguments that matter. One that is missing is more likely a misspelling than meant."""
    for name in names:
        if name not in places:
            raise OptionError("unique.key", f"the call has no argument {name!r} to be unique by")
        yield name


def _called(key: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    try:
        value = key(*args, **kwargs)
    except Exception as error:
        # The text of the cause may show arguments, so only its class is named; the cause has it all.
        raise OptionError("unique.key", f"the function raised {type(error).__name__}") from error
    check_value(value, "unique.key")
    return value
