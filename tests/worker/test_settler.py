"""The settler: every outcome is recorded once, whatever happens on the way, and refused when it is stale."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from streamq import Retry, StreamQ
from streamq.broker import working
from streamq.broker.address import Address
from streamq.broker.runner import AsyncRunner
from streamq.broker.scripts import script
from streamq.broker.working import Entry, make_group, read, recover
from streamq.clock import ServerClock
from streamq.codec import decode_message
from streamq.errors import Unavailable
from streamq.inspector import Inspector
from streamq.model.lanes import Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from streamq.worker.held import Held, Run, Source
from streamq.worker.outcome import COMPLETE, RELEASE, Archive, RetryLater
from streamq.worker.settler import Settler
from tests.conftest import ProxyFor
from tests.proxy import Proxy
from tests.servers import Server
from tests.support import eventually, keys_of, live, make_worker, running
from tests.worker.test_outcomes import in_state, is_gone


class Desk:
    """A settler by hand, and entries delivered to its consumer."""

    def __init__(self, app: StreamQ, address: Address | None = None, consumer: str = "w1") -> None:
        self.app = app
        self.consumer = consumer
        self.held = Held()
        self.runner = AsyncRunner(address or app.address)
        self.settler = Settler(
            self.runner, self.held, ServerClock(), archive_size=10, archive_age_ms=86_400_000
        )
        self.source = Source(keys_of(app), Lane.NORMAL)

    async def take(self, count: int) -> list[Run]:
        await self.app.enqueue_many([self.app.task(name=f"t{id(self)}")(noop).call()] * count)
        runner = self.app.client.runner
        await runner.run_all([make_group(self.source.key)])  # there already, the second time
        [entries] = await runner.run(read([(Lane.NORMAL, self.source.key)], self.consumer, count))
        return [self.hold(entry) for entry in entries]

    def hold(self, entry: Entry) -> Run:
        run = Run(self.source, entry)
        self.held.add(run)
        return run


async def noop() -> None: ...


@pytest.fixture
async def desk(app: StreamQ) -> AsyncIterator[Desk]:
    desk = Desk(app)
    yield desk
    await desk.settler.abandon()
    await desk.runner.aclose()


async def through(app: StreamQ, proxy: Proxy) -> Desk:
    return Desk(app, Address.parse(proxy.url))


async def test_outcomes_that_come_together_go_out_together(desk: Desk, server: Server) -> None:
    first, *runs = await desk.take(101)
    desk.settler.settle(first, COMPLETE)
    await desk.settler.drain()  # the server knows the script now
    before = server.commandstats()
    for run in runs:
        desk.settler.settle(run, COMPLETE)
    await desk.settler.drain()
    calls = server.commandstats() - before
    assert calls["evalsha"] == 1
    assert (desk.settler.settled, desk.settler.unsettled, len(desk.held)) == (101, 0, 0)


async def test_an_outcome_whose_write_failed_is_sent_again(
    app: StreamQ, inspector: Inspector, server: Server, proxy_for: ProxyFor
) -> None:
    """A86: the first attempt fails, a later one succeeds; the task is settled once."""
    proxy = await proxy_for(server)
    desk = await through(app, proxy)
    runs = await desk.take(3)
    await proxy.refuse()
    for run in runs:
        desk.settler.settle(run, COMPLETE)
    with pytest.raises(Unavailable):
        await desk.settler.run_once()
    assert (desk.settler.unsettled, len(desk.held)) == (3, 3)
    await proxy.accept()
    await desk.settler.drain()
    assert (desk.settler.settled, desk.settler.unsettled, desk.settler.lost, len(desk.held)) == (3, 0, 0, 0)
    assert (await inspector.counters("default"))["processed"] == 3
    await desk.runner.aclose()


async def test_an_outcome_that_cannot_be_packed_holds_up_no_other(
    desk: Desk, app: StreamQ, inspector: Inspector, caplog: pytest.LogCaptureFixture
) -> None:
    """I5: its task is archived as it was stored, instead of staying active while the worker lives."""
    good, bad = await desk.take(2)
    message = decode_message(good.entry.message)
    for run, headers in ((good, {"a": "text"}), (bad, {"a": object()})):
        noted = message.copy(headers=headers)
        desk.settler.settle(run, RetryLater(noted, 60_000, failed=True))
    with caplog.at_level(logging.CRITICAL, "streamq.settler"):  # it is logged with its traceback
        await desk.settler.drain()
    assert (desk.settler.settled, desk.settler.unsettled, len(desk.held)) == (2, 0, 0)
    assert (await inspector.task("default", good.entry.task_id.decode())).state is State.RETRY
    info = await inspector.task("default", bad.entry.task_id.decode())
    assert (info.state, info.reason) == (State.ARCHIVED, Reason.FAILED)
    assert info.message == message


async def test_a_stale_outcome_is_refused_once_and_not_tried_for_ever(
    desk: Desk, app: StreamQ, inspector: Inspector, caplog: pytest.LogCaptureFixture
) -> None:
    """A87, B6: the task was recovered meanwhile. Asynq drops by the clock; here Redis says lost."""
    stale, fresh = await desk.take(2)
    keys = desk.source.queue
    await app.client.runner.run(
        recover(
            keys, Lane.NORMAL, "20260101", "w2", lease_ms=0, crash_limit=3, backoff_ms=1, dead=desk.consumer
        )
    )
    with caplog.at_level(logging.WARNING):
        desk.settler.settle(stale, COMPLETE)
        desk.settler.settle(fresh, COMPLETE)
        await desk.settler.drain()
    assert (desk.settler.settled, desk.settler.unsettled, desk.settler.lost, len(desk.held)) == (0, 0, 2, 0)
    assert "outcomes refused" in caplog.text
    queue = await inspector.queue("default")
    assert (queue.ready, queue.active, queue.processed) == (2, 0, 0)


async def test_an_outcome_that_was_settled_by_a_lost_write_is_not_reported_as_lost(
    app: StreamQ, inspector: Inspector, server: Server, proxy_for: ProxyFor, caplog: pytest.LogCaptureFixture
) -> None:
    """The reply was lost, so it is sent again, and Redis then answers that the entry is gone."""
    proxy = await proxy_for(server)
    desk = await through(app, proxy)
    [run] = await desk.take(1)
    lost = proxy.lose_next_reply(script("complete").sha)
    desk.settler.settle(run, COMPLETE)
    await desk.settler.drain()
    assert lost.is_set()
    assert (desk.settler.lost, desk.settler.unsettled) == (0, 0)
    assert "refused" not in caplog.text
    assert (await inspector.counters("default"))["processed"] == 1
    await desk.runner.aclose()


async def test_what_waits_is_kept_when_the_settler_is_told_to_stop_trying(
    app: StreamQ, inspector: Inspector, server: Server, proxy_for: ProxyFor
) -> None:
    proxy = await proxy_for(server)
    await proxy.refuse()
    desk = await through(app, proxy)
    [run] = await desk.take(1)
    desk.settler.settle(run, COMPLETE)
    await desk.settler.abandon()
    assert desk.settler.unsettled == 1
    assert (await inspector.queue("default")).active == 1  # recovery will find it
    await desk.runner.aclose()


async def test_what_is_given_back_is_ready_again_with_nothing_counted(
    desk: Desk, inspector: Inspector
) -> None:
    """A69: at the head, counters unchanged."""
    [run] = await desk.take(1)
    desk.settler.settle(run, RELEASE)
    await desk.settler.drain()
    queue = await inspector.queue("default")
    assert (queue.ready, queue.active, queue.processed) == (1, 0, 0)


# Through a worker


async def test_a_connection_that_drops_between_success_and_acknowledgement_costs_nothing(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """B1: Redis acted, the worker never heard of it. Acknowledged once, not run again."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    runs: list[int] = []

    @app.task(name="once")
    async def once() -> None:
        runs.append(1)

    async with app, app.inspector() as inspector:
        async with running(app) as worker:
            lost = proxy.lose_next_reply(script("complete").sha)
            handle = await once.enqueue()
            await eventually(lambda: is_gone(inspector, handle.id))
            assert lost.is_set()
            await eventually(lambda: worker.settler.unsettled == 0)
            # Nothing is left that could come back.
            assert (await inspector.queue("default")).size == 0
        assert (await inspector.counters("default"))["processed"] == 1
    assert runs == [1]


async def test_an_outage_between_success_and_acknowledgement_costs_nothing(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """B1: Redis cannot be reached when the handler ends, and comes back: settled then, not run again."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    runs: list[int] = []
    started, ends = asyncio.Event(), asyncio.Event()

    @app.task(name="once", retention=60)
    async def once() -> str:
        runs.append(1)
        started.set()
        await ends.wait()
        return "done"

    direct = StreamQ(server.url, namespace=namespace)
    async with app, direct, direct.inspector() as inspector, running(app, lease_ms=60_000) as worker:
        handle = await once.enqueue()
        await started.wait()
        await proxy.refuse()
        proxy.cut()
        ends.set()
        await eventually(lambda: worker.settler.unsettled == 1)
        assert (await inspector.task("default", handle.id)).state is State.ACTIVE
        await proxy.accept()
        info = await in_state(inspector, handle.id, State.COMPLETED)
        await eventually(lambda: worker.settler.unsettled == 0)
    assert (runs, info.crashes, info.retried) == ([1], 0, 0)


async def test_the_outcome_of_a_worker_that_was_taken_for_dead_is_refused(
    app: StreamQ, inspector: Inspector
) -> None:
    """B6: A is paused, B takes over and completes, A wakes up and wants to settle: B's run stands."""
    order: list[str] = []
    a_started, a_ends = asyncio.Event(), asyncio.Event()

    @app.task(name="t", retention=60)
    async def task() -> str:
        if not order:
            order.append("a")
            a_started.set()
            await a_ends.wait()
            return "a's"
        order.append("b")
        return "b's"

    handle = await task.enqueue()
    a = make_worker(app, lease_ms=600_000)
    a.lease_keeper.start = lambda: None  # type: ignore[method-assign]  # paused as far as Redis can see
    a.recoverer.run_once = _nothing  # type: ignore[method-assign]
    async with live(a):
        await a_started.wait()
        async with running(app) as b:
            await b.recoverer.run_once(a.id)
            info = await in_state(inspector, handle.id, State.COMPLETED)
            assert b.recoverer.recovered == 1
            a_ends.set()
            await eventually(lambda: a.settler.lost == 1)
    assert await handle.result(timeout=5) == "b's"
    assert order == ["a", "b"]
    assert (info.crashes, info.retried) == (1, 0)
    counters = await inspector.counters("default")
    assert counters["processed"] == 1


async def _nothing(dead: str = "") -> int:
    return 0


async def test_a_backlog_of_outcomes_stops_the_fetching(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """What waits for Redis is bounded: memory must not grow with an outage of the settling connection."""
    app = StreamQ(server.url, namespace=namespace)
    ran = 0

    @app.task(name="count", retry=Retry(max_retries=0))
    async def count() -> None:
        nonlocal ran
        ran += 1

    async with app:
        await app.enqueue_many([count.call()] * 200)
        worker = make_worker(app, concurrency=5, max_unsettled=10, lease_ms=60_000)
        refusing = await proxy_for(server)
        await refusing.refuse()
        settling = AsyncRunner(Address.parse(refusing.url))
        worker.settler._runner, usual = settling, worker.settler._runner
        async with live(worker):
            await eventually(lambda: worker.settler.unsettled >= 10)
            assert worker.settler.unsettled < 10 + 2 * 5
            worker.settler._runner = usual
            await eventually(lambda: ran == 200)
            await eventually(lambda: worker.settler.settled == 200)
        await settling.aclose()


async def test_large_tasks_that_are_kept_as_they_are_go_out_in_small_calls(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled or unreadable ones are archived with their stored bytes: those count, too."""
    monkeypatch.setattr("streamq.worker.settler._MAX_SETTLE_BYTES", 1000)
    sent: list[int] = []
    archive = working.archive

    def spy(queue: Any, lane: Lane, day: str, tasks: Sequence[working.Settle], *rest: int) -> Any:
        sent.append(len(tasks))
        return archive(queue, lane, day, tasks, *rest)

    monkeypatch.setattr(working, "archive", spy)
    for run in await desk.take(4):
        run.entry = run.entry._replace(message=b"x" * 400)
        desk.settler.settle(run, Archive(None, Reason.CANCELLED))
    await desk.settler.drain()
    assert sent == [2, 2]
    assert desk.settler.settled == 4
