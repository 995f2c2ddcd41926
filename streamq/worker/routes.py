"""From the type of a task to its definition: exact names, then the longest pattern that fits.

A pattern is a prefix and a star: ``email:*`` takes every type that begins with ``email:``. What a
pattern or nobody answered for is remembered, so that the common way is one look into a dict.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamq.errors import HandlerNotFound
from streamq.model.definition import Definition
from streamq.model.names import STAR, longest_pattern
from streamq.model.retry import DEFAULT_RETRY

_MOST_REMEMBERED = 1_024
"""Types come from producers: a flood of new ones must not fill the memory."""


class Routes(dict[str, Definition]):
    """The definitions of one worker by type. ``routes[type]`` always answers."""

    def __init__(self, definitions: Mapping[str, Definition]) -> None:
        super().__init__({name: one for name, one in definitions.items() if not name.endswith(STAR)})
        self._patterns = {name: one for name, one in definitions.items() if name.endswith(STAR)}
        self._remembered: list[str] = []

    def __missing__(self, name: str) -> Definition:
        if len(self._remembered) >= _MOST_REMEMBERED:
            for old in self._remembered:
                del self[old]
            self._remembered.clear()
        self._remembered.append(name)
        definition = self[name] = self._find(name)
        return definition

    def _find(self, name: str) -> Definition:
        pattern = longest_pattern(name, self._patterns)
        return unknown(name) if pattern is None else self._patterns[pattern]


def unknown(name: str) -> Definition:
    """A definition for a type nobody registered: each attempt fails; a deploy in progress loses nothing."""

    async def missing(*_args: object, **_kwargs: object) -> None:
        raise HandlerNotFound(
            f"no handler for {name!r} in this worker; register it or route it to another queue"
        )

    return Definition(name, missing, is_async=True, retry=DEFAULT_RETRY, timeout_ms=None, retention_ms=0)
