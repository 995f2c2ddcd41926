"""Schedules at run time: add, change, pause, resume, remove, fire now, list, and look back.

What is done is decided once, in steps; the two classes only differ in how they send them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from streamq.broker.command import Steps
from streamq.broker.inspecting import queue_names
from streamq.broker.keys import Keys
from streamq.broker.producing import TickGuard
from streamq.broker.scheduling import HISTORY_KEPT, history, member_of, stored_entry, task_words
from streamq.broker.timetable import discard, listing, revise
from streamq.client.crontab import as_entry
from streamq.client.producer import Producer
from streamq.clock import wall_ms
from streamq.codec import decode_cron
from streamq.errors import CronError, OptionError
from streamq.model.names import check_key_name, check_name
from streamq.model.options import DEFAULT_QUEUE
from streamq.model.schedule import Cron, CronEntry, CronInfo, CronTick

if TYPE_CHECKING:
    from streamq.client.client import Client
    from streamq.client.encoding import Encoder
    from streamq.client.handles import SyncTaskHandle, TaskHandle
    from streamq.client.sync_client import SyncClient

T = TypeVar("T")

DEFAULT_PAGE = 100

# Inside of the classes ``list`` is a method.
_Infos = list[CronInfo]
_Ticks = list[CronTick]


class Crons:
    """The schedules of a namespace, for asyncio code. An entry lives in the queue of its task."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._steps = _Steps(client.keys, client.config.encoder())

    async def add(self, cron: Cron) -> None:
        """Add an entry; an equal one once more changes nothing.

        Raises CronError where another one has its id, OptionError, PayloadError, ServerError.
        """
        await self._client.runner.walk(self._steps.add(cron))

    async def change(self, cron: Cron) -> None:
        """Replace the entry with this id, which may be paused and stays so.

        Where only the call differs, the schedule goes on as it is. Raises as ``add`` does, and CronError
        where there is none.
        """
        await self._client.runner.walk(self._steps.change(cron))

    async def pause(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
        """Let it tick no more until it is resumed; ticks in between are not made up for. Raises CronError."""
        await self._client.runner.walk(self._steps.set_paused(cron_id, queue, paused=True))

    async def resume(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
        """Let it tick again. Raises CronError."""
        await self._client.runner.walk(self._steps.set_paused(cron_id, queue, paused=False))

    async def remove(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
        """Forget it; one of the code comes back with the next start of a worker. Raises CronError."""
        await self._client.runner.walk(self._steps.remove(cron_id, queue))

    async def fire(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> TaskHandle[Any]:
        """Enqueue its task now, beside the schedule, which goes on as it is; the history has it, too.

        Raises CronError, and what ``enqueue`` raises.
        """
        return await self._client.enqueue_entry(
            await self._client.runner.walk(self._steps.find(cron_id, queue))
        )

    async def get(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> CronInfo:
        """One entry. Raises CronError."""
        return await self._client.runner.walk(self._steps.get(cron_id, queue))

    async def list(self, *, queue: str | None = None) -> _Infos:
        """All entries of one queue, or of all, sorted by queue and id."""
        return await self._client.runner.walk(self._steps.list(queue))

    async def history(
        self, *, queue: str = DEFAULT_QUEUE, limit: int = DEFAULT_PAGE, offset: int = 0
    ) -> _Ticks:
        """The last ticks of a queue's entries, the newest first; 1,000 are kept."""
        return await self._client.runner.walk(self._steps.history(queue, limit, offset))


class SyncCrons:
    """The same, blocking."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        self._steps = _Steps(client.keys, client.config.encoder())

    def add(self, cron: Cron) -> None:
        """As Crons.add, blocking."""
        self._client.runner.walk(self._steps.add(cron))

    def change(self, cron: Cron) -> None:
        """As Crons.change, blocking."""
        self._client.runner.walk(self._steps.change(cron))

    def pause(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
        """As Crons.pause, blocking."""
        self._client.runner.walk(self._steps.set_paused(cron_id, queue, paused=True))

    def resume(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
        """As Crons.resume, blocking."""
        self._client.runner.walk(self._steps.set_paused(cron_id, queue, paused=False))

    def remove(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> None:
        """As Crons.remove, blocking."""
        self._client.runner.walk(self._steps.remove(cron_id, queue))

    def fire(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> SyncTaskHandle[Any]:
        """As Crons.fire, blocking."""
        return self._client.enqueue_entry(self._client.runner.walk(self._steps.find(cron_id, queue)))

    def get(self, cron_id: str, *, queue: str = DEFAULT_QUEUE) -> CronInfo:
        """As Crons.get, blocking."""
        return self._client.runner.walk(self._steps.get(cron_id, queue))

    def list(self, *, queue: str | None = None) -> _Infos:
        """As Crons.list, blocking."""
        return self._client.runner.walk(self._steps.list(queue))

    def history(self, *, queue: str = DEFAULT_QUEUE, limit: int = DEFAULT_PAGE, offset: int = 0) -> _Ticks:
        """As Crons.history, blocking."""
        return self._client.runner.walk(self._steps.history(queue, limit, offset))


class _Steps:
    """What both send."""

    def __init__(self, keys: Keys, encoder: Encoder) -> None:
        self._keys = keys
        self._encoder = encoder
        self._producer = Producer()

    def add(self, cron: Cron) -> Steps[None]:
        entry = as_entry(cron, self._encoder, self._producer)

        def change(old: CronEntry | None) -> CronEntry:
            if old is None:
                return entry
            if _alike(old, entry):
                return old
            raise CronError(entry.queue, entry.id, "exists already, with other contents; see change()")

        yield from self._revise(entry.queue, entry.id, change)

    def change(self, cron: Cron) -> Steps[None]:
        entry = as_entry(cron, self._encoder, self._producer)
        yield from self._revise(
            entry.queue, entry.id, lambda old: _like(_there(old, entry.queue, entry.id), entry)
        )

    def set_paused(self, cron_id: str, queue: str, *, paused: bool) -> Steps[None]:
        yield from self._revise(
            queue, cron_id, lambda old: replace(_there(old, queue, cron_id), paused=paused)
        )

    def remove(self, cron_id: str, queue: str) -> Steps[None]:
        if not (yield from discard(self._keys.queue(queue), check_name("cron_id", cron_id))):
            raise _missing(queue, cron_id)

    def find(self, cron_id: str, queue: str) -> Steps[CronEntry]:
        keys = self._keys.queue(queue)
        stored: bytes = yield stored_entry(keys, check_name("cron_id", cron_id))
        if not stored:
            raise _missing(queue, cron_id)
        return decode_cron(cron_id, queue, stored)

    def get(self, cron_id: str, queue: str) -> Steps[CronInfo]:
        check_name("cron_id", cron_id)
        for entry in (yield from self.list(queue)):
            if entry.id == cron_id:
                return entry
        raise _missing(queue, cron_id)

    def list(self, queue: str | None) -> Steps[_Infos]:
        names = [check_key_name("queue", queue)] if queue is not None else (yield queue_names(self._keys))
        found: _Infos = []
        for name in names:
            found += yield from listing(self._keys.queue(name))
        return found

    def history(self, queue: str, limit: int, offset: int) -> Steps[_Ticks]:
        for field, number in (("limit", limit), ("offset", offset)):
            if type(number) is not int or not 0 <= number <= HISTORY_KEPT:
                raise OptionError(field, f"must be a whole number from 0 to {HISTORY_KEPT}")
        ticks: _Ticks = (yield history(self._keys.queue(queue), offset, limit)) if limit else []
        return ticks

    def _revise(
        self, queue: str, cron_id: str, change: Callable[[CronEntry | None], CronEntry | None]
    ) -> Steps[None]:
        keys = self._keys.queue(check_key_name("queue", queue))
        yield from revise(self._keys, keys, check_name("cron_id", cron_id), change)


def words_of(entry: CronEntry, producer: Producer) -> tuple[str, list[Any]]:
    """The task that an entry enqueues now: its id, and its words."""
    now_ms, task_id = wall_ms(), producer.new_task_id()
    by_hand = TickGuard(member_of(entry).decode(), 0, None)
    return task_id, task_words(entry, task_id, now_ms, now_ms, by_hand)


def _alike(one: CronEntry, other: CronEntry) -> bool:
    """Whether they enqueue the same at the same times, whoever's they are."""
    return _like(one, other) == one


def _like(old: CronEntry, new: CronEntry) -> CronEntry:
    return replace(new, owner=old.owner, paused=old.paused, more=old.more)


def _there(old: CronEntry | None, queue: str, cron_id: str) -> CronEntry:
    if old is None:
        raise _missing(queue, cron_id)
    return old


def _missing(queue: str, cron_id: str) -> CronError:
    return CronError(queue, cron_id, "there is no such entry in this queue")
