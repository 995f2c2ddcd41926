"""Runs Commands from asyncio code: connects when first needed, and again after a loss.

Owns one connection, the single attempt to open it, and the requests that wait for that attempt.
It never sends a request again whose reply was lost: whether it ran is unknown, and callers know
whether a repeat is safe.

States: idle -> connecting -> connected -> idle (lost) ... -> closed. While connecting, requests queue
behind the one attempt, and all of them fail with it. Each attempt is bounded by ``connect_s``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from streamq.broker.address import Address
from streamq.broker.capabilities import INFO, UNKNOWN, Capabilities, read_info
from streamq.broker.command import Command, pack
from streamq.broker.dial import Timeouts
from streamq.broker.refusals import NoScript
from streamq.broker.transport import AsyncConnection, pack_all
from streamq.errors import PermissionDenied, ServerError, ServerTimeout, StreamQError, Unavailable

T = TypeVar("T")

_Waiting = tuple["asyncio.Future[Any]", Command[Any], float | None]


class AsyncRunner:
    """Runs Commands on one pipelined connection.

    ``connections_made`` grows by one with each connection: a caller that compares it notices a loss.
    ``on_connect`` is called after each one.

    A runner may be used from another event loop than before, or in a forked child: it leaves the old
    connection alone and opens a new one.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeouts: Timeouts | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self.capabilities: Capabilities = UNKNOWN
        self.connections_made = 0
        self.on_connect = on_connect
        self._timeouts = timeouts or Timeouts()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._connection: AsyncConnection | None = None
        self._connecting: asyncio.Task[AsyncConnection] | None = None
        self._waiting: list[_Waiting] = []
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether a connection stands; the next request may still find it lost."""
        return self._connection is not None and not self._connection.closed

    async def run(self, command: Command[T], *, limit_s: float | None = None) -> T:
        """Run one Command and return what its parser makes of the reply.

        ``limit_s`` bounds the wait for the reply; a blocking read gives its block time plus a margin.
        Raises ServerError.
        """
        return await self.post(command, limit_s=limit_s)

    def post(self, command: Command[T], *, limit_s: float | None = None) -> asyncio.Future[T]:
        """The same without a Task: sent before this returns when a connection stands."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        connection = self._connection
        if connection is not None and not connection.closed and self._loop is loop:
            connection.post(command, future, limit_s=limit_s)
        else:
            self._queue(loop, future, command, limit_s)
        return future

    async def run_all(self, commands: Sequence[Command[Any]], *, limit_s: float | None = None) -> list[Any]:
        """Run several Commands in one write; one result each, in order, errors as items.

        Raises Unavailable when there is no connection or it was lost: none or all may have run.
        """
        if not commands:
            return []
        connection = await self.connect()
        replies = await connection.send_many(pack_all(commands), len(commands), limit_s=limit_s)
        again = [place for place, reply in enumerate(replies) if type(reply) is NoScript]
        if again:
            await self._call_again(connection, commands, replies, again, limit_s)
        return [_parsed(command, reply) for command, reply in zip(commands, replies, strict=True)]

    async def connect(self) -> AsyncConnection:
        """The connection, opened first where none stands. Raises AddressError or ServerError."""
        loop = asyncio.get_running_loop()
        connection = self._connection
        if connection is not None and not connection.closed and self._loop is loop:
            return connection
        return await asyncio.shield(self._attempt(loop))

    async def aclose(self) -> None:
        """Close for good: requests in flight fail, nothing is left behind. May be called twice."""
        self._closed = True
        self._settle_in(asyncio.get_running_loop())
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
            await asyncio.sleep(0)  # its callback comes after it
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()

    # Connecting

    def _queue(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        command: Command[Any],
        limit_s: float | None,
    ) -> None:
        try:
            self._attempt(loop)
        except Unavailable as error:
            future.set_exception(error)
        else:
            self._waiting.append((future, command, limit_s))

    def _attempt(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[AsyncConnection]:
        """The one attempt to connect that is under way, started here if there is none."""
        if self._closed:
            raise Unavailable(f"{self.address}: closed by this program")
        self._settle_in(loop)
        if self._connecting is None:
            self._connecting = loop.create_task(self._connect(), name="streamq-connect")
            self._connecting.add_done_callback(self._connected)
        return self._connecting

    async def _connect(self) -> AsyncConnection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                connection = await AsyncConnection.open(self.address, self._timeouts)
                try:
                    self.capabilities = await _probe(connection)
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError as error:
            if isinstance(error, ServerError):
                raise
            raise ServerTimeout(f"{self.address}: no connection within the time limit") from error
        return connection

    def _connected(self, attempt: asyncio.Task[AsyncConnection]) -> None:
        if attempt is not self._connecting:
            return  # of another loop's life
        self._connecting = None
        waiting, self._waiting = self._waiting, []
        error = self._accept(attempt)
        for future, command, limit_s in waiting:
            if not future.done():
                self._send_or_fail(future, command, limit_s, error)
        if error is None and self.on_connect is not None:
            self.on_connect()

    def _accept(self, attempt: asyncio.Task[AsyncConnection]) -> BaseException | None:
        """Take the attempt's connection over, or tell why there is none."""
        if attempt.cancelled():
            return Unavailable(f"{self.address}: closed by this program")
        error = attempt.exception()
        if error is None:
            self._connection = attempt.result()
            self.connections_made += 1
        return error

    def _send_or_fail(
        self,
        future: asyncio.Future[Any],
        command: Command[Any],
        limit_s: float | None,
        error: BaseException | None,
    ) -> None:
        if error is not None or self._connection is None:
            future.set_exception(_copy(error or Unavailable(f"{self.address}: the connection was lost")))
            return
        try:
            self._connection.post(command, future, limit_s=limit_s)
        except Exception as failed:  # noqa: BLE001  # whatever it is, its waiter must hear of it
            future.set_exception(failed)

    def _settle_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop and process. What belonged to another is left to it, untouched."""
        if self._loop is loop:
            return
        old, left = self._loop, self._connection
        self._connection = self._connecting = None
        self._waiting = []
        if left is not None and self._pid != os.getpid():
            _left_to_the_parent.append(left)
        elif left is not None and old is not None and not old.is_closed():
            old.call_soon_threadsafe(left.close)
        self._loop, self._pid = loop, os.getpid()

    # Scripts

    async def _call_again(
        self,
        connection: AsyncConnection,
        commands: Sequence[Command[Any]],
        replies: list[Any],
        places: list[int],
        limit_s: float | None,
    ) -> None:
        """Load what the server did not know, and call just that again."""
        sources = {script.source for place in places if (script := commands[place].script) is not None}
        loads = b"".join(pack((b"SCRIPT", b"LOAD", source)) for source in sources)
        calls = pack_all([commands[place] for place in places])
        answers = await connection.send_many(loads + calls, len(sources) + len(places), limit_s=limit_s)
        refused = next((item for item in answers[: len(sources)] if isinstance(item, Exception)), None)
        for place, answer in zip(places, answers[len(sources) :], strict=True):
            replies[place] = refused if refused and type(answer) is NoScript else answer


# Connections of a parent process: closing them here would disturb its event loop.
_left_to_the_parent: list[AsyncConnection] = []


async def _probe(connection: AsyncConnection) -> Capabilities:
    try:
        return read_info(await connection.send(INFO))
    except PermissionDenied:
        return UNKNOWN


def _parsed(command: Command[T], reply: Any) -> T | Exception:
    if isinstance(reply, Exception):
        return reply
    try:
        return command.parse(reply)
    except StreamQError as error:
        return error


def _copy(error: BaseException) -> BaseException:
    """One attempt fails many requests, each with an error of its own: tracebacks would pile up in one."""
    if not isinstance(error, ServerError):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
