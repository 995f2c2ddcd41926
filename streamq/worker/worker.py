"""One worker process's components, and the order in which they start and stop.

1. Quiet: the fetcher stops, and with it forwarder, aggregator, scheduler, deployer, recoverer, janitor,
   auditor and caretaker. Running handlers go on.
2. Drain: the executor's handlers end. Lease keeper and presence keep running, so that nothing that
   still runs is taken for dead.
3. At the grace deadline what still runs is cancelled and released: given back, no attempt spent.
4. Outcomes are settled; then the lease keeper, last of all presence, stop and the connections close.

A second stop skips the wait of step 2. A drain is quiet that ends in a stop, when nothing runs any more.
Both may also be ordered from outside, through Redis.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime

from streamq.broker import working
from streamq.broker.address import Address
from streamq.broker.inspecting import is_paused
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.moving import Forwarded
from streamq.broker.ordering import Verb
from streamq.broker.presence import FETCHES, server_time
from streamq.broker.producing import register
from streamq.broker.refusals import WrongType
from streamq.broker.runner import AsyncRunner
from streamq.broker.sync_runner import SyncRunner
from streamq.broker.working import Entry
from streamq.clock import ServerClock
from streamq.errors import LifecycleError, RegistrationError, ServerError
from streamq.model.definition import Definition
from streamq.model.info import WorkerInfo
from streamq.worker.aggregator import Aggregator
from streamq.worker.auditor import Auditor
from streamq.worker.canceller import Canceller
from streamq.worker.caretaker import Caretaker
from streamq.worker.complaints import Complaints
from streamq.worker.config import WorkerConfig
from streamq.worker.coroner import Coroner
from streamq.worker.deployer import Deployer
from streamq.worker.draw import Draw, normalised
from streamq.worker.executor import Executor
from streamq.worker.fetcher import Fetcher
from streamq.worker.forwarder import Forwarder
from streamq.worker.held import Held, Run, Source, Stop
from streamq.worker.hints import Hints
from streamq.worker.isolation import Isolator
from streamq.worker.janitor import Janitor
from streamq.worker.lease_keeper import LeaseKeeper
from streamq.worker.limiter import Limiter
from streamq.worker.outcome import RELEASE
from streamq.worker.presence import Presence
from streamq.worker.progress import ProgressWriter
from streamq.worker.recoverer import Recoverer
from streamq.worker.scheduler import Scheduler
from streamq.worker.settler import Settler
from streamq.worker.teller import Teller

log = logging.getLogger("streamq.worker")

_UNBLOCK_S = 0.05
_CANCEL_S = 5.0
"""How long cancelled handlers may take to end, and outcomes to be settled, before the worker ends anyway."""
_CONNECT_PAUSE_S = 1.0


def new_worker_id() -> str:
    """A consumer name. Short, because Redis copies it with every delivered entry."""
    return f"w{secrets.token_hex(5)}"


class Worker:
    """Fetches, runs and settles tasks until it is stopped. Use once."""

    def __init__(
        self, address: Address, definitions: Mapping[str, Definition], config: WorkerConfig | None = None
    ) -> None:
        self.config = config = config or WorkerConfig()
        self.id = config.worker_id or new_worker_id()
        self.keys = Keys(config.namespace)
        self.queues: dict[str, QueueKeys] = {name: self.keys.queue(name) for name in config.queues}
        self.clock = ServerClock()
        self.held = Held()
        self.teller = Teller(config.hooks)
        self._started_at = datetime.now(UTC)
        self._status = FETCHES
        self._quieted = asyncio.Event()
        self._stopped = asyncio.Event()
        self._hurried = asyncio.Event()
        self._draining = asyncio.Event()
        self._life = "new"
        self.ordered = False
        """Somebody outside told it to end: who keeps workers alive should not replace it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = AsyncRunner(address, timeouts=config.timeouts)
        self._settling = AsyncRunner(address, timeouts=config.timeouts)
        self._control = AsyncRunner(address, timeouts=config.timeouts)
        self.settler = Settler(
            self._settling,
            self.held,
            self.clock,
            archive_size=config.archive_size,
            archive_age_ms=config.archive_age_ms,
        )
        self._has_tasks = bool(definitions)
        self.limiter = Limiter(self._control, self.id)
        self.progress = ProgressWriter(self._control, consumer=self.id)
        self.isolator = Isolator(config.home, config.concurrency, config.limits, self.progress.note)
        self.executor = Executor(
            definitions,
            self.settler,
            self.held,
            self.clock,
            concurrency=config.concurrency,
            limits=config.limits,
            limiter=self.limiter,
            teller=self.teller,
            isolator=self.isolator,
            report=self.progress.note,
        )
        self.fetcher = Fetcher(
            self._reading,
            self.queues,
            Draw(config.queues, strict=config.strict),
            self.executor,
            consumer=self.id,
            block_ms=config.block_ms,
            backlogged=lambda: self.settler.unsettled >= config.max_unsettled,
            give_back=self._give_back,
            is_held=lambda lane, entry_id: self.held.get(lane, entry_id) is not None,
        )
        self.lease_keeper = LeaseKeeper(
            SyncRunner(address, timeouts=config.timeouts),
            self.held.snapshot,
            self._on_lost,
            self._on_marks,
            queues=self.queues.values(),
            consumer=self.id,
            lease_ms=config.lease_ms,
        )
        self.canceller = Canceller(self._control, self.queues.values(), self.held, self.executor.cancel)
        queues = list(self.queues.values())
        self.caretaker = Caretaker(
            self._control,
            self.keys,
            queues,
            self.clock,
            worker_id=self.id,
            period_s=config.care_s,
            on_adopted=self._on_adopted,
        )
        self.recoverer = Recoverer(
            self._control,
            queues,
            self.clock,
            adopted=self.caretaker.adopted,
            consumer=self.id,
            lease_ms=config.lease_ms,
            crash_limit=config.crash_limit,
            backoff_ms=config.crash_backoff_ms,
            on_crashed=Coroner(
                self._control, self.clock, self.teller, definitions, lambda: self.executor.state
            ).report,
        )
        self.forwarder = Forwarder(self._control, self.caretaker.tended, self._on_forwarded)
        self.aggregator = Aggregator(self._control)
        self.scheduler = Scheduler(
            self._control, self.keys, self.caretaker.tended, self.clock, config.timetable
        )
        self.deployer = Deployer(self._control, self.keys, queues, config.timetable)
        self.janitor = Janitor(
            self._control,
            self.keys,
            queues,
            adopted=self.caretaker.adopted,
            archive_age_ms=config.archive_age_ms,
            archive_size=config.archive_size,
        )
        self.auditor = Auditor(self._control, self.caretaker.tended, self.clock, worker_id=self.id)
        self.presence = Presence(
            self._control,
            self.keys,
            self.clock,
            self.describe,
            period_s=config.presence_s,
            on_order=self._on_order,
            on_health=config.on_health,
        )
        self.hints = Hints(
            address,
            self.keys.hints,
            queues,
            on_due=self.forwarder.wake,
            on_paused=self._on_paused,
            on_cancelled=self.canceller.hint,
            on_order=self.presence.wake,
        )

    @property
    def stuck(self) -> int:
        """After ``run``: handlers that did not end although they were told to. They end with the process."""
        return self.executor.running

    def quiet(self) -> None:
        """Take no more tasks; go on with those that run. May be called twice."""
        if self._status == FETCHES:
            self._status = "quiet"
        self._quieted.set()

    def drain(self) -> None:
        """Quiet, and stop when everything that runs has ended and is settled, however long that takes."""
        self.quiet()
        if not self._stopped.is_set():
            self._status = "draining"
        self._draining.set()

    def stop(self) -> None:
        """Quiet, then end within the grace period. A second call skips the wait."""
        if self._stopped.is_set():
            self._hurried.set()
        self.quiet()
        self._status = "stopping"
        self._stopped.set()

    async def run(self) -> None:
        """Work until stopped. Redis may be away at the start, in between and at the end.

        Raises LifecycleError when it runs or has run, RegistrationError when there is no task to run.
        """
        self._begin()
        try:
            await self._run()
        finally:
            self._life = "ended"

    def _begin(self) -> None:
        if not self._has_tasks:
            raise RegistrationError("tasks", "the app has none; register one, or import the module that does")
        if self._life != "new":
            problem = "runs already" if self._life == "running" else "has ended; make a new one"
            raise LifecycleError("worker", problem)
        self._life = "running"

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for runner in (self._control, self._settling, self._reading):
                stack.push_async_callback(runner.aclose)
            if not await self._connect():
                return
            stack.push_async_callback(self._leave)
            stack.push_async_callback(self.isolator.aclose)
            self.isolator.warm()
            if self.config.lifespan is not None:
                self.executor.state = await stack.enter_async_context(self.config.lifespan())
            stack.push_async_callback(self.teller.aclose, _CANCEL_S)  # hooks may use what the lifespan gave
            log.info("worker started id=%s queues=%s", self.id, ",".join(self.queues))
            await self._run_components()
            log.info("worker stopped id=%s settled=%d", self.id, self.settler.settled)

    async def _run_components(self) -> None:
        self.lease_keeper.start()
        try:
            async with asyncio.TaskGroup() as keepers:
                kept = [
                    keepers.create_task(self.presence.run(), name="streamq-presence"),
                    keepers.create_task(self.progress.run(), name="streamq-progress"),
                    keepers.create_task(self.hints.run(), name="streamq-hints"),
                    keepers.create_task(self.canceller.run(), name="streamq-canceller"),
                ]
                try:
                    await self._fetch_until_quiet()
                    await self._wait_stopped()
                    await self._drain()
                finally:
                    await self._release_rest()
                    for task in kept:
                        task.cancel()
        finally:
            await asyncio.get_running_loop().run_in_executor(None, self.lease_keeper.stop)

    async def _leave(self) -> None:
        with suppress(ServerError):
            await self.presence.leave()

    async def _fetch_until_quiet(self) -> None:
        fetching: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                fetching = group.create_task(self.fetcher.run(), name="streamq-fetcher")
                others = [
                    group.create_task(self.forwarder.run(), name="streamq-forwarder"),
                    group.create_task(self.aggregator.run(), name="streamq-aggregator"),
                    group.create_task(self.scheduler.run(), name="streamq-scheduler"),
                    group.create_task(self.deployer.run(), name="streamq-deployer"),
                    group.create_task(self.recoverer.run(), name="streamq-recoverer"),
                    group.create_task(self.janitor.run(), name="streamq-janitor"),
                    group.create_task(self.auditor.run(), name="streamq-auditor"),
                    group.create_task(self.caretaker.run(), name="streamq-caretaker"),
                ]
                await self._quieted.wait()
                self.fetcher.quiet()
                for task in others:
                    task.cancel()
                await self._unblock(fetching)
        finally:
            if fetching is not None and fetching.cancelled():
                await self._end_reading()

    async def _unblock(self, fetching: asyncio.Task[None]) -> None:
        """Wake the blocked read, again until the fetcher has noticed: the read may be on its way just now.

        A fetcher that cannot be woken (no right to, or Redis is away) is cancelled after its block time.
        """
        deadline = asyncio.get_running_loop().time() + self.config.block_ms / 1000 + 1
        while not fetching.done():
            if self._hurried.is_set() or asyncio.get_running_loop().time() > deadline:
                fetching.cancel()
            elif self.fetcher.client_id is not None:
                with suppress(ServerError):
                    await self._control.run(working.unblock(self.fetcher.client_id))
            await asyncio.wait([fetching], timeout=_UNBLOCK_S)

    async def _end_reading(self) -> None:
        """A read was broken off here, not in Redis: end it there too, and give back what it brought.

        Else it would take what this worker releases next. Where Redis is away, recovery does it.
        """
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                if self.fetcher.client_id is not None:
                    await self._control.run(working.unblock(self.fetcher.client_id))
                await self._reading.run(server_time())  # replies keep their order: the read is over
                await self.fetcher.give_back_unheard(self._control)
        await self._reading.aclose()

    async def _wait_stopped(self) -> None:
        """Wait until somebody stops this worker, or it has drained."""
        stopped = asyncio.ensure_future(self._stopped.wait())
        drained = asyncio.ensure_future(self._drained())
        try:
            await asyncio.wait({stopped, drained}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            drained.cancel()

    async def _drained(self) -> None:
        await self._draining.wait()
        await self.executor.wait_idle()
        await self.settler.drain()

    async def _drain(self) -> None:
        """Let running handlers end, for the grace period or until a second stop."""
        idle = asyncio.ensure_future(self.executor.wait_idle())
        hurried = asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait({idle, hurried}, timeout=self.config.grace_s, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (idle, hurried):
            waiting.cancel()

    async def _release_rest(self) -> None:
        """Cancel and give back what still runs, then settle everything, all within bounds."""
        if self.executor.running:
            log.warning("grace period over; releasing running tasks count=%d", self.executor.running)
            self.executor.stop_runs(Stop.SHUTDOWN)
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_S):
                    await self.executor.wait_idle()
            for run in self.executor.stuck_runs():
                # It cannot be stopped; it ends with this process, which is next.
                if not run.outcome_recorded:
                    self.settler.settle(run, RELEASE)
        try:
            async with asyncio.timeout(_CANCEL_S):
                await self.settler.drain()
        except TimeoutError:
            log.error("redis is away; outcomes left unsettled count=%d", self.settler.unsettled)
            await self.settler.abandon()

    async def _connect(self) -> bool:
        """Wait for Redis; False when stopped before it came."""
        complaints = Complaints(log)
        while not self._stopped.is_set():
            try:
                await self.presence.run_once()
                await self._control.run_all([register(self.keys.queues, name) for name in self.queues])
                for name, queue in self.queues.items():
                    with suppress(
                        WrongType
                    ):  # a queue of which nothing can be told; Redis holds pauses anyway
                        self.fetcher.set_paused(name, paused=await self._control.run(is_paused(queue)))
            except ServerError as error:
                complaints.note("redis cannot be used", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CONNECT_PAUSE_S):
                        await self._stopped.wait()
            else:
                complaints.clear()
                return True
        return False

    def describe(self) -> WorkerInfo:
        """What this worker says of itself."""
        weights = normalised(self.config.queues)
        return WorkerInfo(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=dict.fromkeys(weights, 0) if self.config.strict else weights,
            concurrency=self.config.concurrency,
            active=self.executor.running,
            status=self._status,
            started_at=self._started_at,
        )

    # What components tell each other

    def _give_back(self, source: Source, entries: list[Entry]) -> None:
        for entry in entries:
            run = Run(source, entry)
            self.held.add(run)
            self.settler.settle(run, RELEASE)

    def _on_order(self, verb: Verb) -> None:
        """Called with each heartbeat for as long as the order stands."""
        if verb is Verb.QUIET:
            self.quiet()
            return
        self.ordered = True
        if verb is Verb.DRAIN:
            self.drain()
        elif not self._stopped.is_set():
            self.stop()

    def _on_adopted(self) -> None:
        self.forwarder.wake()

    def _on_forwarded(self, queue: QueueKeys, forwarded: Forwarded) -> None:
        self._on_paused(queue.name, bool(forwarded.paused))
        self.aggregator.expect(queue, forwarded.batch_ms)
        self.scheduler.expect(queue.name, forwarded.tick_ms)

    def _on_paused(self, queue: str, paused: bool) -> None:  # noqa: FBT001  # a callback's single fact
        if queue not in self.queues:  # an adopted one, from which nothing is fetched
            return
        changed = self.fetcher.set_paused(queue, paused=paused)
        client = self.fetcher.client_id
        # A read that is blocked does not know of the lanes that came back.
        if changed and client is not None:
            self._control.post(working.unblock(client)).add_done_callback(_forget)

    def _on_lost(self, lane: bytes, entry_ids: list[bytes]) -> None:
        """Called in the lease keeper's thread."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._lose, lane, entry_ids)

    def _on_marks(self, lane: bytes, marks: dict[bytes, bytes]) -> None:
        """Called in the lease keeper's thread."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.canceller.apply, lane, marks)

    def _lose(self, lane: bytes, entry_ids: list[bytes]) -> None:
        runs = [run for entry_id in entry_ids if (run := self.held.get(lane, entry_id)) is not None]
        # An outcome on its way answers for itself: it was settled a moment ago, or will be refused.
        lost = [run for run in runs if not run.outcome_recorded]
        if lost:
            log.warning("leases lost count=%d lane=%s", len(lost), lane.decode())
            self.executor.stop_runs(Stop.LOST, lost)


def _forget(done: asyncio.Future[int]) -> None:
    if not done.cancelled():
        done.exception()
