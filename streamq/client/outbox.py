"""Group commit: concurrent enqueues into one queue ride in the next script call together.

One call is in flight per queue and producer. What is submitted meanwhile waits for the reply and
then goes out as one batch. There is no timer: at low load each call goes at once, at high load
batches grow by themselves. Everything runs in callbacks, without a task per enqueue.

When the reply is lost, the same batch is sent again under the same sequence number until an answer
comes or the time limit is over; the script adds nothing twice. The limit counts from the oldest
caller of the batch, and what waited its time out behind a failed batch fails with it: however many
wait for a Redis that is away, each hears of it in time.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamq.broker.command import Command, Word
from streamq.broker.producing import MAX_BATCH_BYTES, MAX_BATCH_TASKS, Enqueued, enqueue
from streamq.clock import monotonic_s
from streamq.errors import ServerTimeout, StreamQError, Unavailable

if TYPE_CHECKING:
    from streamq.broker.keys import QueueKeys
    from streamq.broker.runner import AsyncRunner
    from streamq.client.producer import Producer

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_LEAST_ATTEMPT_S = 0.1
"""One attempt is worth making however little time is left."""


@dataclass(slots=True, eq=False)
class Parcel:
    """Tasks of one caller that are answered together."""

    words: list[Word]
    """Flat, three per task."""
    size: int
    """Bytes of all messages."""
    answer: asyncio.Future[Sequence[bytes]]
    deadline_s: float

    @property
    def count(self) -> int:
        return len(self.words) // 3


@dataclass(slots=True, eq=False)
class _Batch:
    words: list[Word]
    sequence: int
    command: Command[Enqueued]
    parcels: list[Parcel]

    @property
    def deadline_s(self) -> float:
        return self.parcels[0].deadline_s


@dataclass(slots=True, eq=False)
class Outbox:
    """The enqueue calls of one client into one queue, on one event loop."""

    runner: AsyncRunner
    queue: QueueKeys
    producer: Producer
    timeout_s: float
    """How long an enqueue is tried before its caller gets the error."""
    on_new_queue: Callable[[str], None]
    _waiting: deque[Parcel] = field(default_factory=deque)
    _in_flight: bool = False
    _limited: bool = False
    """The queue has limits, as far as we know: only the script that checks them stores anything."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _pause_s: float = _FIRST_PAUSE_S
    _trying: set[asyncio.Task[None]] = field(default_factory=set)

    def submit(self, words: list[Word], size: int) -> asyncio.Future[Sequence[bytes]]:
        """Send tasks with the next call; the future gets one word per task, or the error of the call."""
        answer: asyncio.Future[Sequence[bytes]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Parcel(words, size, answer, monotonic_s() + self.timeout_s))
        if not self._in_flight:
            self._send_next()
        return answer

    async def drain(self) -> None:
        """Wait until everything submitted has been answered, whether or not its caller still listens."""
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    def _send_next(self) -> None:
        parcels = self._take()
        if not parcels:
            self._in_flight = False
            self._idle.set()
            return
        self._in_flight = True
        words = (
            parcels[0].words if len(parcels) == 1 else [word for parcel in parcels for word in parcel.words]
        )
        sequence = self.producer.next_sequence(self.queue.name)
        self._send(_Batch(words, sequence, self._command(words, sequence), parcels))

    def _command(self, words: list[Word], sequence: int) -> Command[Enqueued]:
        return enqueue(self.queue, self.producer.id, sequence, words, checked=self._limited)

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

    def _send(self, batch: _Batch) -> None:
        if not self.runner.connected:
            self._try(batch)
            return
        reply = self.runner.post(batch.command)
        reply.add_done_callback(lambda reply: self._on_reply(batch, reply))

    def _on_reply(self, batch: _Batch, reply: asyncio.Future[Enqueued]) -> None:
        error = asyncio.CancelledError() if reply.cancelled() else reply.exception()
        if isinstance(error, Unavailable) and monotonic_s() < batch.deadline_s:
            self._try(batch)
            return
        if error is None:
            enqueued = reply.result()
            if self._must_check(batch, enqueued):
                self._send(batch)
                return
            self._deliver(batch, enqueued)
        else:
            self._refuse(batch, error)
        self._send_next()

    def _must_check(self, batch: _Batch, enqueued: Enqueued) -> bool:
        """Whether the batch came to a queue with limits unchecked; nothing of it is stored then.

        It goes again under its sequence number, to the script that checks.
        """
        self._limited = enqueued.limited
        if enqueued.words:
            return False
        batch.command = self._command(batch.words, batch.sequence)
        return True

    def _try(self, batch: _Batch) -> None:
        """The slow way, with a task: connect first, and send again where need be."""
        trying = asyncio.get_running_loop().create_task(self._try_until_late(batch), name="streamq-outbox")
        self._trying.add(trying)
        trying.add_done_callback(self._trying.discard)

    async def _try_until_late(self, batch: _Batch) -> None:
        try:
            self._deliver(batch, await self._answer(batch))
        except asyncio.CancelledError as error:
            # The loop is ending: nothing sent from here on would find anybody to answer to.
            self._refuse(batch, error)
            self._refuse_waiting(error, until_s=math.inf)
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, its callers must hear of it
            self._refuse(batch, error)
        finally:
            self._send_next()

    async def _answer(self, batch: _Batch) -> Enqueued:
        error: Unavailable = ServerTimeout(f"{self.runner.address}: no answer within the time limit")
        self._pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(max(batch.deadline_s - monotonic_s(), _LEAST_ATTEMPT_S)):
                    enqueued = await self.runner.run(batch.command)
                if self._must_check(batch, enqueued):
                    continue
                return enqueued
            except Unavailable as failed:
                error = failed
            except TimeoutError:
                # This attempt was cut short, so what the one before it met says more.
                raise error from error.__cause__
            if monotonic_s() + self._pause_s >= batch.deadline_s:
                raise error from error.__cause__
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

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
        if isinstance(error, Unavailable):
            # By the rule that gave the batch up: no time is left for another attempt after the pause.
            self._refuse_waiting(error, until_s=monotonic_s() + self._pause_s)

    def _refuse_waiting(self, error: BaseException, *, until_s: float) -> None:
        """Refuse what waits and whose time is over by then."""
        while self._waiting and self._waiting[0].deadline_s <= until_s:
            parcel = self._waiting.popleft()
            if not parcel.answer.done():
                parcel.answer.set_exception(_fresh(error))


def _fresh(error: BaseException) -> BaseException:
    """An error of its own for each caller: raising one object in many tasks mixes their tracebacks."""
    if isinstance(error, asyncio.CancelledError):
        return Unavailable("the client was closed before Redis answered")
    if not isinstance(error, StreamQError):
        return error
    copy: Any = error.__reduce__()
    fresh: BaseException = copy[0](*copy[1])
    fresh.__cause__ = error.__cause__
    return fresh
