"""Runs Commands from blocking code: connects when first needed, and again after a loss.

Owns one connection. Executes the same Commands as the async runner, with the same errors, and like
it never repeats a request whose reply was lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from streamq.broker.address import Address
from streamq.broker.capabilities import INFO, UNKNOWN, Capabilities, read_info
from streamq.broker.command import Command, Steps, pack
from streamq.broker.dial import Timeouts
from streamq.broker.pipeline import Pipeline
from streamq.broker.refusals import NoScript
from streamq.broker.sync_transport import SyncConnection
from streamq.errors import PermissionDenied, Unavailable

T = TypeVar("T")


class SyncRunner:
    """Runs Commands on one blocking connection; threads may share it and take turns.

    ``connections_made`` grows by one with each connection. A forked child opens its own.
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
        self._connection: SyncConnection | None = None
        self._connecting = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether a connection stands; the next request may still find it lost."""
        return self._connection is not None and not self._connection.closed

    def run(self, command: Command[T], *, limit_s: float | None = None) -> T:
        """Run one Command and return what its parser makes of the reply. Raises ServerError."""
        connection = self.connect()
        packed = command.pack()
        try:
            reply = connection.call(packed, limit_s=limit_s)
        except NoScript:
            if command.script is None:
                raise
            connection.call(pack((b"SCRIPT", b"LOAD", command.script.source)))
            reply = connection.call(packed, limit_s=limit_s)
        return command.parse(reply)

    def run_all(self, commands: Sequence[Command[Any]], *, limit_s: float | None = None) -> list[Any]:
        """Run several Commands in one write; one result each, in order, errors as items.

        Raises Unavailable when there is no connection or it was lost: none or all may have run.
        """
        if not commands:
            return []
        pipeline = Pipeline(commands)
        connection = self.connect()
        if pipeline.take(connection.call_many(*pipeline.packed(), limit_s=limit_s)):
            pipeline.take_again(connection.call_many(*pipeline.packed_again(), limit_s=limit_s))
        return pipeline.results()

    def walk(self, steps: Steps[T]) -> T:
        """Run each command that the steps yield and send them its reply; answers what they return."""
        reply: Any = None
        while True:
            try:
                command = steps.send(reply)
            except StopIteration as done:
                brought: T = done.value
                return brought
            reply = self.run(command)

    def connect(self) -> SyncConnection:
        """The connection, opened first where none stands. Raises AddressError or ServerError."""
        connection = self._connection
        if connection is not None and not connection.stale():
            return connection
        if self._pid != os.getpid():
            self._connecting = threading.Lock()  # the parent's may have been held when it forked
            self._pid = os.getpid()
        with self._connecting:
            connection = self._connection
            if connection is None or connection.stale():
                connection = self._connection = self._open()
            return connection

    def close(self) -> None:
        """Close for good. May be called twice, and from another thread to break a wait off."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> SyncConnection:
        if self._closed:
            raise Unavailable(f"{self.address}: closed by this program")
        if self._connection is not None:
            self._connection.close()
        connection = SyncConnection.open(self.address, self._timeouts)
        try:
            self.capabilities = _probe(connection)
        except BaseException:
            connection.close()
            raise
        if self._closed:  # by another thread, meanwhile
            connection.close()
        self.connections_made += 1
        if self.on_connect is not None:
            self.on_connect()
        return connection


def _probe(connection: SyncConnection) -> Capabilities:
    try:
        return read_info(connection.call(INFO))
    except PermissionDenied:
        return UNKNOWN
