"""The asyncio client: enqueues tasks, looks at them, waits for their results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, Unpack, overload

from streamq.broker.address import Address, as_address
from streamq.broker.command import Word
from streamq.broker.dial import Timeouts
from streamq.broker.inspecting import find, task_info
from streamq.broker.keys import Keys
from streamq.broker.producing import MAX_BATCH_BYTES, MAX_BATCH_TASKS
from streamq.broker.runner import AsyncRunner
from streamq.broker.steering import cancel, judge_cancel
from streamq.client.answers import CREATED, accepted, settle
from streamq.client.crons import Crons, words_of
from streamq.client.desk import Desk
from streamq.client.encoding import Encoded, Encoder, Parameters
from streamq.client.escort import Convoy, EnqueueMiddleware, escorted
from streamq.client.handles import TaskHandle
from streamq.client.semaphore import Semaphore
from streamq.client.waiting import RECHECK_S, judge
from streamq.clock import monotonic_s, utc_day, wall_ms
from streamq.errors import (
    BatchError,
    ResultTimeout,
    ServerError,
    StreamQError,
    TaskNotFound,
    Unavailable,
    UsageError,
)
from streamq.model.call import TaskCall, as_call, check_calls
from streamq.model.cancelling import Cancel, CancelOutcome
from streamq.model.durations import Duration, duration_ms
from streamq.model.info import TaskInfo
from streamq.model.limits import DEFAULT_LIMITS, Limits
from streamq.model.names import check_key_name, check_task_id
from streamq.model.options import CallOptions, Options
from streamq.model.schedule import CronEntry
from streamq.model.semaphores import DEFAULT_LEASE_S, SemaphoreOptions

R = TypeVar("R")

DEFAULT_ENQUEUE_TIMEOUT_S = 10.0
DEFAULT_LEASE_MS = 10_000
_LEAST_ATTEMPT_S = 0.1


def _unknown(_task: str) -> None:
    return None


def _takes_any(_task: str) -> bool:
    return True


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
    parameters: Parameters = _unknown
    """The positional parameters of a task's handler; None where the handler is not known here."""
    takes_groups: Callable[[str], bool] = _takes_any
    """Whether tasks of a type may have a group; those of which nothing is known here may."""
    dedup_secret: bytes | None = field(default=None, repr=False)
    """Keys of unique tasks are hashed with it, so that whoever reads Redis cannot try out arguments."""
    middleware: Sequence[EnqueueMiddleware] = ()
    """What each call passes through, the outermost first."""

    def encoder(self) -> Encoder:
        """What encodes the calls of a client so configured."""
        return Encoder(
            self.defaults, self.limits, self.parameters, self.dedup_secret, takes_groups=self.takes_groups
        )

    @property
    def attempt(self) -> Timeouts:
        """The limits of one attempt: none may take longer than an enqueue may."""
        longest_s = max(self.enqueue_timeout_s, _LEAST_ATTEMPT_S)
        return Timeouts(
            connect_s=min(self.timeouts.connect_s, longest_s), reply_s=min(self.timeouts.reply_s, longest_s)
        )


class Client:
    """Enqueues and looks. ``async with`` it, or call ``aclose`` at the end.

    Given a ``runner``, it uses that connection and leaves it open when it closes.
    """

    def __init__(
        self, url: str | Address, config: ClientConfig | None = None, runner: AsyncRunner | None = None
    ) -> None:
        self.config = config or ClientConfig()
        self.keys = Keys(self.config.namespace)
        self._owns_runner = runner is None
        self.runner = runner or AsyncRunner(as_address(url), timeouts=self.config.attempt)
        self._encoder = self.config.encoder()
        self._middleware = self.config.middleware
        self._closed = False
        self._desk: Desk | None = None  # the one used last
        self._desks: dict[asyncio.AbstractEventLoop, Desk] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for what was submitted on this event loop, then close. May be called twice.

        Nothing can be enqueued any more; who waits for a result gets Unavailable.
        """
        self._closed = True
        desk = self._desks.get(asyncio.get_running_loop())
        if desk is not None:
            await desk.aclose()
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

        Raises OptionError or PayloadError before anything is sent; TaskIdConflict, DuplicateTask or
        QueueLimitReached where Redis stores nothing; ServerError (Unavailable once ``enqueue_timeout_s`` is
        over).
        """
        call = as_call(task, arguments, options)
        if self._middleware:
            with escorted(self._middleware, call) as changed:
                return await self._enqueue(changed)
        return await self._enqueue(call)

    async def _enqueue(self, call: TaskCall[Any]) -> TaskHandle[Any]:
        desk = self._desk_here()
        task = self._encoder.encode(call, desk.producer)
        words: list[Word] = [task.how, task.name, task.message]
        word = (await desk.outbox(task.queue).submit(words, len(task.message)))[0]
        handle: TaskHandle[Any] = TaskHandle(self, task.queue, task.task_id)
        return handle if word in CREATED else accepted(handle, word)

    async def enqueue_entry(self, entry: CronEntry) -> TaskHandle[Any]:
        """Enqueue what a cron entry enqueues; ``crons.fire`` does this. Raises as ``enqueue`` does."""
        desk = self._desk_here()
        task_id, words = words_of(entry, desk.producer)
        word = (await desk.outbox(entry.queue).submit(words, len(entry.message)))[0]
        return accepted(TaskHandle(self, entry.queue, task_id), word)

    @property
    def crons(self) -> Crons:
        """The schedules in Redis: add, change, pause, remove, list."""
        return Crons(self)

    async def enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        """Enqueue many tasks in few round trips; one handle per call, in order.

        Raises BatchError when some were not enqueued; its ``results`` tell which. OptionError, where
        there are no calls to go through.
        """
        check_calls(calls)
        if self._middleware:
            return await self._enqueue_many_escorted(calls)
        return await self._enqueue_many(calls)

    async def _enqueue_many_escorted(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        convoy = Convoy(self._middleware, calls)
        try:
            results: Sequence[Any] = await self._enqueue_many(convoy.calls())
        except BatchError as error:
            results = error.results
        except BaseException as error:
            convoy.abort(error)
            raise
        return convoy.finish(results)

    async def _enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        desk = self._desk_here()
        results: list[TaskHandle[R] | StreamQError] = []
        chunks: dict[str, _Chunk] = {}
        sent: list[_Chunk] = []
        away: Unavailable | None = None
        for place, call in enumerate(calls):
            try:
                task = self._encoder.encode(call, desk.producer)
            except StreamQError as error:
                results.append(error)
                continue
            if away is not None:
                # One chunk has waited its time out for Redis: the rest must not wait, each in turn.
                results.append(away)
                continue
            results.append(TaskHandle(self, task.queue, task.task_id))
            chunk = chunks.get(task.queue)
            if chunk is None:
                chunk = chunks[task.queue] = _Chunk(task.queue)
            chunk.add(place, task)
            if chunk.full:
                sent.append(chunks.pop(task.queue).send(desk))
                # The next chunk is encoded while Redis works on this one, but no further ahead.
                if len(sent) > 1:
                    away = await sent[-2].outage()
                else:
                    await asyncio.sleep(0)
        if away is None:
            sent += [chunk.send(desk) for chunk in chunks.values()]
        else:
            for chunk in chunks.values():
                chunk.fail(away, results)
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
        keys, task_id = self.keys.queue(check_key_name("queue", queue)), check_task_id(task_id)
        deadline_s = None if timeout is None else monotonic_s() + duration_ms("timeout", timeout) / 1000
        within_s = RECHECK_S if deadline_s is None else max(0.0, deadline_s - monotonic_s())
        notices, batch = self._desk_here().notices, None
        async with AsyncExitStack() as stack:
            # Subscribed before the first look, so that no notice falls between the two.
            notice = await stack.enter_async_context(notices.of(keys.done(task_id), within_s))
            while True:
                found = await self.runner.run(find(keys, task_id))
                verdict = judge(queue, task_id, found)
                if verdict.over:
                    return verdict.result
                left_s = RECHECK_S if deadline_s is None else min(RECHECK_S, deadline_s - monotonic_s())
                if left_s <= 0:
                    raise ResultTimeout(queue, task_id, "is not finished yet")
                if found.batch is not None and found.batch != batch:
                    # It ends with its batch: look again when that one is listened to as well.
                    batch = found.batch
                    await stack.enter_async_context(notices.of(keys.done(batch), left_s, notice))
                    continue
                await notice.wait(left_s)

    async def cancel(
        self,
        queue: str,
        task_id: str,
        *,
        outcome: CancelOutcome = "archive",
        delay: Duration | None = None,
    ) -> bool:
        """Cancel a task, whatever its state; see TaskHandle.cancel."""
        keys = self.keys.queue(check_key_name("queue", queue))
        mark = Cancel.of(outcome, delay).pack()
        word = await self.runner.run(cancel(keys, check_task_id(task_id), mark, utc_day(wall_ms())))
        return judge_cancel(queue, task_id, word)

    def semaphore(
        self,
        name: str,
        *,
        limit: int,
        lease: Duration = DEFAULT_LEASE_S,
        timeout: Duration | None = None,
    ) -> Semaphore:
        """A semaphore of that name, shared by all programs of the namespace: ``async with`` it.

        At most ``limit`` hold it at once. ``lease`` is how soon the permit of a program that died is free
        again; ``timeout`` is how long to wait for one. Raises OptionError.
        """
        return Semaphore(lambda: self, SemaphoreOptions.of(name, limit, lease, timeout))

    def check_open(self) -> None:
        """Raises UsageError when the client is closed."""
        if self._closed:
            raise UsageError("client", "is closed")

    async def ping(self) -> None:
        """Connect, if need be. Raises ServerError when Redis cannot be reached."""
        await self.runner.connect()

    def _desk_here(self) -> Desk:
        """This client's desk on the running loop. Raises UsageError when the client is closed."""
        desk = self._desk
        if desk is None or self._closed or desk.loop is not asyncio.get_running_loop():
            desk = self._desk = self._find_desk()
        return desk

    def _find_desk(self) -> Desk:
        if self._closed:
            raise UsageError("client", "is closed")
        loop = asyncio.get_running_loop()
        if loop not in self._desks:
            for old in [old for old in self._desks if old.is_closed()]:
                self._desks.pop(old, None)
            config = self.config
            self._desks[loop] = Desk(self.runner, self.keys, config.timeouts, config.enqueue_timeout_s)
        return self._desks[loop]

    async def _collect(self, chunk: _Chunk, results: list[TaskHandle[R] | StreamQError]) -> None:
        try:
            words = await chunk.sent_answer
        except ServerError as error:
            chunk.fail(error, results)
            return
        for place, word in zip(chunk.places, words, strict=True):
            if word not in CREATED:
                settle(results, place, word)


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
        self.words += (task.how, task.name, task.message)
        self.size += len(task.message)

    @property
    def full(self) -> bool:
        return len(self.places) >= MAX_BATCH_TASKS or self.size >= MAX_BATCH_BYTES

    def send(self, desk: Desk) -> Self:
        self.answer = desk.outbox(self.queue).submit(self.words, self.size)
        self.answer.add_done_callback(_heard)  # even if the caller is cancelled before it asks
        return self

    def fail(self, error: ServerError, results: list[Any]) -> None:
        for place in self.places:
            results[place] = error

    @property
    def sent_answer(self) -> asyncio.Future[Sequence[bytes]]:
        if self.answer is None:
            raise RuntimeError("not sent yet")
        return self.answer

    async def outage(self) -> Unavailable | None:
        """Wait for the answer; the error, when Redis could not be reached in time."""
        await asyncio.wait([self.sent_answer])
        error = self.sent_answer.exception()
        return error if isinstance(error, Unavailable) else None


def _heard(answer: asyncio.Future[Sequence[bytes]]) -> None:
    if not answer.cancelled():
        answer.exception()
