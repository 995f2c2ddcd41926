"""Who on one event loop waits for which task, woken when a worker settles it.

Owns the listener, made when first needed. A notice is a hint: it says "look now" and carries nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streamq.broker.address import Address
from streamq.broker.dial import Timeouts
from streamq.broker.listener import Listener
from streamq.errors import ServerError, Unavailable


class Notice:
    """One wait for one channel."""

    __slots__ = ("_woken", "closed")

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self.closed = False

    def wake(self) -> None:
        self._woken.set()

    def forget(self) -> None:
        """Nothing said so far matters: a look follows."""
        self._woken.clear()

    async def wait(self, seconds: float) -> None:
        """Return when there is reason to look, or when the time is over.

        Raises Unavailable when the client is closed meanwhile.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self.forget()
        if self.closed:
            raise Unavailable("the client was closed while it waited for a result")


class Notices:
    """The channels that somebody on this loop waits for."""

    def __init__(self, address: Address, timeouts: Timeouts) -> None:
        self._address = address
        self._timeouts = timeouts
        self._listener: Listener | None = None
        self._waiting: dict[bytes, set[Notice]] = {}

    @asynccontextmanager
    async def of(
        self, channel: bytes, within_s: float, notice: Notice | None = None
    ) -> AsyncIterator[Notice]:
        """Have the channel subscribed for the length of the block, so that no notice after it is missed.

        ``within_s`` is the longest wait for the subscription; without it, the waiter's own looks carry
        the wait. ``notice`` is one that other channels wake, too.
        """
        notice = Notice() if notice is None else notice
        sharing = self._waiting.setdefault(channel, set())
        sharing.add(notice)
        try:
            await self._subscribe(channel, within_s)
            notice.forget()
            yield notice
        finally:
            sharing.discard(notice)
            if not sharing and self._waiting.get(channel) is sharing:
                del self._waiting[channel]
                if self._listener is not None:
                    self._listener.unsubscribe(channel)

    async def aclose(self) -> None:
        """Stop listening, and end every wait. May be called twice."""
        if self._listener is not None:
            await self._listener.aclose()
        for sharing in self._waiting.values():
            for notice in sharing:
                notice.closed = True
        self._wake_all()

    async def _subscribe(self, channel: bytes, within_s: float) -> None:
        if self._listener is None:
            self._listener = Listener(
                self._address, self._wake, on_connect=self._wake_all, timeouts=self._timeouts
            )
        try:
            async with asyncio.timeout(within_s):
                await self._listener.subscribe(channel)
        except (TimeoutError, ServerError):
            return

    def _wake(self, channel: bytes, payload: bytes) -> None:
        for notice in self._waiting.get(channel, ()):
            notice.wake()

    def _wake_all(self) -> None:
        for sharing in self._waiting.values():
            for notice in sharing:
                notice.wake()
