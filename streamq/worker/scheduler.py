"""Fires schedules: enqueues what an entry wants at each of its ticks, exactly once.

Any number of schedulers may run, and there is no leader. A tick is taken in the script that stores the
task: it compares the entry's next tick with the one that the scheduler saw, and sets the one after it.
Who comes second is told ``stale``, and nothing happens. So a scheduler may die at any moment, and a
reply may be lost: the call is sent again under its own sequence number and gets the first answer.

It fires for every queue that its worker looks after, also for tasks whose code lives elsewhere: what
is enqueued is stored with the entry. It sleeps until the next tick that the forwarder was told of, so
that a queue without schedules costs nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from streamq.broker.command import Command, Word
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.producing import MAX_BATCH_BYTES, MAX_BATCH_TASKS, Enqueued, TickGuard, enqueue, register
from streamq.broker.runner import AsyncRunner
from streamq.broker.scheduling import Due, look, next_ticks, skip_cron, stored_entries, task_words
from streamq.clock import ServerClock, monotonic_s
from streamq.codec import decode_cron, decode_message
from streamq.cron import Step, Ticks, decide
from streamq.errors import QueueError, ServerError, Unavailable
from streamq.model.info import instant
from streamq.model.schedule import CronEntry, CronEvent, Timetable
from streamq.worker.complaints import Complaints
from streamq.worker.rounds import each
from streamq.worker.tick_teller import Known, TickTeller

log = logging.getLogger("streamq.scheduler")

_RETRY_S = 0.5
_STORED = frozenset({b"ready", b"scheduled", b"aggregating"})
_ANOTHERS = frozenset({"existing", "merged"})


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done for one entry that is due."""

    row: Due
    entry: CronEntry
    ticks: Ticks
    steps: list[Step]
    event: CronEvent


@dataclass(frozen=True, slots=True)
class _Fire:
    """One tick on its way into Redis."""

    words: list[Word]
    task_id: str
    event: CronEvent
    due_ms: int

    @property
    def size(self) -> int:
        return sum(len(word) for word in self.words if isinstance(word, bytes))


@dataclass(frozen=True, slots=True)
class _Call:
    """Ticks of one queue that travel together, until they are answered."""

    command: Command[Enqueued]
    fires: list[_Fire]


class Scheduler:
    """Fires in the queues it is given, which it looks up anew each time: they may change."""

    def __init__(
        self,
        runner: AsyncRunner,
        keys: Keys,
        queues: Collection[QueueKeys],
        clock: ServerClock,
        timetable: Timetable,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._queues = queues
        self._clock = clock
        self._teller = TickTeller(timetable)
        self._producer = secrets.token_hex(8)
        self._task_numbers = itertools.count(1)
        self._sequences: dict[str, int] = {}
        self._unanswered: dict[str, _Call] = {}
        self._expected_s: dict[str, float] = {}
        self._woken = asyncio.Event()
        self._complaints = Complaints(log)
        self._unreadable = Complaints(log)
        self.fired = 0

    def expect(self, queue: str, wait_ms: int) -> None:
        """The next tick of a queue is due in so many ms, or there is none (-1)."""
        if wait_ms < 0:
            self._expected_s.pop(queue, None)
            return
        earliest_s = min(self._expected_s.values(), default=float("inf"))
        self._expected_s[queue] = monotonic_s() + wait_ms / 1000
        if self._expected_s[queue] < earliest_s or self._is_new(queue):
            self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled. What fails is logged and tried again."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            await self._until_due()
            pause_s = 0.0
            try:
                await self.run_once(self._due_queues())
                self._complaints.clear()
            except ServerError as error:
                self._complaints.note("cannot fire schedules", error)
                pause_s = _RETRY_S * random.uniform(1, 2)

    async def run_once(self, queues: Collection[QueueKeys] | None = None) -> int:
        """Fire what is due in these queues, or in all; returns how many ticks were fired here.

        Raises ServerError; what was not fired then stays due.
        """
        try:
            fired = sum(await each(self._queues if queues is None else queues, self._fire_queue))
        except ServerError as error:
            await self._teller.missed(self._clock.now_ms(), error)
            raise
        self.fired += fired
        return fired

    async def _until_due(self) -> None:
        """Sleep until the next tick that is known of, whatever is heard of meanwhile."""
        while True:
            self._woken.clear()
            at_s = min(self._expected_s.values(), default=None)
            wait_s = None if at_s is None else at_s - monotonic_s()
            if wait_s is not None and (wait_s <= 0 or any(map(self._is_new, self._expected_s))):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()

    def _due_queues(self) -> list[QueueKeys]:
        looked_after = {queue.name: queue for queue in self._queues}
        for name in self._expected_s.keys() - looked_after.keys():
            del self._expected_s[name]  # a queue that its worker has let go
        now_s = monotonic_s()
        due = [name for name, at_s in self._expected_s.items() if at_s <= now_s or self._is_new(name)]
        return [looked_after[name] for name in due]

    def _is_new(self, queue: str) -> bool:
        """Its entries are to be learned, because hooks want to hear of them while Redis is away."""
        return self._teller.curious and not self._teller.knows(queue)

    # One queue

    async def _fire_queue(self, queue: QueueKeys) -> int:
        if self._is_new(queue.name):
            await self._learn(queue)
        fired = await self._resend(queue)
        while True:
            seen = await self._runner.run(look(queue))
            if seen.orphans:
                log.error("ticks had no entry; dropped queue=%s count=%d", queue.name, seen.orphans)
            plans: list[_Plan] = []
            fires: list[_Fire] = []
            for row in seen.due:
                plan = self._plan(queue, row, seen.now_ms)
                if plan is not None:
                    plans.append(plan)
                    fires += await self._prepare(queue, plan, seen.now_ms)
                await asyncio.sleep(0)  # many ticks at once take milliseconds that handlers need, too
            for page in _pages(fires):
                fired += await self._send(queue, page)
            nexts = [plan.steps[-1].next_ms for plan in plans]
            waits = [seen.wait_ms] + [-1 if at is None else max(0, at - seen.now_ms) for at in nexts]
            wait_ms = min((wait for wait in waits if wait >= 0), default=-1)
            if wait_ms != 0 or not plans:
                break
        if self._teller.curious:
            await self._learn(queue)
        self.expect(queue.name, wait_ms or round(_RETRY_S * 1000))
        return fired

    async def _learn(self, queue: QueueKeys) -> None:
        stored = await self._runner.run(stored_entries(queue))
        ticks = await self._runner.run(next_ticks(queue))
        known = [self._known(queue, member, due_ms, stored) for member, due_ms in ticks.items()]
        self._teller.learn(queue.name, [one for one in known if one is not None])

    def _known(
        self, queue: QueueKeys, member: bytes, due_ms: int, stored: Mapping[str, bytes]
    ) -> Known | None:
        row = Due(member, due_ms, b"")
        value = stored.get(row.entry_id)
        plan = None if value is None else self._plan(queue, row._replace(stored=value), due_ms)
        return None if plan is None else Known(plan.ticks, plan.event, due_ms)

    def _plan(self, queue: QueueKeys, row: Due, now_ms: int) -> _Plan | None:
        """What to do for one entry; None where it cannot be read here: another worker may be able to."""
        try:
            entry = decode_cron(row.entry_id, queue.name, row.stored)
            ticks = Ticks.of(entry)
            steps = decide(ticks, row.due_ms, now_ms)
            task_type = decode_message(entry.message).type
            event = CronEvent(entry.id, queue.name, task_type, instant(row.due_ms))
        except Exception as error:  # noqa: BLE001  # whatever is stored there, the other entries go on
            self._unreadable.note(f"cannot read cron entry {row.entry_id!r} of queue {queue.name!r}", error)
            return None
        return _Plan(row, entry, ticks, steps, event)

    async def _prepare(self, queue: QueueKeys, plan: _Plan, now_ms: int) -> list[_Fire]:
        """Drop what is to be dropped; returns what is to be fired."""
        fires: list[_Fire] = []
        for step in plan.steps:
            if step.tick_ms is not None:
                fires.append(self._make(plan, step, now_ms))
                await self._teller.before(fires[-1].event)
            elif (
                await self._runner.run(skip_cron(queue, plan.row.member, step.due_ms, step.next_ms)) != b"ok"
            ):
                break  # somebody else was quicker
            else:
                log.warning("ticks missed and dropped cron=%s queue=%s", plan.entry.id, queue.name)
        return fires

    def _make(self, plan: _Plan, step: Step, now_ms: int) -> _Fire:
        tick_ms = step.due_ms if step.tick_ms is None else step.tick_ms
        guard = TickGuard(plan.row.member.decode(), step.due_ms, step.next_ms)
        task_id = f"{self._producer}-{next(self._task_numbers):x}"
        words = task_words(plan.entry, task_id, now_ms, tick_ms, guard)
        return _Fire(words, task_id, replace(plan.event, tick=instant(tick_ms)), step.due_ms)

    # One call

    async def _send(self, queue: QueueKeys, fires: list[_Fire]) -> int:
        sequence = self._sequences[queue.name] = self._sequences.get(queue.name, 0) + 1
        words = [word for fire in fires for word in fire.words]
        return await self._run(queue, _Call(enqueue(queue, self._producer, sequence, words), fires))

    async def _resend(self, queue: QueueKeys) -> int:
        call = self._unanswered.get(queue.name)
        return 0 if call is None else await self._run(queue, call)

    async def _run(self, queue: QueueKeys, call: _Call) -> int:
        """Returns how many of the ticks were fired by this call."""
        self._unanswered[queue.name] = call
        try:
            answer = await self._runner.run(call.command)
        except Unavailable:
            # It may have been stored. The same call is sent again first of all, and then its outcome told.
            for fire in call.fires:
                self._teller.will_tell(fire.event, fire.due_ms)
            raise
        except ServerError:
            del self._unanswered[queue.name]  # refused: nothing was stored, and the ticks stay due
            raise
        del self._unanswered[queue.name]
        if answer.new_queue:
            await self._runner.run(register(self._keys.queues, queue.name))
        fired = 0
        for fire, word in zip(call.fires, answer.words, strict=True):
            if word != b"stale":
                fired += 1
                await self._teller.after(_outcome(fire, word))
        return fired


def _outcome(fire: _Fire, word: bytes) -> CronEvent:
    if word in _STORED:
        return replace(fire.event, outcome=word.decode(), task_id=fire.task_id)
    name, _, rest = word.decode().partition(":")
    if name in _ANOTHERS:
        return replace(fire.event, outcome=name, task_id=rest or fire.task_id)
    log.warning("a tick enqueued nothing cron=%s queue=%s answer=%s", fire.event.id, fire.event.queue, name)
    error = QueueError(fire.event.queue, f"did not take the task of {fire.event.id!r}: {name}")
    return replace(fire.event, outcome=name, error=error)


def _pages(fires: list[_Fire]) -> Iterator[list[_Fire]]:
    """Calls that are neither too long nor too large; one tick at least in each."""
    page: list[_Fire] = []
    size = 0
    for fire in fires:
        if page and (len(page) >= MAX_BATCH_TASKS or size + fire.size > MAX_BATCH_BYTES):
            yield page
            page, size = [], 0
        page.append(fire)
        size += fire.size
    if page:
        yield page
