"""Group commit: concurrent enqueues into one queue ride in the next script call together.

One call is in flight per queue and producer. What is submitted meanwhile waits for the reply and
then goes out as one batch. There is no timer: at low load each call goes at once, at high load
batches grow by themselves. Everything runs in callbacks, without a task per enqueue.

When the reply is lost, the same batch is sent again under the same sequence number until an answer
comes or the time limit is over; the script adds nothing twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamq.broker.command import Command, Word
from streamq.broker.producing import MAX_BATCH_BYTES, MAX_BATCH_TASKS, Enqueued, enqueue
from streamq.clock import monotonic_s
from streamq.errors import ServerError, StreamQError, Unavailable

if TYPE_CHECKING:
    from streamq.broker.keys import QueueKeys
    from streamq.broker.runner import AsyncRunner
    from streamq.client.producer import Producer

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


@dataclass(slots=True, eq=False)
class Parcel:
    """Tasks of one caller that are answered together."""

    words: list[Word]
    """Flat, three per task."""
    size: int
    """Bytes of all messages."""
    answer: asyncio.Future[Sequence[bytes]]

    @property
    def count(self) -> int:
        return len(self.words) // 3


@dataclass(slots=True, eq=False)
class _Batch:
    command: Command[Enqueued]
    parcels: list[Parcel]
    deadline_s: float


@dataclass(slots=True, eq=False)
class Outbox:
    """The enqueue calls of one client into one queue."""

    runner: AsyncRunner
    queue: QueueKeys
    producer: Producer
    timeout_s: float
    """How long a batch is sent again before its callers get the error."""
    on_new_queue: Callable[[str], None]
    _waiting: deque[Parcel] = field(default_factory=deque)
    _last: asyncio.Future[Sequence[bytes]] | None = None
    _in_flight: bool = False
    _resending: set[asyncio.Task[None]] = field(default_factory=set)

    def submit(self, words: list[Word], size: int) -> asyncio.Future[Sequence[bytes]]:
        """Send tasks with the next call; the future gets one word per task, or the error of the call."""
        answer: asyncio.Future[Sequence[bytes]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Parcel(words, size, answer))
        self._last = answer
        if not self._in_flight:
            self._send_next()
        return answer

    async def drain(self) -> None:
        """Wait until everything submitted has been answered."""
        while self._last is not None and not self._last.done():
            await asyncio.wait([self._last])

    def abandon(self) -> None:
        """Stop sending again; what waits gets an error. For closing without Redis."""
        for task in self._resending:
            task.cancel()

    def _send_next(self) -> None:
        parcels = self._take()
        if not parcels:
            self._in_flight = False
            return
        self._in_flight = True
        words = (
            parcels[0].words if len(parcels) == 1 else [word for parcel in parcels for word in parcel.words]
        )
        sequence = self.producer.next_sequence(self.queue.name)
        command = enqueue(self.queue, self.producer.id, sequence, words)
        self._post(_Batch(command, parcels, monotonic_s() + self.timeout_s))

    def _take(self) -> list[Parcel]:
        """The parcels of the next call: as many as fit, at least one."""
        parcels: list[Parcel] = []
        count = size = 0
        while self._waiting:
            parcel = self._waiting[0]
            count += parcel.count
            size += parcel.size
            if parcels and (count > MAX_BATCH_TASKS or size > MAX_BATCH_BYTES):
                break
            parcels.append(self._waiting.popleft())
        return parcels

    def _post(self, batch: _Batch) -> None:
        reply = self.runner.post(batch.command)
        reply.add_done_callback(lambda reply: self._on_reply(batch, reply))

    def _on_reply(self, batch: _Batch, reply: asyncio.Future[Enqueued]) -> None:
        error = asyncio.CancelledError() if reply.cancelled() else reply.exception()
        if isinstance(error, Unavailable) and monotonic_s() < batch.deadline_s:
            resend = asyncio.get_running_loop().create_task(self._resend(batch), name="streamq-outbox-resend")
            self._resending.add(resend)
            resend.add_done_callback(self._resending.discard)
            return
        if error is None:
            self._deliver(batch, reply.result())
        else:
            self._refuse(batch, error)
        self._send_next()

    async def _resend(self, batch: _Batch) -> None:
        pause_s = _FIRST_PAUSE_S
        error: BaseException = Unavailable("the client was closed before Redis answered")
        try:
            while True:
                try:
                    enqueued = await self.runner.run(batch.command)
                except Unavailable as failure:
                    error = failure
                    if monotonic_s() + pause_s >= batch.deadline_s:
                        break
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                except ServerError as failure:
                    error = failure
                    break
                else:
                    self._deliver(batch, enqueued)
                    return
        finally:
            self._refuse(batch, error)
            self._send_next()

    def _deliver(self, batch: _Batch, enqueued: Enqueued) -> None:
        if enqueued.new_queue:
            self.on_new_queue(self.queue.name)
        start = 0
        for parcel in batch.parcels:
            words = enqueued.words[start : start + parcel.count]
            start += parcel.count
            # A caller that was cancelled no longer listens.
            if not parcel.answer.done():
                parcel.answer.set_result(words)

    def _refuse(self, batch: _Batch, error: BaseException) -> None:
        for parcel in batch.parcels:
            if not parcel.answer.done():
                parcel.answer.set_exception(_fresh(error))


def _fresh(error: BaseException) -> BaseException:
    """An error of its own for each caller: raising one object in many tasks mixes their tracebacks."""
    if not isinstance(error, StreamQError):
        return Unavailable("the client was closed before Redis answered")
    copy: Any = error.__reduce__()
    fresh: BaseException = copy[0](*copy[1])
    fresh.__cause__ = error.__cause__
    return fresh
