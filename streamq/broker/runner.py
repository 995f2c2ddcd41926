"""Runs Commands from asyncio code on one pipelined connection.

Owns nothing but the links, one for each event loop that uses it. It never sends a request again whose
reply was lost: whether it ran is unknown, and callers know whether a repeat is safe.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from streamq.broker.address import Address
from streamq.broker.capabilities import UNKNOWN, Capabilities
from streamq.broker.command import Command, Steps
from streamq.broker.dial import Timeouts
from streamq.broker.link import Link
from streamq.broker.pipeline import Pipeline
from streamq.broker.transport import AsyncConnection

T = TypeVar("T")


class AsyncRunner:
    """Runs Commands; connects when first needed, and again when next needed after a loss.

    ``connections_made`` grows by one with each connection: a caller that compares it notices a loss.
    ``on_connect`` is called after each one, before any request goes out.

    Used from a second event loop or in a forked child, it opens a connection for that one too.
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
        self._closed = False
        self._pid = os.getpid()
        self._link: Link | None = None  # the one used last
        self._links: dict[asyncio.AbstractEventLoop, Link] = {}

    @property
    def connected(self) -> bool:
        """Whether a connection stands; the next request may still find it lost."""
        return self._link is not None and self._link.connected

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
        link = self._link
        if link is None or link.loop is not loop:
            link = self._link_of(loop)
        connection = link.connection
        if connection is not None and not connection.closed:
            connection.post(command, future, limit_s=limit_s)
        else:
            link.use(future, lambda opened: opened.post(command, future, limit_s=limit_s))
        return future

    async def run_all(self, commands: Sequence[Command[Any]], *, limit_s: float | None = None) -> list[Any]:
        """Run several Commands in one write; one result each, in order, errors as items.

        Raises Unavailable when there is no connection or it was lost: none or all may have run.
        """
        if not commands:
            return []
        pipeline = Pipeline(commands)
        connection = await self.connect()
        if pipeline.take(await connection.send_many(*pipeline.packed(), limit_s=limit_s)):
            pipeline.take_again(await connection.send_many(*pipeline.packed_again(), limit_s=limit_s))
        return pipeline.results()

    async def walk(self, steps: Steps[T]) -> T:
        """Run each command that the steps yield and send them its reply; answers what they return."""
        reply: Any = None
        while True:
            try:
                command = steps.send(reply)
            except StopIteration as done:
                brought: T = done.value
                return brought
            reply = await self.run(command)

    async def connect(self) -> AsyncConnection:
        """The connection, opened first where none stands. Raises AddressError or ServerError."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[AsyncConnection] = loop.create_future()
        self._link_of(loop).use(opened, opened.set_result)
        return await opened

    async def aclose(self) -> None:
        """Close for good: requests in flight fail, nothing is left behind. May be called twice.

        Links of other event loops are told to close, and not waited for.
        """
        self._closed = True
        here = asyncio.get_running_loop()
        self._leave_the_parents()
        for loop, link in list(self._links.items()):
            if loop is here:
                link.close()
                await link.wait_closed()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(link.close)

    def _link_of(self, loop: asyncio.AbstractEventLoop) -> Link:
        self._leave_the_parents()
        link = self._links.get(loop)
        if link is None:
            for old in [old for old in self._links if old.is_closed()]:
                del self._links[old]
            link = self._links[loop] = Link(self.address, self._timeouts, self._note)
            if self._closed:
                link.close()
        self._link = link
        return link

    def _leave_the_parents(self) -> None:
        """In a forked child: keep the parent's links as they are. To close them would disturb its loop."""
        if self._pid != os.getpid():
            _of_the_parent.append(self._links)
            self._links, self._link, self._pid = {}, None, os.getpid()

    def _note(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self.connections_made += 1
        if self.on_connect is not None:
            self.on_connect()


_of_the_parent: list[dict[asyncio.AbstractEventLoop, Link]] = []
