"""The asyncio client: enqueues tasks, looks at them, waits for their results."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, Unpack, overload

from streamq.broker.address import Address
from streamq.broker.command import Word
from streamq.broker.dial import Timeouts
from streamq.broker.inspecting import find, task_info
from streamq.broker.keys import Keys
from streamq.broker.listener import Listener
from streamq.broker.producing import MAX_BATCH_BYTES, MAX_BATCH_TASKS, register
from streamq.broker.runner import AsyncRunner
from streamq.client.encoding import Encoded, Encoder
from streamq.client.handles import TaskHandle
from streamq.client.outbox import Outbox
from streamq.client.producer import Producer
from streamq.client.waiting import RECHECK_S, judge
from streamq.clock import monotonic_s
from streamq.errors import BatchError, ResultTimeout, ServerError, StreamQError, TaskIdConflict, TaskNotFound
from streamq.model.call import TaskCall, as_call
from streamq.model.durations import Duration, duration_ms
from streamq.model.info import TaskInfo
from streamq.model.limits import DEFAULT_LIMITS, Limits
from streamq.model.names import check_key_name, check_task_id
from streamq.model.options import CallOptions, Options

R = TypeVar("R")

DEFAULT_ENQUEUE_TIMEOUT_S = 10.0
DEFAULT_LEASE_MS = 10_000


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a client behaves."""

    namespace: str | None = None
    defaults: Options = field(default_factory=Options)
    """Options for calls that say nothing themselves."""
    limits: Limits = DEFAULT_LIMITS
    timeouts: Timeouts = field(default_factory=Timeouts)
    enqueue_timeout_s: float = DEFAULT_ENQUEUE_TIMEOUT_S
    """How long an enqueue tries again while Redis is away, before it raises Unavailable."""
    lease_ms: int = DEFAULT_LEASE_MS
    """The workers' lease, to tell orphaned tasks in ``info``."""


class Client:
    """Enqueues and looks. ``async with`` it, or call ``aclose`` at the end.

    Given a ``runner``, it uses that connection and leaves it open when it closes.
    """

    def __init__(
        self, address: Address, config: ClientConfig | None = None, runner: AsyncRunner | None = None
    ) -> None:
        self.config = config or ClientConfig()
        self.keys = Keys(self.config.namespace)
        self._owns_runner = runner is None
        self.runner = runner or AsyncRunner(address, timeouts=self.config.timeouts)
        self._encoder = Encoder(self.config.defaults, self.config.limits)
        self._producer = Producer()
        self._outboxes: dict[str, Outbox] = {}
        self._registering: set[asyncio.Future[int]] = set()
        self._listener: Listener | None = None
        self._waiters: dict[bytes, set[asyncio.Event]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for what was submitted, then close. May be called twice."""
        if self._listener is not None:
            await self._listener.aclose()
        for outbox in self._outboxes.values():
            await outbox.drain()
        if self._registering:
            await asyncio.wait(self._registering)
        if self._owns_runner:
            await self.runner.aclose()

    @overload
    async def enqueue(self, task: TaskCall[R], /, **options: Unpack[CallOptions]) -> TaskHandle[R]: ...
    @overload
    async def enqueue(
        self,
        task: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        **options: Unpack[CallOptions],
    ) -> TaskHandle[Any]: ...
    async def enqueue(
        self, task: TaskCall[Any] | str, arguments: Mapping[str, Any] | None = None, /, **options: Any
    ) -> TaskHandle[Any]:
        """Enqueue a call, or a task by its name. Concurrent calls share a round trip.

        Raises OptionError or PayloadError before anything is sent, TaskIdConflict, and ServerError
        (Unavailable once ``enqueue_timeout_s`` is over).
        """
        return await self._enqueue(as_call(task, arguments, options))

    async def _enqueue(self, call: TaskCall[Any]) -> TaskHandle[Any]:
        task = self._encoder.encode(call, self._producer)
        words: list[Word] = [task.how, task.task_id.encode(), task.message]
        answer = await self._outbox(task.queue).submit(words, len(task.message))
        handle = self._handle(task, answer[0])
        if isinstance(handle, StreamQError):
            raise handle
        return handle

    async def enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        """Enqueue many tasks in few round trips; one handle per call, in order.

        Raises BatchError when some were not enqueued; its ``results`` tell which.
        """
        results: list[TaskHandle[R] | StreamQError] = []
        chunks: dict[str, _Chunk] = {}
        sent: list[_Chunk] = []
        for place, call in enumerate(calls):
            try:
                task = self._encoder.encode(call, self._producer)
            except StreamQError as error:
                results.append(error)
                continue
            results.append(TaskHandle(self, task.queue, task.task_id))
            chunk = chunks.get(task.queue)
            if chunk is None:
                chunk = chunks[task.queue] = _Chunk(task.queue)
            chunk.add(place, task)
            if chunk.full:
                sent.append(self._send(chunks.pop(task.queue)))
                # The next chunk is encoded while Redis works on this one, but no further ahead.
                if len(sent) > 1:
                    await asyncio.wait([sent[-2].sent_answer])
                else:
                    await asyncio.sleep(0)
        sent += [self._send(chunk) for chunk in chunks.values()]
        for chunk in sent:
            await self._collect(chunk, results)
        handles = [item for item in results if isinstance(item, TaskHandle)]
        if len(handles) < len(results):
            raise BatchError(results)
        return handles

    async def info(self, queue: str, task_id: str) -> TaskInfo:
        """A snapshot of one task. Raises TaskNotFound, ServerError."""
        found = await self.runner.run(find(self.keys.queue(queue), check_task_id(task_id)))
        if found.state is None:
            raise TaskNotFound(
                queue, task_id, "no such task: it is finished and was not kept, or never existed"
            )
        return task_info(queue, task_id, found, self.config.lease_ms)

    async def result(self, queue: str, task_id: str, timeout: Duration | None = None) -> Any:
        """Wait for a task's result; see TaskHandle.result."""
        keys = self.keys.queue(check_key_name("queue", queue))
        deadline_s = None if timeout is None else monotonic_s() + duration_ms("timeout", timeout) / 1000
        channel, woken = keys.done(task_id), asyncio.Event()
        waiters = self._waiters.setdefault(channel, set())
        waiters.add(woken)
        try:
            await self._listen(channel, deadline_s)
            while True:
                woken.clear()
                verdict = judge(queue, task_id, await self.runner.run(find(keys, task_id)))
                if verdict.over:
                    return verdict.result
                left_s = RECHECK_S if deadline_s is None else min(RECHECK_S, deadline_s - monotonic_s())
                if left_s <= 0:
                    raise ResultTimeout(queue, task_id, "is not finished yet")
                await _wait(woken, left_s)
        finally:
            waiters.discard(woken)
            if not waiters and self._waiters.pop(channel, None) is not None and self._listener is not None:
                self._listener.unsubscribe(channel)

    async def ping(self) -> None:
        """Connect, if need be. Raises ServerError when Redis cannot be reached."""
        await self.runner.connect()

    async def _listen(self, channel: bytes, deadline_s: float | None) -> None:
        """Have the channel subscribed before the first look, so that no notice falls between the two."""
        if self._listener is None:
            self._listener = Listener(self.runner.address, self._on_notice, on_connect=self._wake_all)
        try:
            async with asyncio.timeout(
                RECHECK_S if deadline_s is None else max(0.0, deadline_s - monotonic_s())
            ):
                await self._listener.subscribe(channel)
        except (TimeoutError, ServerError):
            return  # The looks every RECHECK_S carry the wait.

    def _on_notice(self, channel: bytes, payload: bytes) -> None:
        for waiter in self._waiters.get(channel, ()):
            waiter.set()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()

    def _outbox(self, queue: str) -> Outbox:
        outbox = self._outboxes.get(queue)
        if outbox is None:
            outbox = self._outboxes[queue] = Outbox(
                runner=self.runner,
                queue=self.keys.queue(queue),
                producer=self._producer,
                timeout_s=self.config.enqueue_timeout_s,
                on_new_queue=self._register,
            )
            self._register(queue)
        return outbox

    def _register(self, queue: str) -> None:
        """Tell the registry of the queue. It lies in another slot, so the enqueue script cannot do it.

        A failure is no error of the enqueue: workers register the queues they serve as well.
        """
        registering = self.runner.post(register(self.keys.queues, queue))
        self._registering.add(registering)
        registering.add_done_callback(self._registered)

    def _registered(self, registering: asyncio.Future[int]) -> None:
        self._registering.discard(registering)
        if not registering.cancelled():
            registering.exception()

    def _send(self, chunk: _Chunk) -> _Chunk:
        chunk.answer = self._outbox(chunk.queue).submit(chunk.words, chunk.size)
        return chunk

    async def _collect(self, chunk: _Chunk, results: list[TaskHandle[R] | StreamQError]) -> None:
        try:
            words = await chunk.sent_answer
        except ServerError as error:
            for place in chunk.places:
                results[place] = error
            return
        for place, word in zip(chunk.places, words, strict=True):
            if word not in _CREATED:
                handle = results[place]
                if isinstance(handle, TaskHandle):
                    results[place] = _not_created(handle, word)

    def _handle(self, task: Encoded, word: bytes) -> TaskHandle[Any] | StreamQError:
        handle: TaskHandle[Any] = TaskHandle(self, task.queue, task.task_id)
        return handle if word in _CREATED else _not_created(handle, word)


_CREATED = frozenset({b"ready", b"scheduled"})


def _not_created(handle: TaskHandle[R], word: bytes) -> TaskHandle[R] | StreamQError:
    if word == b"exists":
        handle.created = False
        return handle
    return TaskIdConflict(handle.queue, handle.id, "another task has this id; see the on_conflict option")


class _Chunk:
    """Tasks of one enqueue_many for one queue that travel together."""

    __slots__ = ("answer", "places", "queue", "size", "words")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.places: list[int] = []
        self.words: list[Word] = []
        self.size = 0
        self.answer: asyncio.Future[Sequence[bytes]] | None = None

    def add(self, place: int, task: Encoded) -> None:
        self.places.append(place)
        self.words += (task.how, task.task_id.encode(), task.message)
        self.size += len(task.message)

    @property
    def full(self) -> bool:
        return len(self.places) >= MAX_BATCH_TASKS or self.size >= MAX_BATCH_BYTES

    @property
    def sent_answer(self) -> asyncio.Future[Sequence[bytes]]:
        if self.answer is None:
            raise RuntimeError("not sent yet")
        return self.answer


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
