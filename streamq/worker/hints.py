"""Listens to hints: something is due earlier than known, a queue was paused or resumed, a task cancelled.

Hints only make things quicker. One that is lost delays, because every component also looks by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from streamq.broker.address import Address
from streamq.broker.keys import QueueKeys
from streamq.broker.listener import Listener
from streamq.errors import ServerError

log = logging.getLogger("streamq.hints")

_CANCEL = b"cancel "


class Hints:
    """The subscription of one worker."""

    def __init__(
        self,
        address: Address,
        orders: str,
        queues: Iterable[QueueKeys],
        *,
        on_due: Callable[[], None],
        on_paused: Callable[[str, bool], None],
        on_cancelled: Callable[[str, bytes], None],
        on_order: Callable[[], None],
    ) -> None:
        self._orders = orders.encode()
        self._queues = {queue.hints.encode(): queue.name for queue in queues}
        self._on_due = on_due
        self._on_paused = on_paused
        self._on_cancelled = on_cancelled
        self._on_order = on_order
        # After a reconnect hints may have been missed: looking again is what each of them asks for.
        self._listener = Listener(address, self._on_message, on_connect=on_due)

    async def run(self) -> None:
        """Listen until cancelled; reconnecting is the listener's business."""
        try:
            try:
                await self._listener.subscribe(self._orders, *self._queues)
            except ServerError as error:
                log.warning("no hints; tasks may start a few seconds late error=%s", error)
            await self._listener.wait_closed()
        finally:
            await self._listener.aclose()

    def _on_message(self, channel: bytes, hint: bytes) -> None:
        if channel == self._orders:
            self._on_order()
        elif hint == b"due":
            self._on_due()
        elif hint in {b"pause", b"resume"}:
            self._on_paused(self._queues[channel], hint == b"pause")
        elif hint.startswith(_CANCEL):
            self._on_cancelled(self._queues[channel], hint.removeprefix(_CANCEL))
