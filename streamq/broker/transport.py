"""One connection for asyncio code: requests out, replies in, in order.

Owns the bytes between the hand-over by ``dial`` and the reply. Many requests may be in flight:
replies come back in the order of the requests. It never connects again (the runner does) and never
sends a request twice, except to a server that answered "I do not know that script".

What happens on failure: a lost, silent or garbled connection fails every request in flight with
Unavailable, once, and is closed for good. Whether those requests ran is unknown; the caller decides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar, cast

import hiredis

from streamq.broker.address import Address
from streamq.broker.command import Command, pack
from streamq.broker.dial import Timeouts, dial
from streamq.broker.refusals import NoScript, refusal
from streamq.broker.scripts import Script
from streamq.errors import ServerError, ServerTimeout, Unavailable

T = TypeVar("T")
Parse = Callable[[Any], Any]
# The future, how many replies it gathers (0: one, bare), its time limit, its parser, its command.
_Request = tuple["asyncio.Future[Any]", int, float, Parse | None, Command[Any] | None]

# A loop that was blocked finds the timer due before it has read what arrived meanwhile: the watchdog
# looks again after this long before it gives a connection up.
_SECOND_LOOK_S = 0.1
# How long a polite close may take before the socket is simply dropped.
_CLOSE_S = 1.0


class _Reader(Protocol):
    """What this file uses of hiredis, which ships no types for it."""

    def feed(self, data: bytes) -> None: ...
    def gets(self) -> Any: ...


NOTHING = object()


def new_reader() -> _Reader:
    """A parser of replies: bytes stay bytes, errors become typed exceptions, as values."""
    return cast("_Reader", hiredis.Reader(protocolError=_Garbled, replyError=refusal, notEnoughData=NOTHING))


class _Garbled(Unavailable):
    def __init__(self, text: str) -> None:
        super().__init__(f"the answer is not the Redis protocol: {text}")


class AsyncConnection(asyncio.Protocol):
    """A pipelined connection that belongs to one event loop.

    ``closed`` says that it takes no more requests; ``gone`` is done when its socket is closed too.
    """

    def __init__(self, writer: asyncio.StreamWriter, timeouts: Timeouts, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = name
        self.closed = False
        self._timeouts = timeouts
        self._reply_s = timeouts.reply_s
        # The writer is kept because it closes its transport when it is collected.
        self._writer = writer
        self._transport = cast("asyncio.Transport", writer.transport)
        self._reader = new_reader()
        self._pending: deque[_Request] = deque()
        self._gathered: list[Any] = []
        self._latest = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._watch_at = 0.0
        self._suspect: asyncio.Future[Any] | None = None
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, address: Address, timeouts: Timeouts | None = None) -> Self:
        """Connect and log in. Raises AddressError or ServerError."""
        timeouts = timeouts or Timeouts()
        return cls(await dial(address, timeouts), timeouts, str(address))

    @property
    def in_flight(self) -> int:
        """How many requests wait for their replies."""
        return len(self._pending)

    # Requests

    def send(self, packed: bytes, *, limit_s: float | None = None) -> asyncio.Future[Any]:
        """Send one packed command. The future gets its reply, or raises its error.

        ``limit_s`` is how long the reply may take; for a blocking read, the block time plus a margin.
        Raises Unavailable when the connection is closed.
        """
        future: asyncio.Future[Any] = self.loop.create_future()
        self._request(packed, (future, 0, self._deadline(limit_s), None, None))
        return future

    def send_many(
        self, packed: bytes, replies: int, *, limit_s: float | None = None
    ) -> asyncio.Future[list[Any]]:
        """Send several packed commands in one write. Error replies are items of the list."""
        if replies < 1:
            raise ValueError("a request has at least one reply")
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        self._request(packed, (future, replies, self._deadline(limit_s), None, None))
        return future

    def post(self, command: Command[T], future: asyncio.Future[T], *, limit_s: float | None = None) -> None:
        """Send a Command and give ``future`` what its parser makes of the reply.

        A script that the server does not know is loaded and called once more.
        """
        self._request(command.pack(), (future, 0, self._deadline(limit_s), command.parse, command))

    def _request(self, packed: bytes, request: _Request) -> None:
        if self.closed:
            raise Unavailable(f"{self.name}: the connection is closed")
        self._pending.append(request)
        if self._watchdog is None or request[2] < self._watch_at:
            self._watch_from(request[2])
        self._transport.write(packed)

    def _deadline(self, limit_s: float | None) -> float:
        # Never before the one of a request ahead: a reply cannot overtake a blocking read.
        deadline = self.loop.time() + (self._reply_s if limit_s is None else limit_s)
        if deadline < self._latest:
            return self._latest
        self._latest = deadline
        return deadline

    # Replies

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            self._reader.feed(data)
            reply = self._reader.gets()
            while reply is not NOTHING:
                self._answer(reply)
                reply = self._reader.gets()
        except ServerError as error:
            self._lose(str(error))

    def _answer(self, reply: Any) -> None:
        """Give one reply to the request it belongs to. Raises ServerError to end the connection."""
        if not self._pending:
            raise Unavailable("it answered what nobody asked")
        future, replies, _, parse, command = self._pending[0]
        if replies:
            self._gathered.append(reply)
            if len(self._gathered) < replies:
                return
            reply, self._gathered = self._gathered, []
        if len(self._pending) == 1:
            self._latest = 0.0
        self._pending.popleft()
        if future.done():  # its waiter was cancelled; the reply was still ours to read
            return
        if isinstance(reply, Exception):
            self._refuse(future, reply, command)
        elif parse is None:
            future.set_result(reply)
        else:
            _set_parsed(future, parse, reply)

    def _refuse(self, future: asyncio.Future[Any], error: Exception, command: Command[Any] | None) -> None:
        if type(error) is NoScript and command is not None and command.script is not None:
            self._load(command.script, command, future)
        else:
            future.set_exception(error)

    def _load(self, script: Script, command: Command[Any], future: asyncio.Future[Any]) -> None:
        """Nothing ran, so load the script, then call it again: once, a second NOSCRIPT is final."""
        loading = self.send(pack((b"SCRIPT", b"LOAD", script.source)))
        loading.add_done_callback(lambda loaded: self._call_again(loaded, command, future))

    def _call_again(
        self, loaded: asyncio.Future[Any], command: Command[Any], future: asyncio.Future[Any]
    ) -> None:
        error = loaded.exception()
        if future.done():
            return
        if error is None:
            try:
                self._request(command.pack(), (future, 0, self._deadline(None), command.parse, None))
            except Unavailable as lost:
                error = lost
        if error is not None:
            future.set_exception(error)

    # The watchdog: one timer for the connection, not one for each request

    def _watch(self) -> None:
        self._watchdog = None
        if not self._pending:
            self._suspect = None
            return
        oldest, _, deadline, _, _ = self._pending[0]
        if self.loop.time() < deadline:
            self._suspect = None
            self._watch_from(deadline)
        elif self._suspect is not oldest:
            self._suspect = oldest
            self._watch_from(self.loop.time() + _SECOND_LOOK_S)
        else:
            self._lose("no answer within the time limit", ServerTimeout)

    def _watch_from(self, when: float) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watch_at = when
        self._watchdog = self.loop.call_at(when, self._watch)

    # The end

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, once."""
        if not self.closed:
            self._lose("the connection was lost" + (f" ({type(exc).__name__})" if exc else ""))
        if not self.gone.done():
            self.gone.set_result(None)

    def close(self) -> None:
        """Take no more requests, fail those in flight, close the socket. May be called twice."""
        if not self.closed:
            self._end(f"{self.name}: closed by this program", Unavailable)
            self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed, about a second at most."""
        done, _ = await asyncio.wait([self.gone], timeout=_CLOSE_S)
        if not done:
            self._transport.abort()
            await asyncio.wait([self.gone], timeout=_CLOSE_S)

    def _lose(self, why: str, kind: type[Unavailable] = Unavailable) -> None:
        if self.closed:
            return
        self._end(f"{self.name}: {why}", kind)
        self._transport.abort()

    def _end(self, why: str, kind: type[Unavailable]) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        pending, self._pending = self._pending, deque()
        for future, *_ in pending:
            if not future.done():
                future.set_exception(kind(why))


def _set_parsed(future: asyncio.Future[Any], parse: Parse, reply: Any) -> None:
    try:
        future.set_result(parse(reply))
    except Exception as error:  # noqa: BLE001  # a parser's fault is its waiter's to hear, not the loop's
        future.set_exception(error)
