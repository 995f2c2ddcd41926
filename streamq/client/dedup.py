"""Dedup keys: what two tasks must have in common to be one, as a short text that tells nothing of it.

A key is the hash of canonical CBOR (RFC 8949, 4.2), so the order in which a map was filled does not
matter. With a secret it is a keyed hash: whoever reads Redis cannot try out arguments.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from streamq.codec import check_value, encode_canonical
from streamq.errors import OptionError
from streamq.model.unique import Unique

_BYTES = 15
"""Of the hash: 120 bits, 20 characters. Two of a billion keys are the same with a chance of 10^-18."""


class KeyMaker:
    """Makes the keys of tasks of one type with the same ``unique`` option."""

    __slots__ = ("_key", "_parameters", "_secret", "_type")

    def __init__(
        self, unique: Unique, task_type: str, parameters: tuple[str, ...] | None, secret: bytes | None
    ) -> None:
        """``parameters`` are the handler's by position, where it is known here; None where it is not."""
        self._key = unique.key
        self._type = task_type
        self._parameters = parameters
        self._secret = secret

    def make(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The key of a task with these arguments, which have been checked.

        Raises OptionError, and PayloadError for what a function returns.
        """
        encoded = encode_canonical([self._type, self._what(args, kwargs)], "unique.key")
        if self._secret is None:
            digest = hashlib.sha256(encoded).digest()
        else:
            digest = hmac.digest(self._secret, encoded, "sha256")
        return urlsafe_b64encode(digest[:_BYTES]).decode()

    def _what(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
        key = self._key
        if key is None:
            extra, named = self._bound(args, kwargs)
            return [extra, named] if extra else named
        if isinstance(key, str):
            return [key]
        if callable(key):
            return [_called(key, args, kwargs)]
        return [_picked(key, self._bound(args, kwargs)[1])]

    def _bound(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments by name, as far as the names are known, so that f(1) and f(a=1) are one."""
        if not args or not self._parameters:
            return args, dict(kwargs)
        known = len(self._parameters)
        return args[known:], {**dict(zip(self._parameters, args, strict=False)), **kwargs}


def _picked(names: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that matter. One that is missing is more likely a misspelling than meant."""
    for name in names:
        if name not in named:
            raise OptionError("unique.key", f"the call has no argument {name!r} to be unique by")
    return {name: named[name] for name in names}


def _called(key: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    try:
        value = key(*args, **kwargs)
    except Exception as error:
        # The text of the cause may show arguments, so only its class is named; the cause has it all.
        raise OptionError("unique.key", f"the function raised {type(error).__name__}") from error
    check_value(value, "unique.key")
    return value
