"""One client, used from many sides: event loops, threads, forked children, somebody else's connection."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamq import Client, Inspector, State, StreamQ, SyncClient
from streamq.broker.runner import AsyncRunner
from streamq.broker.sync_runner import SyncRunner
from streamq.errors import SequenceConflict
from tests.client.conftest import call
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server

CHILD_S = 30


@pytest.fixture
def left_open() -> Iterator[None]:
    """A loop that ends while the client goes on leaves a connection behind. It is collected here."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


async def test_a_client_leaves_a_connection_of_somebody_elses_open(
    app: StreamQ, inspector: Inspector
) -> None:
    """A23: Asynq refuses to close such a client. StreamQ closes the client, and not what is not its own."""
    runner = AsyncRunner(app.address)
    for _ in range(2):
        async with Client(app.address, app.config, runner=runner) as client:
            await client.enqueue("t")
        assert runner.connected
    assert runner.connections_made == 1
    await runner.aclose()
    assert (await inspector.queue("default")).ready == 2


def test_a_blocking_client_leaves_a_connection_of_somebody_elses_open(app: StreamQ) -> None:
    """A23"""
    runner = SyncRunner(app.address)
    for _ in range(2):
        with SyncClient(app.address, app.config, runner=runner) as client:
            client.enqueue("t")
        assert runner.connected
    assert runner.connections_made == 1
    runner.close()


async def test_a_removed_queue_is_listed_again_with_the_next_enqueue(
    app: StreamQ, inspector: Inspector
) -> None:
    """A24: nothing that a client remembers keeps the queue out of the registry."""
    async with app:
        with app.sync() as sync:
            for enqueue in (lambda: app.enqueue("t"), lambda: asyncio.to_thread(sync.enqueue, "t")):
                await enqueue()
                assert await inspector.queues() == ["default"]
                await inspector.remove_queue("default", force=True)
                assert await inspector.queues() == []
                await enqueue()
                await app.client.ping()
                assert await inspector.queues() == ["default"]
                await inspector.remove_queue("default", force=True)


async def test_a_queue_that_another_client_made_is_listed(app: StreamQ, inspector: Inspector) -> None:
    """B19: also after one client removed it and another enqueues again."""
    async with app.new_client() as one, app.new_client() as other:
        await one.enqueue("t", queue="a")
        await other.enqueue("t", queue="b")
        assert await inspector.queues() == ["a", "b"]
        await inspector.remove_queue("a", force=True)
        await other.enqueue("t", queue="a")
        assert await inspector.queues() == ["a", "b"]


async def test_threads_share_a_blocking_client(sync: SyncClient, inspector: Inspector) -> None:
    def produce(thread: int) -> list[str]:
        return [
            *(sync.enqueue("t", {"n": n}, queue=f"q{n % 2}").id for n in range(25)),
            *(handle.id for handle in sync.enqueue_many(call(queue="q0") for _ in range(25))),
            sync.enqueue("t", task_id=f"own{thread}", queue="q1").id,
        ]

    with ThreadPoolExecutor(8) as pool:
        ids = [
            task_id
            for ids in await asyncio.to_thread(lambda: list(pool.map(produce, range(8))))
            for task_id in ids
        ]
    assert len(set(ids)) == 8 * 51
    assert sum([(await inspector.queue(name)).ready for name in ("q0", "q1")]) == 8 * 51
    assert sync.runner.connections_made == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_open")
def test_one_client_serves_one_event_loop_after_the_other(app: StreamQ) -> None:
    client = app.new_client()

    async def produce() -> list[str]:
        handles = await asyncio.gather(*(client.enqueue("t") for _ in range(50)))
        return [handle.id for handle in handles]

    async def finish() -> int:
        ids = await produce()
        await client.aclose()
        async with app.inspector() as inspector:
            return len(ids) + (await inspector.queue("default")).ready

    ids = asyncio.run(produce()) + asyncio.run(produce())
    assert len(set(ids)) == 100
    assert asyncio.run(finish()) == 50 + 150


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_open")
async def test_a_loop_that_ended_in_the_middle_of_a_call_blocks_no_other(
    server: Server, proxy_for: ProxyFor, namespace: str
) -> None:
    """Nobody answers any more what the first loop left in flight; the second must not queue behind it."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    client = app.new_client()

    async def leave_in_flight() -> None:
        await client.enqueue("t")
        proxy.silence()
        waiting = asyncio.create_task(client.enqueue("left"))
        await asyncio.sleep(0)
        assert not waiting.done()

    async def go_on() -> bool:
        created = (await asyncio.wait_for(client.enqueue("t"), 20)).created
        await client.aclose()
        return created

    await asyncio.to_thread(asyncio.run, leave_in_flight())
    proxy.resume()
    assert await asyncio.to_thread(asyncio.run, go_on())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_open")
async def test_two_event_loops_at_once_share_a_client(app: StreamQ, inspector: Inspector) -> None:
    """Two threads, each with a loop: every caller is answered on its own loop."""
    client = app.new_client()
    together = threading.Barrier(3)

    async def produce() -> set[str]:
        together.wait()
        ids = set()
        for _ in range(10):
            ids |= {handle.id for handle in await asyncio.gather(*(client.enqueue("t") for _ in range(20)))}
        return ids

    threads = [asyncio.to_thread(asyncio.run, produce()) for _ in range(3)]
    found = await asyncio.wait_for(asyncio.gather(*threads), 60)
    assert len(set.union(*found)) == 600
    assert (await client.enqueue("t")).created
    await client.aclose()
    assert (await inspector.queue("default")).ready == 601


def fork(work: Callable[[], object]) -> int:
    """Start this in a forked child, which exits with 0 when it raised nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(CHILD_S)
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    return status_of(fork(work))


# Other threads of the test process (the pool that asyncio.to_thread left) do no harm here.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
class TestForking:
    @pytest.mark.parametrize("task_id", [None, "own"])
    def test_a_forked_child_is_a_producer_of_its_own(
        self, sync: SyncClient, app: StreamQ, task_id: str | None
    ) -> None:
        """Parent and child go on with the same client; no batch is taken for a re-send of the other's."""

        def enqueue(who: str) -> None:
            for n in range(3):
                own = f"{task_id}-{who}{n}" if task_id else None
                assert sync.enqueue("t", task_id=own).created

        enqueue("before")
        status = in_child(lambda: enqueue("child"))
        enqueue("parent")
        assert status == 0
        assert in_child(lambda: enqueue("second")) == 0
        assert asyncio.run(ready(app)) == 12

    def test_a_fork_while_another_thread_enqueues_blocks_nobody(self, private_server: PrivateServer) -> None:
        """The parent's thread holds the turn when the child is born; the child takes its own."""
        server = private_server()
        with StreamQ(server.url).sync() as client:
            client.enqueue("t")
            server.pause()
            waiting = threading.Thread(target=lambda: client.enqueue("t"))
            waiting.start()
            while not client._turns.locked():
                pass
            child = fork(lambda: client.enqueue("t"))
            server.resume()
            assert status_of(child) == 0
            waiting.join()
        assert asyncio.run(ready(StreamQ(server.url))) == 3

    def test_a_forked_child_may_use_the_asyncio_client_of_its_parent(self, app: StreamQ) -> None:
        client = app.new_client()

        async def produce() -> None:
            handles = await asyncio.gather(*(client.enqueue("t") for _ in range(20)))
            assert all(handle.created for handle in handles)

        async def both() -> None:
            await produce()
            loop = asyncio.get_running_loop()
            status = await loop.run_in_executor(None, in_child, lambda: asyncio.run(produce()))
            assert status == 0
            await produce()
            await client.aclose()

        asyncio.run(both())
        assert asyncio.run(ready(app)) == 60


async def ready(app: StreamQ) -> int:
    async with app.inspector() as inspector:
        return (await inspector.queue("default")).ready


async def test_a_cloned_identity_is_refused_and_never_swallowed(
    opened: StreamQ, inspector: Inspector
) -> None:
    """A cloned machine sends other tasks under known sequences: an error, not a silent drop."""
    async with opened.new_client() as clone:
        await clone.enqueue("t")
        await opened.enqueue("t")
        desk, original = clone._desk_here(), opened.client._desk_here()
        desk.producer.id = original.producer.id
        desk.producer._sequences = {}
        with pytest.raises(SequenceConflict):
            await clone.enqueue("t", task_id="other")
    assert (await inspector.queue("default")).ready == 2


async def test_a_client_that_was_never_used_closes_in_silence() -> None:
    client = Client(StreamQ("redis://localhost:1").address)
    await client.aclose()
    await client.aclose()


async def test_apps_in_one_process_know_nothing_of_each_other(server: Server, namespace: str) -> None:
    one = StreamQ(server.url, namespace=f"{namespace}a")
    two = StreamQ(server.url, namespace=f"{namespace}b")
    one.task(name="t")(print)
    two.task(name="t")(print)
    async with one, two:
        handle = await one.enqueue("t", task_id="x")
        assert (await two.enqueue("t", task_id="x")).created
        assert (await handle.info()).state is State.READY
