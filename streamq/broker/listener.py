"""Listens to channels: hints that something is worth a look, for asyncio code.

Owns which channels are wanted, and the connection that carries them. Messages are hints: those sent
while no connection stood are lost. So ``on_connect`` is called whenever the subscriptions stand
(again), and who listens looks by itself then.

An outage is quiet: one log line when it begins and one when it ends, and attempts that grow apart.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable

from streamq.broker.address import Address
from streamq.broker.dial import Timeouts
from streamq.broker.push import PushConnection
from streamq.errors import ServerError, StreamQError, Unavailable

OnMessage = Callable[[bytes, bytes], None]

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0

_log = logging.getLogger("streamq.listener")


class Listener:
    """Calls ``on_message(channel, payload)`` on the event loop for each message on the channels subscribed.

    It connects with the first ``subscribe``, and again after each loss until ``aclose``.
    """

    def __init__(
        self,
        address: Address,
        on_message: OnMessage,
        *,
        on_connect: Callable[[], None] | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.address = address
        self._on_message = on_message
        self._on_connect = on_connect
        self._timeouts = timeouts or Timeouts()
        self._task: asyncio.Task[None] | None = None
        self._connection: PushConnection | None = None
        self._failures = 0
        self._closed = asyncio.Event()
        self._wanted: set[bytes] = set()
        self._standing: set[bytes] = set()
        self._asked: Counter[bytes] = Counter()  # SUBSCRIBEs sent and not yet confirmed
        self._confirming: dict[bytes, asyncio.Future[StreamQError | None]] = {}
        self._returning: set[bytes] = set()  # what must stand before on_connect is called

    async def subscribe(self, *channels: bytes) -> None:
        """Return when the channels stand: from then on nothing sent there is missed while connected.

        Waits through an outage. Raises ServerError when the server refuses; the channels are wanted
        all the same, and asked for again with the next connection.
        """
        if self._closed.is_set():
            raise self._closing()
        self._start()
        missing = [channel for channel in channels if channel not in self._standing]
        futures = [self._confirmation(channel) for channel in missing]
        # One asked for and then unwanted has an UNSUBSCRIBE behind its SUBSCRIBE: it is asked for again.
        unasked = [c for c in missing if c not in self._asked or c not in self._wanted]
        self._wanted.update(missing)
        if unasked and self._connection is not None:
            self._ask(self._connection, unasked)
        for future in futures:
            error = await asyncio.shield(future)
            if error is not None:
                raise error

    def unsubscribe(self, *channels: bytes) -> None:
        """Want the channels no more. At most a message already under way still comes."""
        for channel in channels:
            self._wanted.discard(channel)
            self._standing.discard(channel)
            self._settle(channel, None)
            if self._connection is not None:
                self._connection.unsubscribe(channel)

    async def wait_closed(self) -> None:
        """Wait until somebody calls ``aclose``."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """Stop for good. May be called twice."""
        self._closed.set()
        self._leave_another_loop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for channel in list(self._confirming):
            self._settle(channel, self._closing())

    # The connection

    def _start(self) -> None:
        self._leave_another_loop()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="streamq-listener")

    def _leave_another_loop(self) -> None:
        """After a fork, or in a second ``asyncio.run``: begin anew, and leave the old to its owner."""
        if self._task is not None and self._task.get_loop() is not asyncio.get_running_loop():
            _of_other_loops.append((self._task, self._connection))
            self._task = self._connection = None
            self._forget()
            self._confirming.clear()

    def _forget(self) -> None:
        """What was true of a connection."""
        self._standing.clear()
        self._asked.clear()
        self._returning.clear()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except StreamQError as error:
                self._note_failure(error)
            except Exception:  # noqa: BLE001  # it must outlive its own faults; they are logged
                _log.exception("the listener failed")
                self._failures += 1
            await asyncio.sleep(_wait_s(self._failures))

    async def _listen(self) -> None:
        """One connection, from its opening to its end."""
        connection = await PushConnection.open(self.address, self._timeouts)
        try:
            connection.on_message = self._hear
            connection.on_subscribed = self._confirm
            connection.on_refused = self._refuse
            self._connection = connection
            self._returning = set(self._wanted)
            if self._wanted:
                self._ask(connection, list(self._wanted))
            else:
                self._returned()
            await asyncio.wait([connection.gone])
        finally:
            self._connection = None
            self._forget()
            connection.close()
            await connection.wait_closed()
        raise Unavailable(f"{self.address}: the connection was lost")

    def _ask(self, connection: PushConnection, channels: list[bytes]) -> None:
        self._asked.update(channels)
        connection.subscribe(channels)

    def _note_failure(self, error: StreamQError) -> None:
        self._failures += 1
        if self._failures == 1:
            _log.warning("connection lost, trying again: %s", error)
        if not isinstance(error, Unavailable):  # time alone does not heal it: tell who waits
            for channel in list(self._confirming):
                self._settle(channel, error)

    # What the server says

    def _hear(self, channel: bytes, payload: bytes) -> None:
        if channel in self._wanted:
            _guarded(self._on_message, channel, payload)

    def _confirm(self, channel: bytes) -> None:
        self._asked[channel] -= 1
        if self._asked[channel] > 0:
            return  # an UNSUBSCRIBE and another SUBSCRIBE are behind this one
        del self._asked[channel]
        if channel in self._wanted:
            self._standing.add(channel)
            self._settle(channel, None)

    def _refuse(self, error: ServerError) -> None:
        """The server does not say which channel it means: all that are not confirmed may be."""
        _log.warning("subscription refused: %s", error)
        for channel in list(self._asked):
            self._settle(channel, error)
        self._asked.clear()

    def _confirmation(self, channel: bytes) -> asyncio.Future[StreamQError | None]:
        future = self._confirming.get(channel)
        if future is None:
            future = self._confirming[channel] = asyncio.get_running_loop().create_future()
        return future

    def _settle(self, channel: bytes, error: StreamQError | None) -> None:
        """The question whether a channel stands is answered, or no longer asked."""
        future = self._confirming.pop(channel, None)
        if future is not None and not future.done():
            future.set_result(error)
        if channel in self._returning:
            self._returning.discard(channel)
            if not self._returning:
                self._returned()

    def _returned(self) -> None:
        if self._failures:
            _log.info("connection restored after %d failures", self._failures)
        self._failures = 0
        if self._on_connect is not None:
            _guarded(self._on_connect)

    def _closing(self) -> Unavailable:
        return Unavailable(f"{self.address}: closed by this program")


# Tasks and connections of a loop that is not ours to touch; collecting them would close them.
_of_other_loops: list[tuple[asyncio.Task[None], PushConnection | None]] = []


def _wait_s(failures: int) -> float:
    """Half to all of a time that doubles with each failure: a fleet must not come back in step."""
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(failures, 10))
    return random.uniform(longest / 2, longest)


def _guarded(call: Callable[..., None], *args: bytes) -> None:
    """A listener's fault must not end the connection of the others."""
    try:
        call(*args)
    except Exception:  # noqa: BLE001  # whatever it is, it is logged
        _log.exception("a callback failed")
