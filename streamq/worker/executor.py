"""Runs handlers: one slot each, with the task's timeout, and hands the outcome to the settler.

Async handlers run as tasks of the event loop, started eagerly where Python can (3.12+): a handler
that never waits is through before ``start`` returns. Sync handlers run in threads; they cannot be
cancelled, so one that overruns keeps its slot until it really ends and its retry never overlaps it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from streamq.broker.working import Entry
from streamq.clock import ServerClock
from streamq.codec import decode_message, decode_payload, encode_result
from streamq.errors import (
    AttemptCancelled,
    AttemptTimeout,
    HandlerExited,
    LeaseLost,
    PayloadError,
    StoredDataError,
)
from streamq.model.cancelling import Cancel
from streamq.model.definition import Definition
from streamq.model.lanes import Lane
from streamq.model.limits import Limits
from streamq.model.message import Message
from streamq.model.parked import Reason
from streamq.worker.batching import batch_of_one, read_batch
from streamq.worker.context import UNREADABLE, Report, TaskContext, set_current
from streamq.worker.held import Held, Run, Source, Stop
from streamq.worker.invoking import Admits, Invoke, Invoker, Isolates, outlast
from streamq.worker.outcome import (
    COMPLETE,
    RELEASE,
    Archive,
    Aside,
    Discard,
    NotAdmitted,
    Outcome,
    SetAside,
    after_cancel,
    after_error,
    after_refusal,
    after_success,
    cut_off_ms,
    retention_of,
)
from streamq.worker.routes import Routes, unknown
from streamq.worker.teller import Teller, complain

log = logging.getLogger("streamq.executor")

_EAGER = sys.version_info >= (3, 12)

_CUT_OFF = frozenset({Stop.TIMEOUT, Stop.LOST, Stop.CANCEL})
"""Stops after which what a thread came to no longer counts; after a shutdown it still does."""


_LEAVING_S = 1.0
"""A run whose time is over while it cleans up is looked at again after so long."""


class Settles(Protocol):
    """What the executor needs of the settler."""

    def settle(self, run: Run, outcome: Outcome) -> None: ...


class Executor:
    """The slots of one worker. Lives on one event loop."""

    def __init__(
        self,
        definitions: Mapping[str, Definition],
        settler: Settles,
        held: Held,
        clock: ServerClock,
        *,
        concurrency: int,
        limits: Limits,
        limiter: Admits,
        teller: Teller | None = None,
        isolator: Isolates | None = None,
        report: Report | None = None,
    ) -> None:
        self._routes = Routes(definitions)
        self._settle = settler.settle
        self._held = held
        self._clock = clock
        self._concurrency = concurrency
        self._limits = limits
        self._teller = teller or Teller()
        self._invoker = Invoker(concurrency, limiter, self._routes, isolator)
        self._report = report
        self._running: set[Run] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self.state: Any = None
        """What handlers see as ``current_task().state``."""
        self.started = 0

    @property
    def free(self) -> int:
        """Slots that a handler could take now."""
        return self._concurrency - len(self._running)

    @property
    def running(self) -> int:
        """Handlers that have not ended."""
        return len(self._running)

    async def wait_change(self) -> None:
        """Wait until a handler ends, or until someone calls ``wake``."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        """Let everyone look again who waits for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_idle(self) -> None:
        """Wait until no handler runs."""
        while self._running:
            await self.wait_change()

    def start(self, source: Source, entries: list[Entry]) -> None:
        """Start a handler for each entry. The caller has made sure that slots are free."""
        suspended: list[Run] = []
        for entry in entries:
            run = Run(source, entry)
            self._held.add(run)
            self.started += 1
            self._start_one(run)
            if run.handle is not None:
                suspended.append(run)
        set_current(None)
        if suspended:
            # One turn of the loop later those that hardly wait are through, and need no timer.
            asyncio.get_running_loop().call_soon(self._arm_timers, suspended)

    def stop_runs(self, stop: Stop, runs: list[Run] | None = None) -> None:
        """Cancel running handlers; sync ones are only marked, and go on."""
        for run in list(self._running) if runs is None else runs:
            if run.stop is None and run in self._running:
                run.stop = stop
                if run.handle is not None and run.began and not run.leaving:
                    run.handle.cancel()

    def cancel(self, run: Run, cancel: Cancel) -> None:
        """Stop a run because its task has been cancelled; that decides what becomes of the task."""
        run.cancel = cancel
        self.stop_runs(Stop.CANCEL, [run])

    def stuck_runs(self) -> list[Run]:
        """Runs whose handlers still run: after ``stop_runs``, those that will not be stopped."""
        return list(self._running)

    # Starting

    def _start_one(self, run: Run) -> None:
        try:
            run.message = message = decode_message(run.entry.message)
            args, kwargs = decode_payload(message.payload)
        except StoredDataError as error:
            # The payload of a batch is no pair of arguments. So batches are found here, and plain tasks
            # need not be asked whether they are one.
            if run.message is not None and run.message.group is not None:
                self._start_batch(run, run.message)
            else:
                self._archive_unreadable(run, error)
            return
        run.definition = definition = self._routes[message.type]
        if not message.plain:
            if message.lock is not None:
                run.beside = (run.entry.task_id,)
            if self._too_late(run, message):
                return
        set_current(self._context(run, message, definition))
        self._running.add(run)
        if definition.plain:
            invoke = definition.handler
        else:
            invoke = self._invoker.of(run, definition)
            if definition.batch:
                run.batch = batch_of_one(run.entry, message, args, kwargs)
                args, kwargs = [run.batch.members], {}
        handle = _start_task(self._attempt(run, invoke, args, kwargs))
        if not handle.done():
            run.handle = handle

    def _start_batch(self, run: Run, message: Message) -> None:
        try:
            run.batch, run.message = batch, message = read_batch(message, self._clock.now_ms())
        except StoredDataError as error:
            self._archive_unreadable(run, error)
            return
        run.beside = tuple(batch.ids)
        run.definition = definition = self._routes[message.type]
        if not batch.members:
            self._record(run, COMPLETE)
            return
        set_current(self._context(run, message, definition))
        self._running.add(run)
        invoke, args = self._invoker.of_batch(run, definition, batch)
        handle = _start_task(self._attempt(run, invoke, args, {}))
        if not handle.done():
            run.handle = handle

    def _context(self, run: Run, message: Message, definition: Definition) -> TaskContext:
        return TaskContext(run, message, definition, self._clock.now_ms(), self.state, self._report)

    def _too_late(self, run: Run, message: Message) -> bool:
        if message.expires_ms is None and message.deadline_ms is None:
            return False
        now_ms = self._clock.now_ms()
        if message.expires_ms is not None and message.expires_ms <= now_ms:
            if message.on_expiry:
                self._settle(run, Discard(Reason.EXPIRED))
            else:
                self._archive_unstarted(run, Archive(message, Reason.EXPIRED), Reason.EXPIRED)
            return True
        if message.deadline_ms is not None and message.deadline_ms <= now_ms:
            late = AttemptTimeout("the deadline had passed before the attempt could start")
            noted = message.copy(error=f"AttemptTimeout: {late}", failed_ms=now_ms)
            self._archive_unstarted(run, Archive(noted, Reason.FAILED), late)
            return True
        return False

    def _archive_unreadable(self, run: Run, error: StoredDataError) -> None:
        log.error("task cannot be read; archived id=%s error=%s", run.entry.task_id, error)
        self._archive_unstarted(run, Archive(None, Reason.UNDECODABLE), Reason.UNDECODABLE)

    def _archive_unstarted(self, run: Run, outcome: Archive, cause: BaseException | Reason) -> None:
        """The task was never started, so it has no slot in which to wait for a hook."""
        self._settle(run, outcome)
        message = run.message or UNREADABLE
        definition = None if run.message is None else self._routes[message.type]
        if self._teller.wants("on_archive", definition):
            context = self._context(run, message, definition or unknown(""))
            self._teller.tell_later("on_archive", context, definition, cause)

    async def _attempt(self, run: Run, invoke: Invoke, args: list[Any], kwargs: dict[str, Any]) -> None:
        try:
            run.began = True
            if run.stop is not None:
                raise asyncio.CancelledError
            result = await invoke(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # also SystemExit: a handler must not end the worker
            if isinstance(error, NotAdmitted):
                self._put_back(run, error)
            elif run.outliving is not None:
                await outlast(run.outliving)
                await self._outlasted(run, run.outliving, error)
            elif run.stop:
                await self._broken_off(run, error)
            else:
                await self._failed(run, error)
        else:
            told = self._succeeded(run, result)
            if told is not None:
                await self._tell(told[0], run, told[1])
        finally:
            self._ended(run)

    async def _outlasted(self, run: Run, work: asyncio.Future[Any], error: BaseException) -> None:
        """The attempt ended with ``error``; what it could not cancel has ended since."""
        if run.stop in _CUT_OFF:
            await self._broken_off(run, work.exception())
        elif run.stop is None:
            await self._failed(run, error)
        elif isinstance(work.exception(), AttemptCancelled):
            await self._broken_off(run, work.exception())
        elif work.exception() is not None:
            await self._failed(run, work.exception() or error)
        else:
            told = self._succeeded(run, work.result())
            if told is not None:
                await self._tell(told[0], run, told[1])

    def _arm_timers(self, runs: list[Run]) -> None:
        loop = asyncio.get_running_loop()
        for run in runs:
            if run in self._running and run.stop is None and not run.outcome_recorded:
                limit_s = self._limit_s(run)
                if limit_s is not None:
                    run.timer = loop.call_later(limit_s, self._time_out, run)

    def _time_out(self, run: Run) -> None:
        if run.leaving:
            run.timer = asyncio.get_running_loop().call_later(_LEAVING_S, self._time_out, run)
        else:
            self.stop_runs(Stop.TIMEOUT, [run])

    def _limit_s(self, run: Run) -> float | None:
        """Seconds this attempt may take: the earlier of timeout and deadline."""
        message, definition = run.message, run.definition
        if message is None or definition is None:
            return None
        now_ms = self._clock.now_ms()
        end_ms = cut_off_ms(message, definition, now_ms)
        return None if end_ms is None else max(0, end_ms - now_ms) / 1000

    # Ending

    def _succeeded(self, run: Run, result: Any) -> tuple[str, Any] | None:
        """Record the success; the hooks that are to hear of it, and what: None where nobody listens."""
        message, definition = run.message, run.definition
        assert message is not None  # noqa: S101  # set before the handler was started
        assert definition is not None  # noqa: S101
        if not retention_of(message, definition):
            self._record(run, COMPLETE)
        elif (refused := self._keep(run, message, definition, result)) is not None:
            return "on_archive", refused
        if self._teller.of_success or definition.hooks.on_success is not None:
            return "on_success", result
        return None

    def _keep(self, run: Run, message: Message, definition: Definition, result: Any) -> PayloadError | None:
        """Record the success with its result; the error, if that cannot be stored."""
        now_ms = self._clock.now_ms()
        try:
            stored = encode_result(result, self._limits)
        except PayloadError as error:
            # The work is done; another attempt would do it twice and end the same way.
            noted = message.copy(error=f"PayloadError: {error}", failed_ms=now_ms)
            self._record(run, Archive(noted, Reason.FAILED))
            log.error("result cannot be stored; archived id=%s type=%s", run.entry.task_id, message.type)
            return error
        self._record(run, after_success(message, definition, stored, now_ms))
        return None

    def _put_back(self, run: Run, refusal: NotAdmitted) -> None:
        """Limits did not let it start: there was no attempt, and nobody is told."""
        assert run.message is not None  # noqa: S101  # set before the limits were asked
        self._record(run, after_refusal(run.message, refusal))

    async def _broken_off(self, run: Run, error: BaseException | None) -> None:
        """A handler ended by an error, or too late, after it had been told to stop."""
        if run.stop is Stop.SHUTDOWN or run.stop is Stop.CANCEL:
            self._record(run, RELEASE)
        elif run.stop is Stop.LOST:
            self._held.remove(run)
            await self._tell("on_error", run, LeaseLost("the lease ran out while the handler ran"))
        else:
            late = AttemptTimeout("the attempt ran past its timeout or deadline")
            late.__cause__ = error
            await self._failed(run, late)

    async def _failed(self, run: Run, error: BaseException) -> None:
        message, definition = run.message, run.definition
        assert message is not None  # noqa: S101  # set before the handler was started
        assert definition is not None  # noqa: S101
        if run.cancel is not None:
            self._record(run, RELEASE)
            return
        if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
            exited = HandlerExited(f"the handler raised {type(error).__name__}")
            exited.__cause__ = error
            error = exited
        outcome = self._outcome_of(run, message, definition, error)
        log.info(
            "attempt failed id=%s type=%s queue=%s retried=%d error=%s outcome=%s",
            run.entry.task_id.decode("utf-8", "replace"),
            message.type,
            run.source.queue.name,
            message.retried,
            type(error).__name__,
            type(outcome).__name__,
        )
        self._record(run, outcome)
        await self._tell("on_error", run, error)
        if isinstance(outcome, Archive):
            await self._tell("on_archive", run, error)

    def _outcome_of(
        self, run: Run, message: Message, definition: Definition, error: BaseException
    ) -> Outcome:
        def on_broken(name: str, broken: BaseException) -> None:
            complain(name, self._context(run, message, definition), broken)

        def decide(message: Message) -> Outcome:
            in_front = run.entry.lane is Lane.FRONT
            now_ms = self._clock.now_ms()
            return after_error(
                message, definition, error, now_ms, self._limits, in_front=in_front, on_broken=on_broken
            )

        try:
            return decide(message)
        except StoredDataError:
            # Its retry policy is unreadable: the default decides, the stored one stays as it is.
            return decide(message.copy(retry_policy=None))

    async def _tell(self, name: str, run: Run, fact: Any) -> None:
        """Call the user's hooks, after the outcome is recorded: whatever they do, the task is settled."""
        message, definition = run.message, run.definition
        if message is None or definition is None or run.cancel is not None:
            return  # what was cancelled has neither failed nor succeeded
        if self._teller.wants(name, definition):
            await self._teller.tell(name, self._context(run, message, definition), definition, fact)

    def _record(self, run: Run, outcome: Outcome) -> None:
        if run.timer is not None:
            run.timer.cancel()  # it is for the handler: hooks that come now have their own limit
        if run.stop is Stop.LOST:
            self._held.remove(run)
        elif run.cancel is None:
            if run.batch is not None:
                outcome = run.batch.settled_with(outcome)
            self._settle(run, outcome)
            if run.batch is not None and isinstance(outcome, SetAside):
                self._tell_aside(run, outcome.aside)
        else:
            # Whatever the handler came to, in spite of the cancel or because of it.
            self._settle(run, after_cancel(run.cancel))

    def _tell_aside(self, run: Run, aside: Iterable[Aside]) -> None:
        """Members that their batch went on without are archived tasks of their own."""
        definition = run.definition
        for one in aside:
            log.warning(
                "member set aside id=%s batch=%s reason=%s", one.task_id, run.entry.task_id, one.reason
            )
            if definition is not None and self._teller.wants("on_archive", definition):
                member = Run(run.source, run.entry._replace(task_id=one.task_id, message=one.stored))
                context = self._context(member, one.message or UNREADABLE, definition)
                self._teller.tell_later("on_archive", context, definition, one.cause)

    def _ended(self, run: Run) -> None:
        if run.timer is not None:
            run.timer.cancel()
        # The task's context knows the run: a ring that the collector would have to find, for every task.
        run.handle = None
        self._running.discard(run)
        if self._waiters:
            self.wake()


def _start_task(attempt: Any) -> asyncio.Task[None]:
    if _EAGER:
        loop = asyncio.get_running_loop()
        return asyncio.Task(attempt, loop=loop, eager_start=True)  # type: ignore[call-arg, unused-ignore]
    return asyncio.create_task(attempt)
