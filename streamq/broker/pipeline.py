"""Several Commands in one write: what to send, what to send again, what came of it. No I/O.

A script that the server does not know fails alone, its neighbours run. So only what reported NOSCRIPT
is called again, behind the loading of its script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamq.broker.command import Command, pack
from streamq.broker.refusals import NoScript
from streamq.broker.scripts import Script
from streamq.errors import StreamQError


class Pipeline:
    """One batch of Commands on its way through a connection.

    Send ``packed()``, give the replies to ``take``. When it says so, send ``packed_again()`` and give
    those replies to ``take_again``. Then ``results``.
    """

    def __init__(self, commands: Sequence[Command[Any]]) -> None:
        self._commands = commands
        self._replies: list[Any] = []
        self._again: list[int] = []
        self._scripts: list[Script] = []

    def packed(self) -> tuple[bytes, int]:
        """The bytes of one write, and how many replies they get."""
        return b"".join([command.pack() for command in self._commands]), len(self._commands)

    def take(self, replies: list[Any]) -> bool:
        """Take the replies; whether some scripts must be loaded and called again."""
        self._replies = replies
        self._again = [place for place, reply in enumerate(replies) if type(reply) is NoScript]
        if self._again:
            first, missing = self._again[0], set(self._again)
            self._again = [
                place
                for place in range(first, len(replies))
                if place in missing or self._commands[place].follows
            ]
        scripts = (self._commands[place].script for place in self._again)
        self._scripts = list(dict.fromkeys(script for script in scripts if script is not None))
        return bool(self._scripts)

    def packed_again(self) -> tuple[bytes, int]:
        """The scripts to load, and behind them the calls that found them missing."""
        loads = [pack((b"SCRIPT", b"LOAD", script.source)) for script in self._scripts]
        calls = [self._commands[place].pack() for place in self._again]
        return b"".join(loads + calls), len(loads) + len(calls)

    def take_again(self, replies: list[Any]) -> None:
        """Take the replies to ``packed_again``. A refusal to load explains a script still missing."""
        loaded, called = replies[: len(self._scripts)], replies[len(self._scripts) :]
        refused = next((reply for reply in loaded if isinstance(reply, Exception)), None)
        for place, reply in zip(self._again, called, strict=True):
            missing = type(reply) is NoScript and refused is not None
            self._replies[place] = refused if missing else reply

    def results(self) -> list[Any]:
        """One item per Command, in order: what its parser makes of the reply, or the error."""
        return [_result(*pair) for pair in zip(self._commands, self._replies, strict=True)]


def _result(command: Command[Any], reply: Any) -> Any:
    if isinstance(reply, Exception):
        return reply
    try:
        return command.parse(reply)
    except StreamQError as error:
        return error
