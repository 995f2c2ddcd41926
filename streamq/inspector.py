"""The operator's view: look at queues, tasks and workers; pause, resume, delete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from streamq.broker import (
    auditing,
    grouping,
    inspecting,
    limiting,
    moving,
    ordering,
    presence,
    producing,
    steering,
)
from streamq.broker.address import Address, as_address
from streamq.broker.command import Command
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.ordering import ALL, Verb
from streamq.broker.runner import AsyncRunner
from streamq.clock import utc_day, wall_ms
from streamq.errors import (
    OptionError,
    QueueError,
    ServerError,
    TaskError,
    TaskInBatch,
    TaskNotFound,
    WorkerError,
)
from streamq.model.cancelling import Cancel, CancelOutcome
from streamq.model.durations import Duration, duration_ms
from streamq.model.groups import GroupInfo
from streamq.model.info import Audit, QueueInfo, TaskInfo, WorkerInfo
from streamq.model.lanes import LANES
from streamq.model.names import check_key_name, check_task_id
from streamq.model.queue_limits import NO_LIMITS, QueueLimits
from streamq.model.states import State

T = TypeVar("T")

DEFAULT_LEASE_S = 10.0
MAX_PAGE = 10_000
"""The most groups or tasks that one call lists."""
_DAYS_KEPT = 92
"""Counters of a day live 90 days; two more cover clocks that differ."""


class Inspector:
    """Looks and steers. Figures of one call are read in one round trip, but not in one instant.

    ``lease`` is that of the workers, to tell orphaned tasks. Every method may raise ServerError, and
    OptionError for a name without meaning.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        namespace: str | None = None,
        lease: Duration = DEFAULT_LEASE_S,
        runner: AsyncRunner | None = None,
    ) -> None:
        self.keys = Keys(namespace)
        self._lease_ms = duration_ms("lease", lease)
        self._owns_runner = runner is None
        self._runner = runner or AsyncRunner(as_address(url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. May be called twice."""
        if self._owns_runner:
            await self._runner.aclose()

    # Looking

    async def queues(self) -> list[str]:
        """The names of all queues, sorted."""
        return await self._runner.run(inspecting.queue_names(self.keys))

    async def queue(self, queue: str) -> QueueInfo:
        """Counts and counters of one queue. Raises QueueError when it is unknown."""
        keys = await self._known(queue)
        groups: list[list[Command[Any]]] = [
            [*inspecting.lane_lengths(keys)],
            [*inspecting.pending_counts(keys)],
            [*inspecting.cardinalities(keys)],
            [inspecting.is_paused(keys), inspecting.counters(keys.stats), inspecting.limits(keys)],
        ]
        replies = await self._runner.run_all([command for group in groups for command in group])
        lengths, replies = _split(replies, len(groups[0]))
        active, replies = _split(replies, len(groups[1]))
        counts, replies = _split(replies, len(groups[2]))
        paused, counters, limits = _checked(replies)
        held = sum(count for count in active if isinstance(count, int))
        scheduled, retry, completed, archived, aggregating = _checked(counts)
        return QueueInfo(
            name=queue,
            ready=sum(_checked(lengths)) - held,
            active=held,
            scheduled=scheduled,
            retry=retry,
            completed=completed,
            archived=archived,
            paused=paused,
            processed=counters.get("processed", 0),
            failed=counters.get("failed", 0),
            limits=limits,
            aggregating=aggregating,
        )

    async def task(self, queue: str, task_id: str) -> TaskInfo:
        """One task, whatever its state. Raises QueueError, TaskNotFound."""
        found = await self._runner.run(inspecting.find(await self._known(queue), check_task_id(task_id)))
        if found.state is None:
            raise TaskNotFound(queue, task_id, "no such task")
        return inspecting.task_info(queue, task_id, found, self._lease_ms)

    async def groups(self, queue: str, *, limit: int = 100) -> list[GroupInfo]:
        """The groups that become batches next, the one that is due first in front. Raises QueueError."""
        keys = await self._known(queue)
        _check_limit(limit)
        due = await self._runner.run(grouping.groups(keys, limit))
        sizes = await self._runner.run_all([grouping.group_size(keys, one.name) for one in due])
        oldest = await self._runner.run_all([grouping.oldest_member(keys, one.name) for one in due])
        # One that became a batch meanwhile has no members any more.
        return [
            _group_info(one, size, oldest_ms)
            for one, size, oldest_ms in zip(due, _checked(sizes), _checked(oldest), strict=True)
            if oldest_ms is not None
        ]

    async def active(self, queue: str, *, limit: int = 100) -> list[TaskInfo]:
        """The longest delivered tasks that workers hold, those whose lease ran out marked as orphaned.

        Raises QueueError.
        """
        keys = await self._known(queue)
        _check_limit(limit)
        pages = await self._runner.run_all([inspecting.pending(keys, lane, limit) for lane in LANES])
        rows = [row for page in pages if isinstance(page, list) for row in page]
        entries = await self._runner.run_all([inspecting.entry(keys, row) for row in rows])
        infos = []
        for row, entry in zip(rows, entries, strict=True):
            if entry is not None and not isinstance(entry, BaseException):
                found = inspecting.Found(
                    state=State.ACTIVE, entry=entry, worker=row.worker, idle_ms=row.idle_ms
                )
                infos.append(inspecting.task_info(queue, entry.task_id.decode(), found, self._lease_ms))
        return infos[:limit]

    async def workers(self) -> list[WorkerInfo]:
        """Every worker whose heartbeat stands."""
        now_ms = await self._runner.run(presence.server_time())
        ids = await self._runner.run(presence.alive(self.keys, now_ms))
        said = _checked(await self._runner.run_all(presence.look_at(self.keys, ids)))
        # Neither those that expired meanwhile nor those whose heartbeat makes no sense.
        return [worker for worker in said if isinstance(worker, WorkerInfo)]

    async def counters(self, queue: str, day: str | None = None) -> dict[str, int]:
        """A queue's counters: over all time, or of one UTC day as YYYYMMDD. Raises QueueError."""
        keys = await self._known(queue)
        if day is not None:
            _check_day(day)
        return await self._runner.run(inspecting.counters(keys.stats if day is None else keys.stats_of(day)))

    # Steering

    async def pause(self, queue: str) -> None:
        """Hand out nothing more from the queue. Raises QueueError when it is paused already."""
        if await self._runner.run(steering.pause(await self._known(queue))) != b"ok":
            raise QueueError(queue, "is paused already")

    async def resume(self, queue: str) -> None:
        """Hand out tasks again. Raises QueueError when it is not paused."""
        if await self._runner.run(steering.resume(await self._known(queue))) != b"ok":
            raise QueueError(queue, "is not paused")

    async def limits(self, queue: str) -> QueueLimits:
        """What the queue takes from producers. Raises QueueError when it is unknown."""
        return await self._runner.run(inspecting.limits(await self._known(queue)))

    async def set_limits(self, queue: str, limits: QueueLimits | None) -> None:
        """Let the queue take no more than that from producers; None takes all its limits away.

        It holds at once, for every producer, and replaces the limits before. A queue that nobody has
        used yet is created. What is in the queue already stays.

        Raises QueueError where limits are taken away from a queue that is unknown.
        """
        if limits is not None and not isinstance(limits, QueueLimits):
            raise OptionError("limits", f"must be a QueueLimits or None, not {type(limits).__name__}")
        keys = self.keys.queue(check_key_name("queue", queue))
        if limits is None:
            keys = await self._known(queue)
        _checked(await self._runner.run_all(steering.set_limits(keys, limits or NO_LIMITS)))
        await self._runner.run(producing.register(self.keys.queues, queue))

    async def delete(self, queue: str, task_id: str) -> None:
        """Delete a task that is not running.

        Raises TaskNotFound, TaskInBatch, or TaskError when a worker holds it.
        """
        word = await self._runner.run(moving.delete(await self._known(queue), check_task_id(task_id)))
        if word == b"missing":
            raise TaskNotFound(queue, task_id, "no such task")
        if word == b"active":
            raise TaskError(queue, task_id, "is running; cancel it with outcome='delete', or wait")
        _, colon, batch = word.partition(b":")
        if colon:
            raise TaskInBatch(queue, task_id, batch.decode())

    async def quiet(self, worker_id: str | None = None) -> None:
        """Tell a worker, or all that are there now, to take no more tasks; what runs goes on.

        Raises WorkerError when there is no such worker.
        """
        await self._order(Verb.QUIET, worker_id)

    async def drain(self, worker_id: str | None = None) -> None:
        """Tell a worker, or all that are there now, to end when everything that they run has ended.

        However long that takes; ``stop`` bounds it. Raises WorkerError when there is no such worker.
        """
        await self._order(Verb.DRAIN, worker_id)

    async def stop(self, worker_id: str | None = None) -> None:
        """Tell a worker, or all that are there now, to end within their grace period, as SIGTERM does.

        Raises WorkerError when there is no such worker.
        """
        await self._order(Verb.STOP, worker_id)

    async def _order(self, verb: Verb, worker_id: str | None) -> None:
        now_ms = await self._runner.run(presence.server_time())
        if worker_id is not None:
            check_key_name("worker_id", worker_id)
            if worker_id not in await self._runner.run(presence.alive(self.keys, now_ms)):
                raise WorkerError(worker_id, "is not there; see workers()")
        _checked(await self._runner.run_all(ordering.order(self.keys, worker_id or ALL, verb, now_ms)))

    async def cancel(
        self,
        queue: str,
        task_id: str,
        *,
        outcome: CancelOutcome = "archive",
        delay: Duration | None = None,
    ) -> bool:
        """Cancel a task, whatever its state. True: it is done; False: it runs, and its worker has been told.

        Raises TaskNotFound, TaskFinished, TaskInBatch.
        """
        keys, mark = await self._known(queue), Cancel.of(outcome, delay).pack()
        word = await self._runner.run(steering.cancel(keys, check_task_id(task_id), mark, utc_day(wall_ms())))
        return steering.judge_cancel(queue, task_id, word)

    async def audit(self, queue: str) -> Audit:
        """Look now for what does not fit together in a queue, and repair it or set it aside.

        Workers do the same every few minutes. Raises QueueError when the queue is unknown.
        """
        keys = await self._known(queue)
        now_ms = await self._runner.run(presence.server_time())
        return await self._runner.walk(auditing.audit(keys, now_ms))

    async def remove_queue(self, queue: str, *, force: bool = False) -> None:
        """Remove a queue with all its keys.

        Raises QueueError when tasks run, and when it has tasks or schedules unless ``force`` is given.
        """
        keys = await self._known(queue)
        day_ms = 86_400_000
        days = [utc_day(wall_ms() + day_ms - back * day_ms) for back in range(_DAYS_KEPT)]
        removed = steering.Removed(b"changed", 0, 0)
        while removed.word == b"changed":
            limiters = await self._runner.run(limiting.limiter_names(keys, 0, -1))
            removed = await self._runner.run(steering.remove(keys, days, limiters, force=force))
        if removed.word == b"active":
            raise QueueError(queue, f"{removed.tasks} tasks are running; stop the workers first")
        if removed.word == b"full":
            held = f"{removed.tasks} tasks and {removed.schedules} schedules"
            raise QueueError(queue, f"has {held}; give force=True to delete them with it")
        await self._runner.run(steering.unregister(self.keys.queues, queue))
        # Whoever enqueues from now on registers the queue anew; for one who did in between that is done here.
        if await self._runner.run(steering.has_content(keys)):
            await self._runner.run(producing.register(self.keys.queues, queue))

    async def _known(self, name: str) -> QueueKeys:
        queue = self.keys.queue(check_key_name("queue", name))
        if not await self._runner.run(inspecting.is_registered(self.keys, name)):
            raise QueueError(name, "no such queue")
        return queue


def _check_day(day: object) -> None:
    if not isinstance(day, str) or len(day) != 8 or not day.isdecimal():
        raise OptionError("day", "must be a day of UTC as YYYYMMDD, as in '20261231'")


def _check_limit(limit: object) -> None:
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise OptionError("limit", f"must be a whole number from 1 to {MAX_PAGE:,}")


def _group_info(due: grouping.Due, size: int, oldest_ms: int) -> GroupInfo:
    task_type, _, name = due.name.decode().partition("\n")
    return GroupInfo(
        type=task_type,
        name=name,
        size=size,
        oldest_at=datetime.fromtimestamp(oldest_ms / 1000, UTC),
        due_at=datetime.fromtimestamp(due.due_ms / 1000, UTC),
    )


def _split(items: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    return items[:count], items[count:]


def _checked(replies: list[Any]) -> list[Any]:
    """The replies. Raises the first that is an error."""
    for reply in replies:
        if isinstance(reply, ServerError):
            raise reply
    return replies
