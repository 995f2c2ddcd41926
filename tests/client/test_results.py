"""Handles: waiting for a result without polling, and looking at a task in every state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamq import Drop, Inspector, Retry, SkipRetry, State, StreamQ, SyncClient, TaskHandle, current_task
from streamq.errors import ResultNotKept, ResultTimeout, TaskFailed, TaskNotFound, Unavailable
from streamq.worker.worker import Worker
from tests.client.conftest import AnyHandle, Producing
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server
from tests.support import WITHIN_S, eventually, running

KEPT = timedelta(minutes=5)


@pytest.fixture
async def worker(opened: StreamQ) -> AsyncIterator[Worker]:
    """A running worker with a few tasks, which keep their results."""
    register(opened)
    async with running(opened) as worker:
        yield worker


def register(app: StreamQ) -> None:
    @app.task(name="double", retention=KEPT)
    async def double(n: int) -> int:
        return 2 * n

    @app.task(name="nothing", retention=KEPT)
    async def nothing() -> None:
        return None

    @app.task(name="forgetful")
    async def forgetful() -> int:
        return 1

    @app.task(name="broken", retry=0, retention=KEPT)
    async def broken(word: str) -> None:
        raise ValueError(f"cannot {word}")

    @app.task(name="hopeless", retry=25, retention=KEPT)
    async def hopeless() -> None:
        raise SkipRetry("no use")

    @app.task(name="dropped", retention=KEPT)
    async def dropped() -> None:
        raise Drop

    @app.task(name="gated", retention=KEPT)
    async def gated() -> str:
        """Runs until the test sets the gate."""
        await GATES[current_task().headers["gate"]].wait()
        return "through"


GATES: dict[str, asyncio.Event] = {}


@pytest.fixture
def gate(namespace: str) -> Any:
    """The gate that the task ``gated`` waits for: its headers name it."""
    GATES[namespace] = asyncio.Event()
    yield GATES[namespace]
    del GATES[namespace]


async def gated(app: StreamQ, **options: Any) -> TaskHandle[Any]:
    assert app.config.namespace is not None
    return await app.enqueue("gated", headers={"gate": app.config.namespace}, **options)


async def result(handle: AnyHandle, timeout: Any = WITHIN_S) -> Any:
    """The result; a blocking handle waits in a thread, because the worker runs on this loop."""
    if isinstance(handle, TaskHandle):
        return await handle.result(timeout=timeout)
    return await asyncio.to_thread(handle.result, timeout)


@pytest.fixture
def produced(producing: Producing, worker: Worker) -> Producing:
    """Either client, and a worker that runs what it enqueues. Both fixtures open the same app."""
    return producing


async def kept(producing: Producing, task: str, arguments: Any = None, **options: Any) -> AnyHandle:
    return await producing.enqueue(task, arguments, **{"retention": KEPT, **options})


async def test_a_result_is_what_the_handler_returned(produced: Producing) -> None:
    handle = await kept(produced, "double", {"n": 21})
    assert await result(handle) == 42
    assert await result(handle) == 42, "it stays until the retention is over"
    assert await result(await kept(produced, "nothing")) is None


async def test_an_archived_task_raises_what_its_handler_raised(produced: Producing) -> None:
    for task, arguments, words in (
        ("broken", {"word": "sing"}, "ValueError: cannot sing"),
        ("hopeless", None, "no use"),
    ):
        handle = await kept(produced, task, arguments, **({"retry": 0} if task == "broken" else {}))
        with pytest.raises(TaskFailed, match=words) as caught:
            await result(handle)
        assert (caught.value.task_id, caught.value.queue) == (handle.id, "default")


async def test_a_task_that_nobody_here_can_run_fails_with_the_reason(produced: Producing) -> None:
    with pytest.raises(TaskFailed, match="unheard-of"):
        await result(await kept(produced, "unheard-of", retry=0))


async def test_a_result_that_is_not_kept_is_an_error_that_names_the_remedy(
    produced: Producing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told of a task that leaves nothing behind; the regular look finds it gone."""
    for module in ("client", "sync_client"):
        monkeypatch.setattr(f"streamq.client.{module}.RECHECK_S", 0.2)
    with pytest.raises(ResultNotKept, match="retention"):
        await result(await produced.enqueue("forgetful"))
    with pytest.raises(ResultNotKept):
        await result(await kept(produced, "dropped"))


async def test_a_wait_ends_at_its_timeout_and_leaves_the_task_alone(
    produced: Producing, worker: Worker, gate: asyncio.Event
) -> None:
    handle = await kept(produced, "gated", headers={"gate": produced.app.config.namespace})
    for timeout in (0, 0.05, timedelta(milliseconds=50)):
        began = time.monotonic()
        with pytest.raises(ResultTimeout) as caught:
            await result(handle, timeout)
        assert isinstance(caught.value, TimeoutError)
        assert time.monotonic() - began < 4
    gate.set()
    assert await result(handle) == "through"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_waiting_asks_redis_hardly_anything(
    opened: StreamQ, sync: SyncClient, server: Server, kind: str
) -> None:
    """Awaited, not polled: one look at the start, and one when the worker says that it is done."""
    register(opened)
    sync.ping()  # connecting asks the server what it is
    handle = await opened.enqueue("double", {"n": 4}, retention=KEPT)
    waiting = start_waiting(opened if kind == "async" else sync, handle)
    await eventually(lambda: listeners(server, done(opened, handle)) == 1, "it listens")
    before = server.commandstats()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 1.0)
    spent = server.commandstats() - before
    assert spent.pop("info") == 1, "the test's own"
    assert spent.pop("evalsha", 0) <= 1, "the first look, which may have been behind the subscription"
    async with running(opened):
        assert await waiting == 8


def start_waiting(client: StreamQ | SyncClient, handle: AnyHandle) -> asyncio.Task[Any]:
    """Wait for the result in the background; the blocking client in a thread."""
    if isinstance(client, SyncClient):
        return asyncio.create_task(asyncio.to_thread(client.result, handle.queue, handle.id))
    return asyncio.create_task(client.client.result(handle.queue, handle.id))


def listeners(server: Server, channel: bytes) -> int:
    return int(server.client().pubsub_numsub(channel)[0][1])


def done(app: StreamQ, handle: AnyHandle) -> bytes:
    return app.client.keys.queue(handle.queue).done(handle.id)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_lost_connection_of_the_waiting_side_is_noticed(
    opened: StreamQ, worker: Worker, sync: SyncClient, server: Server, gate: asyncio.Event, kind: str
) -> None:
    """The notice may have been missed meanwhile, so the waiting side looks as soon as it listens again."""
    handle = await gated(opened)
    began = time.monotonic()
    waiting = start_waiting(opened if kind == "async" else sync, handle)
    await eventually(lambda: listeners(server, done(opened, handle)) == 1, "it listens")
    assert server.client().client_kill_filter(_type="pubsub") >= 1
    gate.set()
    assert await waiting == "through"
    assert time.monotonic() - began < 4.5, "sooner than the look that is taken every 5 s in any case"


async def test_a_notice_that_is_lost_only_delays(
    opened: StreamQ, worker: Worker, server: Server, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No notice comes at all (a user without rights to the channel): regular looks carry the wait."""
    monkeypatch.setattr("streamq.client.client.RECHECK_S", 0.2)
    client = opened.client
    monkeypatch.setattr(client._desk_here().notices, "_wake", lambda channel, payload: None)
    handle = await gated(opened)
    waiting = asyncio.create_task(client.result(handle.queue, handle.id))
    await eventually(lambda: listeners(server, done(opened, handle)) == 1, "it listens")
    gate.set()
    assert await asyncio.wait_for(waiting, WITHIN_S) == "through"


async def test_many_wait_for_one_task_and_one_for_many(
    opened: StreamQ, worker: Worker, gate: asyncio.Event, server: Server
) -> None:
    handle = await gated(opened)
    same = [asyncio.create_task(handle.result()) for _ in range(20)]
    await eventually(lambda: listeners(server, done(opened, handle)) == 1, "one subscription serves all")
    same[3].cancel()
    handles = [await opened.enqueue("double", {"n": n}, retention=KEPT) for n in range(50)]
    assert await asyncio.gather(*(each.result() for each in handles)) == [2 * n for n in range(50)]
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await same.pop(3)
    assert set(await asyncio.gather(*same)) == {"through"}
    await eventually(lambda: listeners(server, done(opened, handle)) == 0, "nobody listens any more")


async def test_closing_the_client_ends_a_wait(
    opened: StreamQ, server: Server, app: StreamQ, worker: Worker, gate: asyncio.Event
) -> None:
    client = app.new_client()
    handle = await gated(opened)
    waiting = asyncio.create_task(client.result(handle.queue, handle.id))
    await eventually(lambda: listeners(server, done(opened, handle)) == 1, "it listens")
    await client.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    gate.set()


async def test_a_result_survives_an_outage_in_the_middle_of_the_wait(private_server: PrivateServer) -> None:
    """Redis restarts with its data: the wait goes on, or says Unavailable; it never hangs or invents."""
    server = private_server(aof=True, fsync="always")
    app = StreamQ(server.url)
    register(app)
    async with app:
        handle = await app.enqueue("double", {"n": 4}, retention=KEPT)
        waiting = asyncio.create_task(handle.result(WITHIN_S))
        await eventually(lambda: listeners(server, done(app, handle)) == 1, "it listens")
        await asyncio.to_thread(server.restart, kill=True)
        async with running(app):
            try:
                assert await waiting == 8
            except Unavailable:
                assert await handle.result(WITHIN_S) == 8


async def test_info_tells_each_state(
    opened: StreamQ, namespace: str, gate: asyncio.Event, inspector: Inspector
) -> None:
    """A104: ready, active, scheduled, retry, completed, archived: state, next time and result are right."""
    register(opened)

    @opened.task(name="failing", retry=Retry(3, delay=3600))
    async def failing() -> None:
        raise ValueError("not yet")

    await inspector_pause(opened, inspector, "paused")
    ready = await opened.enqueue("double", {"n": 1}, queue="paused", priority="high")
    scheduled = await opened.enqueue("double", {"n": 1}, delay=3600)
    active = await gated(opened)
    retry = await failing.enqueue()
    completed = await opened.enqueue("double", {"n": 4}, retention=KEPT)
    archived = await opened.enqueue("broken", {"word": "sing"}, retry=0)
    async with running(opened, queues={"default": 1, "paused": 1}) as worker:
        assert await completed.result(WITHIN_S) == 8
        await settled(retry, State.RETRY)
        await settled(archived, State.ARCHIVED)
        info = await ready.info()
        assert (info.state, info.priority, info.worker, info.next_at) == (State.READY, "high", None, None)
        info = await scheduled.info()
        assert info.state is State.SCHEDULED
        assert info.next_at is not None
        assert timedelta(minutes=59) < info.next_at - datetime.now(UTC) < timedelta(minutes=61)
        info = await active.info()
        assert (info.state, info.worker, info.orphaned) == (State.ACTIVE, worker.id, False)
        info = await retry.info()
        assert (info.retried, info.max_retries, info.error) == (1, 3, "ValueError: not yet")
        assert info.next_at is not None
        assert info.failed_at is not None
        assert timedelta(minutes=30) < info.next_at - info.failed_at < timedelta(minutes=90)
        info = await completed.info()
        assert (info.state, info.error, info.retention) == (State.COMPLETED, None, 300.0)
        assert info.completed_at is not None
        info = await archived.info()
        assert (info.state, info.reason, info.error) == (State.ARCHIVED, "failed", "ValueError: cannot sing")
        for handle in (ready, scheduled, active, retry, completed, archived):
            assert await inspector.task(handle.queue, handle.id) == await handle.info()
        gate.set()
        await active.result(WITHIN_S)


async def inspector_pause(app: StreamQ, inspector: Inspector, queue: str) -> None:
    await app.enqueue("double", {"n": 0}, queue=queue)
    await inspector.pause(queue)


async def settled(handle: TaskHandle[Any], state: State) -> None:
    async def there() -> bool:
        return (await handle.info()).state is state

    await eventually(there, f"it is in state {state}")


async def test_info_of_a_task_that_is_gone_is_an_error(produced: Producing) -> None:
    handle = await produced.enqueue("forgetful")

    async def gone() -> bool:
        try:
            await produced.info(handle)
        except TaskNotFound:
            return True
        return False

    await eventually(gone, "it is finished and not kept")


async def test_handles_are_equal_when_they_mean_the_same_task(opened: StreamQ, sync: SyncClient) -> None:
    handle = await opened.enqueue("t", task_id="x")
    again = await opened.enqueue("t", task_id="x", on_conflict="return")
    other = await opened.enqueue("t", task_id="x", queue="other")
    blocking = sync.enqueue("t", task_id="x", on_conflict="return")
    assert handle == again
    assert len({handle, again, other}) == 2
    assert handle != blocking, "they are used in different ways"
    assert repr(handle) == "<TaskHandle x in default>"
    assert repr(blocking) == "<SyncTaskHandle x in default>"


async def test_replacing_a_finished_task_starts_it_anew(produced: Producing) -> None:
    """A17: on_conflict='replace' takes the place of a completed or archived task."""
    for task, arguments in (("double", {"n": 1}), ("broken", {"word": "sing"})):
        first = await kept(produced, task, arguments, task_id=task, retry=0)
        with suppress(TaskFailed):
            await result(first)
        second = await kept(produced, "double", {"n": 5}, task_id=task, on_conflict="replace")
        assert second.created
        assert await result(second) == 10


async def test_a_wait_through_a_proxy_of_latency_is_woken(
    server: Server, proxy_for: ProxyFor, namespace: str
) -> None:
    """The subscription stands before the first look: a task that ends between the two is not missed."""
    proxy = await proxy_for(server)
    proxy.latency_s = 0.02
    app = StreamQ(proxy.url, namespace=namespace)
    register(app)
    async with app, running(app):
        for n in range(5):
            handle = await app.enqueue("double", {"n": n}, retention=KEPT)
            began = time.monotonic()
            assert await handle.result(WITHIN_S) == 2 * n
            assert time.monotonic() - began < 4.5
