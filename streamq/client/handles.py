"""References to enqueued tasks: ask for their state, wait for their result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from streamq.client.client import Client
    from streamq.client.sync_client import SyncClient
    from streamq.model.cancelling import CancelOutcome
    from streamq.model.durations import Duration
    from streamq.model.info import TaskInfo
    from streamq.model.progress import Progress

R = TypeVar("R")


class _Reference:
    """What both kinds of handle are: a task's place, and whether this enqueue created it."""

    __slots__ = ("_client", "created", "id", "queue")

    def __init__(self, client: Any, queue: str, task_id: str, created: bool = True) -> None:  # noqa: FBT001, FBT002
        self._client = client
        self.queue = queue
        self.id = task_id
        self.created = created
        """False when the id belonged to a task that was there already."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.queue, self.id) == (other.queue, other.id)

    def __hash__(self) -> int:
        return hash((self.queue, self.id))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} in {self.queue}>"


class TaskHandle(_Reference, Generic[R]):
    """One enqueued task, for asyncio code."""

    __slots__ = ()
    _client: Client

    async def result(self, timeout: Duration | None = None) -> R:
        """Wait for the task and return what its handler returned.

        ``timeout`` is seconds or a timedelta; None waits without limit. The wait is woken by the
        worker's own settling; it does not poll.

        Raises TaskFailed when the task was archived (TaskCancelled when it was cancelled), ResultNotKept
        when it finished without retention, ResultTimeout, TaskNotFound, ServerError.
        """
        result: R = await self._client.result(self.queue, self.id, timeout)
        return result

    async def info(self) -> TaskInfo:
        """A snapshot of the task. Raises TaskNotFound when it is gone, ServerError."""
        return await self._client.info(self.queue, self.id)

    async def progress(self) -> Progress | None:
        """What the handler said last of how far it is; None when it said nothing, or has succeeded.

        Raises TaskNotFound when the task is gone, ServerError.
        """
        return (await self.info()).progress

    async def cancel(self, outcome: CancelOutcome = "archive", *, delay: Duration | None = None) -> bool:
        """Cancel the task, whatever its state. True: it is done; False: it runs, and its worker is told.

        ``outcome`` says what becomes of it, and is final: ``archive`` keeps it for inspection, ``delete``
        forgets it, ``retry`` runs it again after ``delay`` (seconds or a timedelta). A running handler is
        cancelled; should it succeed before that reaches its worker, the task is completed.

        Raises TaskNotFound; TaskFinished when there is nothing to cancel any more (an archived task may
        still be deleted); TaskInBatch; ServerError.
        """
        return await self._client.cancel(self.queue, self.id, outcome=outcome, delay=delay)


class SyncTaskHandle(_Reference, Generic[R]):
    """One enqueued task, for blocking code."""

    __slots__ = ()
    _client: SyncClient

    def result(self, timeout: Duration | None = None) -> R:
        """As TaskHandle.result, blocking."""
        result: R = self._client.result(self.queue, self.id, timeout)
        return result

    def info(self) -> TaskInfo:
        """As TaskHandle.info, blocking."""
        return self._client.info(self.queue, self.id)

    def progress(self) -> Progress | None:
        """As TaskHandle.progress, blocking."""
        return self.info().progress

    def cancel(self, outcome: CancelOutcome = "archive", *, delay: Duration | None = None) -> bool:
        """Cancel the task, whatever its state; see TaskHandle.cancel."""
        return self._client.cancel(self.queue, self.id, outcome=outcome, delay=delay)
