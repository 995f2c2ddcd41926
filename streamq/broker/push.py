"""A connection that has subscribed: the server speaks unasked, in RESP2's three-word messages.

Owns the words of SUBSCRIBE and what comes back, and notices a server that has fallen silent. Which
channels are wanted, and what to do after a loss, is the listener's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from streamq.broker.command import pack
from streamq.broker.dial import Timeouts
from streamq.broker.transport import AsyncConnection
from streamq.errors import ServerError, ServerTimeout

# A half-open connection carries no messages and reports no end: it is asked after this long.
PING_AFTER_S = 30.0


class PushConnection(AsyncConnection):
    """A connection in subscribe mode. Set the callbacks before the first SUBSCRIBE.

    ``on_message(channel, payload)`` for each message, ``on_subscribed(channel)`` for each channel that
    stands, ``on_refused(error)`` when the server refuses a SUBSCRIBE.
    """

    on_message: Callable[[bytes, bytes], None]
    on_subscribed: Callable[[bytes], None]
    on_refused: Callable[[ServerError], None]

    def __init__(self, writer: asyncio.StreamWriter, timeouts: Timeouts, name: str) -> None:
        super().__init__(writer, timeouts, name)
        self._heard = True
        self._pulse = self.loop.call_later(PING_AFTER_S, self._check)

    def subscribe(self, channels: Iterable[bytes]) -> None:
        """Ask for channels; ``on_subscribed`` tells of each."""
        self._say((b"SUBSCRIBE", *channels))

    def unsubscribe(self, channel: bytes) -> None:
        """Want a channel no more."""
        self._say((b"UNSUBSCRIBE", channel))

    def _say(self, words: tuple[bytes, ...]) -> None:
        if not self.closed:
            self._transport.write(pack(words))

    def _answer(self, reply: Any) -> None:
        self._heard = True
        match reply:
            case [b"message", channel, payload]:
                self.on_message(channel, payload)
            case [b"subscribe", channel, _]:
                self.on_subscribed(channel)
            case ServerError():
                self.on_refused(reply)
            case _:  # unsubscribe, pong
                pass

    def _check(self) -> None:
        """Ask a server that has said nothing for a while whether it is still there."""
        if self._heard:
            self._heard = False
            self._pulse = self.loop.call_later(PING_AFTER_S, self._check)
        else:
            self._say((b"PING",))
            self._pulse = self.loop.call_later(self._timeouts.reply_s, self._check_answer)

    def _check_answer(self) -> None:
        if self._heard:
            self._check()
        else:
            self._lose("no answer within the time limit", ServerTimeout)

    def _end(self, why: str, kind: type[Any]) -> None:
        self._pulse.cancel()
        super()._end(why, kind)
