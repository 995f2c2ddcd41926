"""Every error that StreamQ raises, as one tree split by whose fault it is.

    StreamQError
    ├── UsageError                the caller's: bad input, refused before anything is written
    │   ├── OptionError               an option, name or setting has no meaning
    │   ├── PayloadError              arguments or headers that cannot be stored
    │   ├── AddressError              a Redis URL that makes no sense
    │   ├── RegistrationError         a handler registered twice or badly
    │   └── LifecycleError            a worker that is run twice, or again after its end
    ├── TaskError                 about one task
    │   ├── TaskNotFound              no such task (never was, or gone)
    │   ├── TaskIdConflict            the wished id belongs to another task
    │   ├── DuplicateTask             another task holds the lock of this unique task
    │   ├── TaskFinished              it is finished: there is nothing to cancel
    │   ├── TaskInBatch               it is part of a batch, which is the task now
    │   ├── TaskFailed                the task was archived; carries the handler's error
    │   │   └── TaskCancelled             it was cancelled, and archived as such
    │   ├── ResultNotKept             finished, but its retention keeps no result
    │   └── ResultTimeout             not finished within the time the caller gave
    ├── BatchError                some tasks of an enqueue_many failed; carries every result
    ├── CronError                 about one cron entry: unknown, exists already
    ├── QueueError                about one queue: unknown, already paused, not empty ...
    │   └── QueueLimitReached         a limit of the queue refused the task
    │       ├── QueueFull                 it has as many tasks as it may have
    │       ├── EnqueueRateExceeded       tasks come too fast; says when to try again
    │       ├── TaskTooLarge              the task has too many bytes for this queue
    │       └── TypeNotAllowed            the queue takes no tasks of this type
    ├── SemaphoreError            about one semaphore
    │   ├── SemaphoreTimeout          no permit was free within the time the caller gave
    │   └── SemaphoreLost             the lease of a permit ran out while it was held
    ├── WorkerError               about one worker: no such
    ├── ServerError               Redis's
    │   ├── Unavailable               cannot be reached, or the connection was lost
    │   │   ├── ServerTimeout             no answer within the time limit
    │   │   └── ServerLoading             it is still reading its data set
    │   ├── OutOfMemory               maxmemory reached: back-pressure, nothing was written
    │   ├── ReadOnly                  this is a replica, or writes are refused
    │   ├── AuthenticationFailed      NOAUTH or WRONGPASS
    │   ├── PermissionDenied          the ACL user lacks a right
    │   ├── UnsupportedServer         a server that StreamQ cannot work with
    │   ├── SequenceConflict          another client uses this producer's identity
    │   └── ServerRefused             any other refusal
    ├── StoredDataError           what is stored cannot be read
    │   ├── MessageError              not a message
    │   └── UnknownVersion            written by a newer StreamQ
    ├── AttemptError              why an attempt failed, where the handler raised nothing that says it
    │   ├── AttemptTimeout            it ran past its timeout or deadline
    │   ├── LeaseLost                 this worker was taken for dead, and the task given to another
    │   ├── AttemptCancelled          a sync handler noticed that it was told to stop
    │   ├── BadAggregate              an aggregator returned neither a call nor None
    │   ├── HandlerNotFound           no handler is registered for the task's type
    │   ├── HandlerExited             the handler called sys.exit
    │   ├── HandlerFailed             the handler raised in its child process; carries what it raised
    │   ├── ChildFailed               the child process of the handler crashed, or could not start
    │   └── ResourceLimitExceeded     the handler used more than its child process may
    └── Steering                  raised by handlers to choose the outcome: not failures of StreamQ
        ├── RetryAfter                try again after a delay of its own
        ├── Release                   give the task back at once: nothing is spent
        ├── SkipRetry                 archive now, whatever retries are left
        └── Drop                      forget the task: no retry, no archive

Messages name the field and the remedy. They never carry payloads, keys or passwords.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class StreamQError(Exception):
    """Root of every error that StreamQ raises on purpose."""


class UsageError(StreamQError, ValueError):
    """Input that StreamQ refuses. Nothing has been written.

    ``field`` names the argument or setting at fault.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.problem)


class OptionError(UsageError):
    """An option, a name or a setting that has no meaning."""


class PayloadError(UsageError):
    """Arguments, a result or headers that cannot be stored: wrong type, too large or too deep."""


class AddressError(UsageError):
    """A Redis URL that makes no sense."""


class RegistrationError(UsageError):
    """A handler that cannot be registered: registered twice, blank name, not callable."""


class LifecycleError(UsageError):
    """A worker that is run while it runs, or again after its end."""


class TaskError(StreamQError):
    """About one task; ``task_id`` and ``queue`` say which."""

    def __init__(self, queue: str, task_id: str, problem: str) -> None:
        super().__init__(f"task {task_id} in queue {queue}: {problem}")
        self.queue = queue
        self.task_id = task_id
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.task_id, self.problem)


class TaskNotFound(TaskError):
    """No such task: it never was, or it is finished and not retained."""


class TaskIdConflict(TaskError):
    """The wished task id belongs to another task, which is untouched."""


class DuplicateTask(TaskError):
    """Another task holds the lock of this unique task. ``task_id`` is that other task's."""


class TaskFailed(TaskError):
    """The task was archived. The text is the handler's last error."""


class TaskCancelled(TaskFailed):
    """The task was cancelled and archived as such."""


class TaskFinished(TaskError):
    """The task is finished: completed or archived. There is nothing to cancel; it can be deleted."""


class TaskInBatch(TaskError):
    """The task has become part of a batch, which is the task that runs; ``batch_id`` is its id."""

    def __init__(self, queue: str, task_id: str, batch_id: str) -> None:
        super().__init__(queue, task_id, f"is part of the batch {batch_id}; cancel or delete that one")
        self.batch_id = batch_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.task_id, self.batch_id)


class ResultNotKept(TaskError):
    """The task keeps no result: enqueue it with ``retention`` to be able to wait for one."""


class ResultTimeout(TaskError, TimeoutError):
    """The task did not finish within the time the caller was ready to wait."""


class BatchError(StreamQError):
    """Some tasks of one ``enqueue_many`` were not enqueued.

    ``results`` has one item per call, in order: the handle, or the error of that call alone.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        failed = [item for item in results if isinstance(item, Exception)]
        first = f"; the first: {failed[0]}" if failed else ""
        super().__init__(f"{len(failed)} of {len(results)} tasks were not enqueued{first}")
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.results,)


class CronError(StreamQError):
    """About one cron entry: there is none with this id, or another one has it already."""

    def __init__(self, queue: str, cron_id: str, problem: str) -> None:
        super().__init__(f"cron entry {cron_id!r} in queue {queue}: {problem}")
        self.queue = queue
        self.cron_id = cron_id
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.cron_id, self.problem)


class QueueError(StreamQError):
    """About one queue: unknown, already paused, not paused, not empty."""

    def __init__(self, queue: str, problem: str) -> None:
        super().__init__(f"queue {queue}: {problem}")
        self.queue = queue
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.problem)


class QueueLimitReached(QueueError):
    """A limit of the queue refused a task. Nothing of it was stored; others of its call were not touched."""


class QueueFull(QueueLimitReached):
    """The queue has as many unfinished tasks as it may have."""


class EnqueueRateExceeded(QueueLimitReached):
    """Tasks come faster than the queue takes them. ``retry_after`` is in seconds."""

    def __init__(self, queue: str, retry_after: float) -> None:
        super().__init__(queue, f"takes tasks no faster; try again in {retry_after:g} s")
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.retry_after)


class TaskTooLarge(QueueLimitReached):
    """The task has more bytes than the queue allows, arguments and headers together."""


class TypeNotAllowed(QueueLimitReached):
    """The queue takes no tasks of this type."""


class SemaphoreError(StreamQError):
    """About one semaphore; ``semaphore`` is its name."""

    def __init__(self, semaphore: str, problem: str) -> None:
        super().__init__(f"semaphore {semaphore}: {problem}")
        self.semaphore = semaphore
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.semaphore, self.problem)


class SemaphoreTimeout(SemaphoreError, TimeoutError):
    """No permit was free within the time the caller was ready to wait."""


class SemaphoreLost(SemaphoreError):
    """The lease ran out while the permit was held: another program may have held it at the same time."""


class WorkerError(StreamQError):
    """About one worker: it is not there, or not any more."""

    def __init__(self, worker_id: str, problem: str) -> None:
        super().__init__(f"worker {worker_id}: {problem}")
        self.worker_id = worker_id
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.worker_id, self.problem)


class ServerError(StreamQError):
    """Redis could not do what was asked."""


class Unavailable(ServerError, ConnectionError):
    """Redis cannot be reached, or the connection was lost before it answered."""


class ServerTimeout(Unavailable, TimeoutError):
    """Redis did not answer within the time limit."""


class ServerLoading(Unavailable):
    """Redis is still loading its data set; try again shortly."""


class OutOfMemory(ServerError):
    """Redis has reached ``maxmemory`` and refuses writes that grow it. Nothing was written."""


class ReadOnly(ServerError):
    """Redis refuses writes: it is a replica, or cannot persist."""


class AuthenticationFailed(ServerError):
    """Redis wants a password, or refuses the one it was given."""


class PermissionDenied(ServerError):
    """The ACL user lacks a right that StreamQ needs."""


class UnsupportedServer(ServerError):
    """A server that StreamQ cannot work with (older than 6.2, or scripts disabled)."""


class SequenceConflict(ServerError):
    """A different batch is known under this producer's sequence: a cloned machine or process."""


class ServerRefused(ServerError):
    """Redis refused a command for another reason; the text is Redis's own."""


class StoredDataError(StreamQError):
    """What is stored cannot be read."""


class MessageError(StoredDataError):
    """Stored bytes that are not a StreamQ message."""


class UnknownVersion(StoredDataError):
    """A message written by a newer StreamQ than this one can read."""


class AttemptError(StreamQError):
    """Why an attempt failed, where the handler raised nothing that says it."""


class AttemptTimeout(AttemptError, TimeoutError):
    """The attempt ran past its timeout or its deadline."""


class LeaseLost(AttemptError):
    """The lease ran out while the handler ran: another worker has the task, this outcome is refused."""


class AttemptCancelled(AttemptError):
    """The handler asked whether it was told to stop, and stops: ``current_task().raise_if_cancelled()``."""


class BadAggregate(AttemptError):
    """The aggregator of a task returned something that is neither a TaskCall nor None."""


class HandlerNotFound(AttemptError):
    """No handler is registered for the task's type in this worker."""


class HandlerExited(AttemptError):
    """The handler called sys.exit, or raised what would have ended the worker."""


class HandlerFailed(AttemptError):
    """The handler raised in its child process. The text is that of its error.

    ``type_name`` is the class of the error, ``traceback`` where it was raised; ``is_failure`` what the
    task's predicate of that name answered in the child process.
    """

    def __init__(
        self,
        problem: str,
        type_name: str = "HandlerFailed",
        traceback: str = "",
        *,
        is_failure: bool = True,
    ) -> None:
        super().__init__(problem)
        self.type_name = type_name
        self.traceback = traceback
        self.is_failure = is_failure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.type_name, self.traceback), {"is_failure": self.is_failure}


class ChildFailed(AttemptError):
    """The child process that ran the handler crashed, or could not be started; the worker goes on."""


class ResourceLimitExceeded(AttemptError):
    """The handler used more memory, processor time or open files than its child process may."""


class Steering(StreamQError):
    """Raised by a handler to choose its task's outcome."""


class RetryAfter(Steering):
    """Try the task again after ``delay`` (seconds or a timedelta), whatever its policy says.

    It spends a retry, and archives the task when none is left, unless ``spend`` is False. A delay
    that has no meaning is a failure like any other.
    """

    def __init__(self, delay: float | timedelta, problem: str = "", *, spend: bool = True) -> None:
        super().__init__(problem)
        self.delay = delay
        self.spend = spend

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, str(self)), {"spend": self.spend}


class Release(Steering):
    """Give the task back to the front of its queue at once: nothing is spent.

    A task that is given back once more right after waits a second first, so that one which nobody
    wants does not keep the workers busy.
    """


class SkipRetry(Steering):
    """Archive the task now, however many retries are left."""


class Drop(Steering):
    """Forget the task: it is neither retried nor archived."""
