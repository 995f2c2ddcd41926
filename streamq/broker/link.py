"""One event loop's way to the server: a connection, or the one attempt to open it.

Owns the states idle -> connecting -> connected -> idle (lost) ... -> closed. While connecting, requests
queue behind the one attempt, and all of them fail with it. Each attempt is bounded by ``connect_s``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from streamq.broker.address import Address
from streamq.broker.capabilities import INFO, UNKNOWN, Capabilities, read_info
from streamq.broker.dial import Timeouts
from streamq.broker.transport import AsyncConnection
from streamq.errors import PermissionDenied, ServerError, ServerTimeout, Unavailable

Use = Callable[[AsyncConnection], None]


class Link:
    """Opens a connection when ``use`` first needs one, and again after a loss.

    ``on_connect`` is called with the server's capabilities before the requests that waited go out.
    """

    def __init__(
        self, address: Address, timeouts: Timeouts, on_connect: Callable[[Capabilities], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.connection: AsyncConnection | None = None
        self._address = address
        self._timeouts = timeouts
        self._on_connect = on_connect
        self._attempt: asyncio.Task[AsyncConnection] | None = None
        self._waiting: list[tuple[asyncio.Future[Any], Use]] = []
        self._closed = False

    @property
    def connected(self) -> bool:
        return self.connection is not None and not self.connection.closed

    def use(self, future: asyncio.Future[Any], use: Use) -> None:
        """Call ``use`` with the connection, now or once it stands; ``future`` fails if it never does."""
        if self._closed:
            future.set_exception(self._closing())
        elif self.connection is not None and not self.connection.closed:
            use(self.connection)
        else:
            self._waiting.append((future, use))
            self._start()

    def close(self) -> None:
        """Fail what waits or is in flight, for good. May be called twice."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        if self.connection is not None:
            self.connection.close()

    async def wait_closed(self) -> None:
        """Wait until nothing is left behind."""
        if self._attempt is not None:
            await asyncio.wait([self._attempt])
            await asyncio.sleep(0)  # its callback comes after it
        if self.connection is not None:
            await self.connection.wait_closed()

    def _start(self) -> None:
        if self._attempt is None:
            self._attempt = self.loop.create_task(self._connect(), name="streamq-connect")
            self._attempt.add_done_callback(self._connected)

    async def _connect(self) -> AsyncConnection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                connection = await AsyncConnection.open(self._address, self._timeouts)
                try:
                    self._on_connect(await _probe(connection))
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError as error:
            if isinstance(error, ServerError):
                raise
            raise ServerTimeout(f"{self._address}: no connection within the time limit") from error
        return connection

    def _connected(self, attempt: asyncio.Task[AsyncConnection]) -> None:
        self._attempt = None
        waiting, self._waiting = self._waiting, []
        error = self._closing() if attempt.cancelled() else attempt.exception()
        if error is None:
            self.connection = attempt.result()
            if self._closed:
                self.connection.close()
        for future, use in waiting:
            if not future.done():
                self._serve(future, use, error)

    def _serve(self, future: asyncio.Future[Any], use: Use, error: BaseException | None) -> None:
        if error is not None or self.connection is None:
            future.set_exception(_copy(error or self._closing()))
            return
        try:
            use(self.connection)
        except Exception as failed:  # noqa: BLE001  # whatever it is, its waiter must hear of it
            future.set_exception(failed)

    def _closing(self) -> Unavailable:
        return Unavailable(f"{self._address}: closed by this program")


async def _probe(connection: AsyncConnection) -> Capabilities:
    try:
        return read_info(await connection.send(INFO))
    except PermissionDenied:
        return UNKNOWN


def _copy(error: BaseException) -> BaseException:
    """One attempt fails many requests, each with an error of its own: tracebacks would pile up in one."""
    if not isinstance(error, ServerError):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
