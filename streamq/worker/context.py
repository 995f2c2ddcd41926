"""What a handler can ask about the task it runs for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar

from streamq.broker.keys import queue_keys
from streamq.broker.working import Entry
from streamq.errors import AttemptCancelled, UsageError
from streamq.model.definition import Definition
from streamq.model.groups import Member
from streamq.model.info import moment
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.progress import packed
from streamq.worker.held import Run, Source
from streamq.worker.outcome import cut_off_ms

S = TypeVar("S")

UNREADABLE = Message.new(type="", payload=b"")
"""Stands for a message that cannot be read: its task has an id, but no type and no headers."""


Report = Callable[[Run, bytes], None]
"""Passes on what a handler says of its progress, ``packed``. Any thread may."""


class TaskContext:
    """The running task. Read-only."""

    __slots__ = ("_definition", "_message", "_report", "_run", "_started_ms", "state")

    def __init__(
        self,
        run: Run,
        message: Message,
        definition: Definition,
        started_ms: int,
        state: Any,
        report: Report | None = None,
    ) -> None:
        self._run = run
        self._message = message
        self._definition = definition
        self._started_ms = started_ms
        self._report = report
        self.state = state
        """What the app's lifespan yielded."""

    def state_as(self, kind: type[S]) -> S:
        """The state, which must be an instance of ``kind``: for type checkers, and checked when run.

        Raises UsageError when it is something else.
        """
        if not isinstance(self.state, kind):
            held = "nothing" if self.state is None else f"a {type(self.state).__name__}"
            raise UsageError("state", f"is {held}, not a {kind.__name__}; the app's lifespan yields it")
        return self.state

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return self._run.source.queue.name

    @property
    def id(self) -> str:
        """The task's id."""
        return self._run.entry.task_id.decode("utf-8", "replace")

    @property
    def type(self) -> str:
        """The name under which the task was enqueued; empty where its message cannot be read."""
        return self._message.type

    @property
    def group(self) -> str | None:
        """The group of which it is a batch; None for any other task."""
        return self._message.group

    @property
    def members(self) -> Sequence[Member]:
        """The tasks that are run together; empty where the handler takes no batches."""
        return () if self._run.batch is None else tuple(self._run.batch.members)

    @property
    def headers(self) -> Mapping[str, str]:
        """What the producer sent along."""
        return self._message.headers

    @property
    def retried(self) -> int:
        """Failures so far."""
        return self._message.retried

    @property
    def max_retries(self) -> int:
        """Failures that may be followed by another attempt."""
        kept = self._message.max_retries
        return self._definition.retry.max_retries if kept is None else kept

    @property
    def crashes(self) -> int:
        """Times a worker died while it ran this task."""
        return self._run.entry.crashes

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1. Crashes do not count."""
        return self._message.retried + 1

    @property
    def enqueued_at(self) -> datetime | None:
        """When it was enqueued, by the producer's clock."""
        return moment(self._message.enqueued_ms)

    @property
    def deadline(self) -> datetime | None:
        """When this attempt is cut off: the earlier of timeout and deadline; None for no limit."""
        return moment(cut_off_ms(self._message, self._definition, self._started_ms))

    @property
    def cancelled(self) -> str | None:
        """Why the handler should end now; None while it may go on.

        ``cancel``: the task has been cancelled; ``timeout``: its time is over; ``lost``: another worker has
        the task; ``shutdown``: the worker ends. A handler in a thread cannot be stopped from outside: a long
        one asks this now and then.
        """
        stop = self._run.stop
        return None if stop is None else stop.value

    def raise_if_cancelled(self) -> None:
        """End here if the handler should: raises AttemptCancelled, which counts as what stopped it."""
        why = self.cancelled
        if why is not None:
            raise AttemptCancelled(f"the handler was told to stop ({why})")

    def progress(self, fraction: float | None, text: str = "") -> None:
        """Say how far the task is: a number from 0 to 1, or None, and a short text.

        From any thread of the handler. It is written soon and seldom, the newest winning, and only
        while this worker holds the task. Raises OptionError for a number or text without meaning.
        """
        said = packed(fraction, text)
        if self._report is not None:
            self._report(self._run, said)

    def _frame(self) -> dict[str, Any]:
        """The context as plain values for a child process, without the arguments of the task."""
        entry, queue = self._run.entry, self._run.source.queue
        return {
            "queue": queue.name,
            "prefix": queue.base.removesuffix(f":{{{queue.name}}}"),
            "lane": entry.lane.value,
            "entry_id": entry.entry_id,
            "task_id": entry.task_id,
            "home": entry.home.value,
            "crashes": entry.crashes,
            "message": dict(self._message.copy(payload=b"").stored),
            "started_ms": self._started_ms,
        }

    @property
    def cron(self) -> str | None:
        """The id of the cron entry that enqueued this task; None when none did."""
        match self._message.tick:
            case [str(entry_id), int()]:
                return entry_id
        return None

    @property
    def tick(self) -> datetime | None:
        """The time for which the task stands in its schedule, however late it was enqueued."""
        match self._message.tick:
            case [str(), int(tick_ms)]:
                return moment(tick_ms)
        return None

    def __repr__(self) -> str:
        return f"<TaskContext {self.type!r} {self.id} attempt={self.attempt}>"


_current: ContextVar[TaskContext | None] = ContextVar("streamq_current_task", default=None)


def current_task() -> TaskContext:
    """The task that this code runs for. Raises UsageError outside of a handler."""
    context = _current.get()
    if context is None:
        raise UsageError("current_task", "there is none: this code does not run inside a handler")
    return context


set_current = _current.set


# To a child process, and there

frame_of = TaskContext._frame  # noqa: SLF001  # not for handlers to see


def of_frame(
    frame: Mapping[str, Any], definition: Definition, state: Any, report: Report
) -> tuple[TaskContext, Run]:
    """The context whose ``frame_of`` this is, and what stands for its run in the child process."""
    lane, home = Lane(frame["lane"]), Lane(frame["home"])
    source = Source(queue_keys(frame["prefix"], frame["queue"]), lane)
    run = Run(source, Entry(lane, frame["entry_id"], frame["task_id"], b"", home, frame["crashes"]))
    run.message, run.definition = Message(frame["message"]), definition
    return TaskContext(run, run.message, definition, frame["started_ms"], state, report), run
