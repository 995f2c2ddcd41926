"""A TCP proxy between a client and a server that misbehaves on demand.

It delays, loses a reply after the server has acted, cuts connections, falls silent while connections
stay up, and refuses new ones. It looks at bytes only as far as needed to recognise a request.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.servers import HOST, Server, free_port


class Proxy:
    """An async context manager; ``url`` is the server's address with the proxy's port."""

    def __init__(self, server: Server) -> None:
        self._upstream = server.port
        self.port = free_port()
        self.url = server.url.replace(f":{server.port}/", f":{self.port}/")
        self.latency_s = 0.0  # added to each reply
        self.accepted = 0  # connections so far
        self._links: set[_Link] = set()
        self._listener: asyncio.Server | None = None
        self._may_flow = asyncio.Event()
        self._may_flow.set()
        self._to_lose: bytes | None = None
        self._lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self._may_flow.set()
        await asyncio.gather(*(link.close() for link in list(self._links)))

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._links)

    async def accept(self) -> None:
        """Take new connections (again)."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._connected, HOST, self.port)

    async def refuse(self) -> None:
        """Refuse new connections; those that stand are left alone."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)  # lets the loop take the socket down

    def cut(self) -> int:
        """Break every connection; how many there were."""
        links = list(self._links)
        for link in links:
            link.abort()
        return len(links)

    def silence(self) -> None:
        """Pass nothing more, in either direction; connections stay up, new ones are taken."""
        self._may_flow.clear()

    def resume(self) -> None:
        """Pass everything again, beginning with what was held back."""
        self._may_flow.set()

    def lose_next_reply(self, containing: bytes = b"") -> asyncio.Event:
        """Cut the connection of the next request that contains these bytes, once the server has acted.

        The request reaches the server, the reply does not reach the client. The event is set when that
        has happened.
        """
        self._to_lose, self._lost = containing, asyncio.Event()
        return self._lost

    def is_to_lose(self, request: bytes) -> bool:
        """Whether the reply to this request is to be lost. Says yes once."""
        if self._to_lose is None or self._to_lose not in request:
            return False
        self._to_lose = None
        return True

    def note_lost(self) -> None:
        self._lost.set()

    async def flow(self) -> None:
        """Wait while the proxy is silent."""
        await self._may_flow.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            upstream = await asyncio.open_connection(HOST, self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), upstream)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy: two pumps, and the end of either ends both."""

    def __init__(self, proxy: Proxy, client: Stream, upstream: Stream) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream = upstream
        self._losing = False
        self._pumps: list[asyncio.Task[None]] = []
        self._ended = asyncio.Event()

    async def run(self) -> None:
        self._pumps = [asyncio.create_task(self._requests()), asyncio.create_task(self._replies())]
        try:
            await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            self._ended.set()

    def abort(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        for _, writer in (self._client, self._upstream):
            writer.transport.abort()

    async def close(self) -> None:
        self.abort()
        await self._ended.wait()

    async def _requests(self) -> None:
        reader, writer = self._client[0], self._upstream[1]
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._proxy.flow()
                self._losing = self._losing or self._proxy.is_to_lose(data)
                writer.write(data)
                await writer.drain()

    async def _replies(self) -> None:
        reader, writer = self._upstream[0], self._client[1]
        with suppress(OSError):
            while data := await reader.read(65536):
                if self._losing:  # the server has acted: that is when the connection breaks
                    self._proxy.note_lost()
                    return
                if self._proxy.latency_s:
                    await asyncio.sleep(self._proxy.latency_s)
                await self._proxy.flow()
                writer.write(data)
                await writer.drain()
