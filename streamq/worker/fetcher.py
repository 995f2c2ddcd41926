"""Takes entries from the lanes: never more than there are free slots, the lanes of a queue in strict order.

XREADGROUP counts per key, so one command over several lanes may answer more than COUNT. Therefore:

1. Lanes are read one after the other, each for the slots that are left.
2. A queue under load is read in one round trip: the lane that was busy a moment ago for all slots,
   and in the same write the lengths of the lanes before it. When one of those has something, the
   next turn goes lane by lane again. A moment is a few milliseconds: a higher lane is overtaken by
   at most the batch that was on its way by then, and never while handlers run for long.
3. When everything was empty, one blocking read over all lanes waits. It asks for so few per lane
   that the free slots suffice; with fewer slots than lanes a surplus is possible, and is given back.

Of a paused queue Redis hands nothing out. What was on its way already is given back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from streamq.broker import working
from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.refusals import NoGroup, WrongType
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import Entry
from streamq.clock import monotonic_s
from streamq.errors import PermissionDenied, ServerError
from streamq.model.lanes import LANES, Lane
from streamq.worker.complaints import Complaints
from streamq.worker.draw import Draw
from streamq.worker.held import Source

log = logging.getLogger("streamq.fetcher")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_BELIEF_S = 0.005
"""How long the lanes before the busy one are believed to be empty since they were last seen so."""

_LOOK_AGAIN_S = 10.0
"""Time after which lanes that are no streams are tried again."""


class _Busy(NamedTuple):
    """The lane that had entries, and when those before it had none."""

    lane: Lane
    seen_s: float


class Starts(Protocol):
    """What the fetcher needs of the executor."""

    @property
    def free(self) -> int: ...
    async def wait_change(self) -> None: ...
    def wake(self) -> None: ...
    def start(self, source: Source, entries: list[Entry]) -> None: ...


class Fetcher:
    """Keeps the slots filled. Uses a connection of its own, because it blocks on it."""

    def __init__(
        self,
        runner: AsyncRunner,
        queues: Mapping[str, QueueKeys],
        draw: Draw,
        executor: Starts,
        *,
        consumer: str,
        block_ms: int,
        backlogged: Callable[[], bool] = lambda: False,
        give_back: Callable[[Source, list[Entry]], None],
        is_held: Callable[[bytes, bytes], bool],
    ) -> None:
        self._runner = runner
        self._sources = {
            name: {lane: Source(queue, lane) for lane in LANES} for name, queue in queues.items()
        }
        self._draw = draw
        self._executor = executor
        self._consumer = consumer
        self._block_ms = block_ms
        self._backlogged = backlogged
        self._give_back = give_back
        self._is_held = is_held
        self._complaints = Complaints(log)
        self._busy: dict[str, _Busy | None] = {}
        self._quiet = False
        self._connection = 0
        self._client_id: int | None = None
        self._paused: set[str] = set()
        self._spoilt: set[bytes] = set()
        self._look_again_s = 0.0
        self._resumed = asyncio.Event()
        self.fetched = 0

    def quiet(self) -> None:
        """Take nothing more. A read that is blocked in Redis must be woken by ``unblock``."""
        self._quiet = True
        self._executor.wake()

    @property
    def client_id(self) -> int | None:
        """Redis's id of the reading connection, by which another can unblock it."""
        return self._client_id

    def set_paused(self, queue: str, *, paused: bool) -> bool:
        """Leave a queue out, or take it in again; returns whether that changes anything.

        A read that is blocked in Redis goes on as it was, and must be woken by ``unblock``.
        """
        if paused is (queue in self._paused):
            return False
        if paused:
            self._paused.add(queue)
        else:
            self._paused.discard(queue)
            self._resumed.set()
        return True

    async def run(self) -> None:
        """Fetch until quiet. Outages are waited out."""
        pause_s, idle = _FIRST_PAUSE_S, False
        while not self._quiet:
            try:
                if self._executor.free <= 0:
                    await self._executor.wait_change()
                elif self._backlogged():
                    await asyncio.sleep(_FIRST_PAUSE_S)
                else:
                    # Once everything was empty, blocking reads follow each other until one has something.
                    idle = not await self.run_once(block=idle)
                    # Handlers started now get to their first wait, or end, before slots are counted.
                    await asyncio.sleep(0)
                pause_s = _FIRST_PAUSE_S
                self._complaints.clear()
            except NoGroup:
                # Someone deleted a lane or flushed the server. What is left in it must be delivered.
                log.warning("a lane has lost its group; creating it again")
                self._connection = 0
            except ServerError as error:
                if isinstance(error, WrongType):
                    self._connection = 0  # to find out which lane it is, and go on without it
                self._complaints.note("cannot fetch", error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def run_once(self, *, block: bool = False) -> int:
        """One turn over the queues; returns how many entries were started. Raises ServerError.

        Slots that are freed during the turn count for the next one: a handler that is through at
        once would otherwise let a lower lane in while a higher one still has tasks.
        """
        if not self._runner.connected or self._connection != self._runner.connections_made:
            await self._settle_in()
        if self._spoilt and monotonic_s() > self._look_again_s:
            await self._settle_in()
        names = [name for name in self._draw.order() if name not in self._paused]
        if block:
            return await self._read_blocking(names)
        started, free = 0, self._executor.free
        for name in names:
            if self._quiet or started >= free:
                break
            started += await self._read_queue(name, free - started)
        return started

    # Reading

    async def _read_queue(self, queue: str, free: int) -> int:
        busy = self._busy.get(queue)
        if busy is None or monotonic_s() - busy.seen_s > _BELIEF_S:
            return await self._read_in_turn(queue, LANES, free)
        started, go_on = await self._read_under_load(queue, busy.lane, free)
        if go_on:
            after = LANES[LANES.index(busy.lane) + 1 :]
            started += await self._read_in_turn(queue, after, free - started)
        return started

    async def _read_in_turn(self, queue: str, lanes: Sequence[Lane], free: int) -> int:
        """Each lane for what is left of ``free`` slots."""
        started, asked_s = 0, monotonic_s()
        for lane in lanes:
            if started >= free or self._quiet:
                break
            source = self._sources[queue][lane]
            if source.key in self._spoilt:
                continue
            [entries] = await self._runner.run(self._read([source], free - started))
            if entries:
                self._busy[queue] = _Busy(lane, asked_s)
                started += self._start(source, entries)
        return started

    async def _read_under_load(self, queue: str, lane: Lane, free: int) -> tuple[int, bool]:
        """The busy lane for all slots, and in the same write the lengths of the lanes before it.

        Returns how many were started, and whether to go on with the lanes after the busy one.
        """
        asked_s, sources = monotonic_s(), self._sources[queue]
        ahead = [
            working.length(sources[other].key)
            for other in LANES[: LANES.index(lane)]
            if sources[other].key not in self._spoilt
        ]
        read = self._read([sources[lane]], free)
        [*lengths, reply] = await self._runner.run_all([*ahead, read])
        for item in [reply, *lengths]:
            if isinstance(item, BaseException):
                raise item
        # A length counts active entries too, so it may raise a false alarm; never a false calm.
        alarmed = any(lengths)
        self._busy[queue] = None if alarmed else _Busy(lane, asked_s)
        started = self._start_all([sources[lane]], reply)
        return started, not alarmed and started < free

    async def _read_blocking(self, names: Sequence[str]) -> int:
        """Wait for the first entries of any lane."""
        sources = [source for name in names for source in self._usable(name)]
        if not sources:
            await self._wait_resumed()
            return 0
        command = self._read(sources, max(1, self._executor.free // len(sources)), self._block_ms)
        replies = await self._runner.run(command, limit_s=self._block_ms / 1000 + 1)
        started, asked_s = 0, monotonic_s()
        for source, entries in zip(sources, replies, strict=True):
            if entries:
                self._busy[source.queue.name] = _Busy(source.lane, asked_s)
                fitting = max(0, self._executor.free)
                started += self._start(source, entries[:fitting])
                if len(entries) > fitting:
                    self._give_back(source, entries[fitting:])
        return started

    async def _wait_resumed(self) -> None:
        """Every queue is paused, or has no lane to read. A resume's hint may be lost, hence the limit."""
        self._resumed.clear()
        try:
            async with asyncio.timeout(self._block_ms / 1000):
                await self._resumed.wait()
        except TimeoutError:
            return

    def _read(
        self, sources: Sequence[Source], count: int, block_ms: int | None = None
    ) -> Command[list[list[Entry]]]:
        lanes = [(source.lane, source.key) for source in sources]
        return working.read(lanes, self._consumer, count, block_ms)

    def _start_all(self, sources: Sequence[Source], replies: list[list[Entry]]) -> int:
        return sum(self._start(source, entries) for source, entries in zip(sources, replies, strict=True))

    def _start(self, source: Source, entries: list[Entry]) -> int:
        if not entries:
            return 0
        if source.queue.name in self._paused:
            self._give_back(source, entries)
            return 0
        self.fetched += len(entries)
        self._executor.start(source, entries)
        return len(entries)

    # A new connection

    async def _settle_in(self) -> None:
        """After each (re)connect: groups must exist, and entries whose reply was lost are given back."""
        await self._runner.connect()
        connection = self._runner.connections_made
        self._client_id = await self._client_id_or_none()
        sources = [source for lanes in self._sources.values() for source in lanes.values()]
        made = await self._runner.run_all([working.make_group(source.key) for source in sources])
        spoilt = {
            source.key for source, reply in zip(sources, made, strict=True) if isinstance(reply, WrongType)
        }
        for reply in made:
            if isinstance(reply, WrongType) or "BUSYGROUP" in str(reply):
                continue
            if isinstance(reply, BaseException):
                raise reply
        self._set_aside(spoilt)
        await self.give_back_unheard(self._runner)
        self._connection = connection

    def _set_aside(self, spoilt: set[bytes]) -> None:
        """Go on without these lanes: something that is no stream stands in their place."""
        for key in sorted(spoilt - self._spoilt):
            log.error("a lane is no stream; going on without it lane=%s", key.decode())
        for key in sorted(self._spoilt - spoilt):
            log.info("a lane is a stream again lane=%s", key.decode())
        if spoilt != self._spoilt:
            self._busy.clear()
        self._spoilt = spoilt
        self._look_again_s = monotonic_s() + _LOOK_AGAIN_S

    def _usable(self, queue: str) -> list[Source]:
        return [source for source in self._sources[queue].values() if source.key not in self._spoilt]

    async def give_back_unheard(self, runner: AsyncRunner) -> None:
        """Release what Redis delivered to this worker although it never heard of it: the reply was lost.

        Raises ServerError.
        """
        for name in self._sources:
            for source in self._usable(name):
                await self._give_back_unheard(runner, source)

    async def _give_back_unheard(self, runner: AsyncRunner, source: Source) -> None:
        after = b"0"
        while True:
            command = working.read_own(source.lane, source.key, self._consumer, after)
            [entries] = await runner.run(command)
            if not entries:
                return
            after = entries[-1].entry_id
            unknown = [entry for entry in entries if not self._is_held(source.key, entry.entry_id)]
            if unknown:
                log.warning("giving back entries whose delivery was lost count=%d", len(unknown))
                self._give_back(source, unknown)

    async def _client_id_or_none(self) -> int | None:
        try:
            return await self._runner.run(working.client_id())
        except PermissionDenied:
            return None
