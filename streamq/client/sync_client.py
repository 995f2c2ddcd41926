"""The blocking client: the same Commands as the asyncio client, over a blocking connection."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar, Unpack, overload

from streamq.broker.address import Address, as_address
from streamq.broker.command import Command, Word
from streamq.broker.inspecting import find, task_info
from streamq.broker.keys import Keys
from streamq.broker.producing import MAX_BATCH_BYTES, MAX_BATCH_TASKS, Enqueued, enqueue, register
from streamq.broker.steering import cancel, judge_cancel
from streamq.broker.sync_listener import SyncListener
from streamq.broker.sync_runner import SyncRunner
from streamq.client.answers import CREATED, accepted, settle
from streamq.client.client import ClientConfig
from streamq.client.crons import SyncCrons, words_of
from streamq.client.encoding import Encoded
from streamq.client.escort import Convoy, escorted
from streamq.client.handles import SyncTaskHandle
from streamq.client.producer import Producer
from streamq.client.sync_semaphore import SyncSemaphore
from streamq.client.waiting import RECHECK_S, judge
from streamq.clock import monotonic_s, utc_day, wall_ms
from streamq.errors import (
    BatchError,
    ResultTimeout,
    ServerError,
    ServerTimeout,
    StreamQError,
    TaskNotFound,
    Unavailable,
    UsageError,
)
from streamq.model.call import TaskCall, as_call, check_calls
from streamq.model.cancelling import Cancel, CancelOutcome
from streamq.model.durations import Duration, duration_ms
from streamq.model.info import TaskInfo
from streamq.model.names import check_key_name, check_task_id
from streamq.model.options import CallOptions
from streamq.model.schedule import CronEntry
from streamq.model.semaphores import DEFAULT_LEASE_S, SemaphoreOptions

R = TypeVar("R")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class SyncClient:
    """Enqueues and looks, blocking. Threads may share one; they take turns.

    Given a ``runner``, it uses that connection and leaves it open when it closes.
    """

    def __init__(
        self, url: str | Address, config: ClientConfig | None = None, runner: SyncRunner | None = None
    ) -> None:
        self.config = config or ClientConfig()
        self.keys = Keys(self.config.namespace)
        self._owns_runner = runner is None
        self.runner = runner or SyncRunner(as_address(url), timeouts=self.config.attempt)
        self._encoder = self.config.encoder()
        self._producer = Producer()
        self._turns = threading.Lock()
        self._pid = os.getpid()
        self._middleware = self.config.middleware
        self._closed = False
        self._registered: set[str] = set()
        self._limited: set[str] = set()
        """Queues that have limits, as far as we know: only the script that checks them stores anything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called twice. Nothing can be enqueued any more."""
        self._closed = True
        if self._owns_runner:
            self.runner.close()

    @overload
    def enqueue(self, task: TaskCall[R], /, **options: Unpack[CallOptions]) -> SyncTaskHandle[R]: ...
    @overload
    def enqueue(
        self,
        task: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        **options: Unpack[CallOptions],
    ) -> SyncTaskHandle[Any]: ...
    def enqueue(
        self, task: TaskCall[Any] | str, arguments: Mapping[str, Any] | None = None, /, **options: Any
    ) -> SyncTaskHandle[Any]:
        """Enqueue a call, or a task by its name.

        Raises OptionError or PayloadError before anything is sent; TaskIdConflict, DuplicateTask or
        QueueLimitReached where Redis stores nothing; ServerError (Unavailable once ``enqueue_timeout_s`` is
        over).
        """
        call = as_call(task, arguments, options)
        if self._middleware:
            with escorted(self._middleware, call) as changed:
                return self._enqueue(changed)
        return self._enqueue(call)

    def _enqueue(self, call: TaskCall[Any]) -> SyncTaskHandle[Any]:
        encoded = self._encoder.encode(call, self._producer)
        words: list[Word] = [encoded.how, encoded.name, encoded.message]
        with self._turn() as deadline_s:
            word = self._send(encoded.queue, words, deadline_s)[0]
        handle: SyncTaskHandle[Any] = SyncTaskHandle(self, encoded.queue, encoded.task_id)
        return handle if word in CREATED else accepted(handle, word)

    def enqueue_entry(self, entry: CronEntry) -> SyncTaskHandle[Any]:
        """Enqueue what a cron entry enqueues; ``crons.fire`` does this. Raises as ``enqueue`` does."""
        task_id, words = words_of(entry, self._producer)
        with self._turn() as deadline_s:
            word = self._send(entry.queue, words, deadline_s)[0]
        return accepted(SyncTaskHandle(self, entry.queue, task_id), word)

    @property
    def crons(self) -> SyncCrons:
        """The schedules in Redis: add, change, pause, remove, list."""
        return SyncCrons(self)

    def enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[SyncTaskHandle[R]]:
        """Enqueue many tasks in few round trips; one handle per call, in order.

        Raises BatchError when some were not enqueued; its ``results`` tell which. OptionError, where
        there are no calls to go through.
        """
        check_calls(calls)
        if self._middleware:
            return self._enqueue_many_escorted(calls)
        return self._enqueue_many(calls)

    def _enqueue_many_escorted(self, calls: Iterable[TaskCall[R]]) -> list[SyncTaskHandle[R]]:
        convoy = Convoy(self._middleware, calls)
        try:
            results: Sequence[Any] = self._enqueue_many(convoy.calls())
        except BatchError as error:
            results = error.results
        except BaseException as error:
            convoy.abort(error)
            raise
        return convoy.finish(results)

    def _enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[SyncTaskHandle[R]]:
        results: list[SyncTaskHandle[R] | StreamQError] = []
        chunks: dict[str, _Chunk] = {}
        away: Unavailable | None = None
        for place, call in enumerate(calls):
            try:
                task = self._encoder.encode(call, self._producer)
            except UsageError as error:
                results.append(error)
                continue
            results.append(SyncTaskHandle(self, task.queue, task.task_id))
            chunk = chunks.setdefault(task.queue, _Chunk())
            chunk.add(place, task)
            if chunk.full:
                away = self._send_chunk(task.queue, chunks.pop(task.queue), results, away)
        for queue, chunk in chunks.items():
            away = self._send_chunk(queue, chunk, results, away)
        handles = [item for item in results if isinstance(item, SyncTaskHandle)]
        if len(handles) < len(results):
            raise BatchError(results)
        return handles

    def info(self, queue: str, task_id: str) -> TaskInfo:
        """A snapshot of one task. Raises TaskNotFound, ServerError."""
        found = self.runner.run(find(self.keys.queue(queue), check_task_id(task_id)))
        if found.state is None:
            raise TaskNotFound(
                queue, task_id, "no such task: it is finished and was not kept, or never existed"
            )
        return task_info(queue, task_id, found, self.config.lease_ms)

    def result(self, queue: str, task_id: str, timeout: Duration | None = None) -> Any:
        """Wait for a task's result; see SyncTaskHandle.result."""
        keys, task_id = self.keys.queue(check_key_name("queue", queue)), check_task_id(task_id)
        deadline_s = None if timeout is None else monotonic_s() + duration_ms("timeout", timeout) / 1000
        with SyncListener(self.runner.address, timeouts=self.config.timeouts) as listener:
            listener.subscribe(keys.done(task_id))
            batch = None
            while True:
                found = self.runner.run(find(keys, task_id))
                verdict = judge(queue, task_id, found)
                if verdict.over:
                    return verdict.result
                left_s = RECHECK_S if deadline_s is None else min(RECHECK_S, deadline_s - monotonic_s())
                if left_s <= 0:
                    raise ResultTimeout(queue, task_id, "is not finished yet")
                if found.batch is not None and found.batch != batch:
                    # It ends with its batch: look again when that one is listened to as well.
                    batch = found.batch
                    listener.subscribe(keys.done(batch))
                    continue
                listener.wait(left_s)

    def cancel(
        self,
        queue: str,
        task_id: str,
        *,
        outcome: CancelOutcome = "archive",
        delay: Duration | None = None,
    ) -> bool:
        """Cancel a task, whatever its state; see SyncTaskHandle.cancel."""
        keys = self.keys.queue(check_key_name("queue", queue))
        mark = Cancel.of(outcome, delay).pack()
        word = self.runner.run(cancel(keys, check_task_id(task_id), mark, utc_day(wall_ms())))
        return judge_cancel(queue, task_id, word)

    def semaphore(
        self,
        name: str,
        *,
        limit: int,
        lease: Duration = DEFAULT_LEASE_S,
        timeout: Duration | None = None,
    ) -> SyncSemaphore:
        """A semaphore of that name, shared by all programs of the namespace: ``with`` it.

        At most ``limit`` hold it at once. ``lease`` is how soon the permit of a program that died is free
        again; ``timeout`` is how long to wait for one. Raises OptionError.
        """
        return SyncSemaphore(self, SemaphoreOptions.of(name, limit, lease, timeout))

    def check_open(self) -> None:
        """Raises UsageError when the client is closed."""
        if self._closed:
            raise UsageError("client", "is closed")

    def ping(self) -> None:
        """Connect, if need be. Raises ServerError when Redis cannot be reached."""
        self.runner.connect()

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """This thread's turn, and until when an enqueue in it may try.

        Raises UsageError when the client is closed, ServerTimeout when other threads' turns take too long.
        """
        if self._closed:
            raise UsageError("client", "is closed")
        if self._pid != os.getpid():
            self._turns = threading.Lock()  # the parent's may have been held when it forked
            self._pid = os.getpid()
        deadline_s = monotonic_s() + self.config.enqueue_timeout_s
        turns = self._turns
        if not turns.acquire(timeout=self.config.enqueue_timeout_s):
            raise ServerTimeout(f"{self.runner.address}: other threads wait for an answer, too")
        try:
            yield deadline_s
        finally:
            turns.release()

    def _send_chunk(
        self,
        queue: str,
        chunk: _Chunk,
        results: list[SyncTaskHandle[R] | StreamQError],
        away: Unavailable | None,
    ) -> Unavailable | None:
        """Send it, unless Redis is ``away``: one chunk has waited, the rest must not wait each in turn."""
        try:
            if away is not None:
                raise away
            with self._turn() as deadline_s:
                words = self._send(queue, chunk.words, deadline_s)
        except ServerError as error:
            for place in chunk.places:
                results[place] = error
            return error if isinstance(error, Unavailable) else None
        for place, word in zip(chunk.places, words, strict=True):
            if word not in CREATED:
                settle(results, place, word)
        return None

    def _send(self, queue: str, words: list[Word], deadline_s: float) -> Sequence[bytes]:
        """One call, sent again under its own sequence number until it is answered or time is up."""
        sequence = self._producer.next_sequence(queue)  # first: after a fork it renews the id
        keys, producer = self.keys.queue(queue), self._producer.id
        checked = queue in self._limited
        enqueued = self._run(enqueue(keys, producer, sequence, words, checked=checked), deadline_s)
        if not enqueued.words:
            # Nothing was stored: the queue has limits now.
            enqueued = self._run(enqueue(keys, producer, sequence, words, checked=True), deadline_s)
        if enqueued.limited:
            self._limited.add(queue)
        elif checked:
            self._limited.discard(queue)
        if enqueued.new_queue or queue not in self._registered:
            self._register(queue)
        return enqueued.words

    def _register(self, queue: str) -> None:
        """A failure is no error of the enqueue: workers register the queues they serve as well."""
        with suppress(ServerError):
            self.runner.run(register(self.keys.queues, queue))
            self._registered.add(queue)

    def _run(self, command: Command[Enqueued], deadline_s: float) -> Enqueued:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self.runner.run(command)
            except Unavailable:
                if monotonic_s() + pause_s >= deadline_s or self._closed:
                    raise
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


class _Chunk:
    """Tasks of one enqueue_many for one queue that travel together."""

    __slots__ = ("places", "size", "words")

    def __init__(self) -> None:
        self.places: list[int] = []
        self.words: list[Word] = []
        self.size = 0

    def add(self, place: int, task: Encoded) -> None:
        self.places.append(place)
        self.words += (task.how, task.name, task.message)
        self.size += len(task.message)

    @property
    def full(self) -> bool:
        return len(self.places) >= MAX_BATCH_TASKS or self.size >= MAX_BATCH_BYTES
