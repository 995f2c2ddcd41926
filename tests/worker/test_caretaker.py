"""Unserved queues: any worker looks after them, without ever fetching, until someone serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamq import GroupRule, Member, SkipRetry, StreamQ
from streamq.broker import presence
from streamq.broker.command import Command
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import make_group
from streamq.clock import ServerClock
from streamq.errors import ServerRefused, Unavailable
from streamq.inspector import Inspector
from streamq.model.lanes import Lane
from streamq.model.states import State
from streamq.worker.caretaker import Caretaker
from streamq.worker.rounds import each
from streamq.worker.worker import Worker
from tests.servers import Server
from tests.support import eventually, keys_of, running

SOON: dict[str, Any] = {"queues": {"mine": 1}, "care_s": 0.1, "presence_s": 0.1}


@pytest.fixture
async def runner(app: StreamQ) -> AsyncIterator[AsyncRunner]:
    runner = AsyncRunner(app.address)
    yield runner
    await runner.aclose()


def caretaker(app: StreamQ, runner: AsyncRunner, worker_id: str = "w") -> Caretaker:
    keys = Keys(app.config.namespace)
    return Caretaker(runner, keys, [keys.queue("mine")], ServerClock(), worker_id=worker_id, period_s=1)


def adopted(worker: Worker | Caretaker) -> list[str]:
    keeper = worker.caretaker if isinstance(worker, Worker) else worker
    return [queue.name for queue in keeper.adopted]


async def test_groups_of_an_unserved_queue_become_batches_and_are_not_fetched(
    app: StreamQ, inspector: Inspector
) -> None:
    """B38: a delayed member joins its group, and that one becomes a batch."""
    ran: list[int] = []

    @app.batch_task(name="t", group_rule=GroupRule(grace=0.05))
    async def task(members: list[Member]) -> None:
        ran.append(len(members))

    await task.options(queue="theirs", group="g", delay=0.05).enqueue(1)
    async with running(app, **SOON) as worker:
        await eventually(lambda: adopted(worker) == ["theirs"])
        await eventually(lambda: worker.aggregator.batches == 1)
        assert (await inspector.queue("theirs")).ready == 1
    assert not ran
    async with running(app, queues={"theirs": 1}):
        await eventually(lambda: ran == [1])


async def test_due_tasks_of_an_unserved_queue_become_ready_and_are_not_fetched(
    app: StreamQ, inspector: Inspector
) -> None:
    """B38: a worker of another queue forwards them; the first worker that serves the queue runs them."""
    ran: list[str] = []

    @app.task(name="t")
    async def task() -> None:
        ran.append("t")

    handle = await task.options(queue="theirs", delay=0.05).enqueue()
    async with running(app, **SOON) as worker:
        await eventually(lambda: adopted(worker) == ["theirs"])

        async def is_ready() -> bool:
            return (await inspector.task("theirs", handle.id)).state is State.READY

        await eventually(is_ready)
        # A task of its own, later, is run: the other one would have been before, had it been fetched.
        await task.options(queue="mine").enqueue()
        await eventually(lambda: ran == ["t"])
        assert (await inspector.queue("theirs")).active == 0
        async with running(app, queues={"theirs": 1}, presence_s=0.1):
            await eventually(lambda: ran == ["t", "t"])
            await eventually(lambda: adopted(worker) == [])
        assert [queue.name for queue in worker.caretaker.tended] == ["mine"]


async def test_tasks_of_dead_workers_of_an_unserved_queue_are_recovered(
    app: StreamQ, server: Server, inspector: Inspector, runner: AsyncRunner
) -> None:
    """B38: after several leases, since its own workers may have been given longer ones."""
    await app.enqueue("t", {}, queue="theirs")
    keys = keys_of(app, "theirs")
    redis: Any = server.client()
    lane = keys.lanes[Lane.NORMAL].decode()
    await runner.run(make_group(keys.lanes[Lane.NORMAL]))
    [[_, [[entry, _]]]] = redis.xreadgroup("w", "dead", {lane: ">"}, count=1)
    async with running(app, **SOON, crash_limit=0) as worker:
        await eventually(lambda: adopted(worker) == ["theirs"])
        redis.xclaim(lane, "w", "dead", 0, [entry], idle=worker.config.lease_ms * 5, justid=True)
        await worker.recoverer.run_once()
        assert (await inspector.queue("theirs")).active == 1
        redis.xclaim(lane, "w", "dead", 0, [entry], idle=worker.config.lease_ms * 6, justid=True)
        await worker.recoverer.run_once()
        info = await inspector.queue("theirs")
        assert (info.ready, info.active) == (1, 0)
        assert worker.recoverer.recovered == 1


async def test_finished_tasks_of_an_unserved_queue_go_when_their_time_is_over_and_its_archive_stays(
    app: StreamQ, inspector: Inspector
) -> None:
    """B38: how much of an archive is kept is for the queue's own workers to say."""

    @app.task(name="kept", retention=0.3)
    async def kept() -> None: ...

    @app.task(name="failing")
    async def failing() -> None:
        raise SkipRetry

    await kept.options(queue="theirs").enqueue()
    await failing.options(queue="theirs").enqueue()

    async def has(completed: int, archived: int) -> bool:
        info = await inspector.queue("theirs")
        return (info.completed, info.archived) == (completed, archived)

    async with running(app, queues={"theirs": 1}):
        await eventually(lambda: has(1, 1))
    async with running(app, **SOON, archive_size=0, archive_age_ms=1) as worker:
        await eventually(lambda: adopted(worker) == ["theirs"])

        async def purged() -> bool:
            await worker.janitor.run_once()
            return await has(0, 1)

        await eventually(purged)


async def test_groups_of_an_unserved_queue_become_batches(app: StreamQ, inspector: Inspector) -> None:
    """B38: the batch waits for a worker that knows its task."""
    sizes: list[int] = []

    @app.batch_task(name="t", group_rule=GroupRule(grace=0.05))
    async def task(members: list[Member]) -> None:
        sizes.append(len(members))

    handles = [await task.options(queue="theirs").in_group("g").enqueue(number) for number in range(3)]
    async with running(app, **SOON) as worker:
        await eventually(lambda: adopted(worker) == ["theirs"])
        await eventually(lambda: worker.aggregator.batches == 1)
        info = await inspector.task("theirs", handles[0].id)
        assert (info.state, info.batch is not None) == (State.READY, True)
    assert not sizes
    async with running(app, queues={"theirs": 1}):
        await eventually(lambda: sizes == [3])


async def test_a_quiet_worker_serves_nothing(app: StreamQ) -> None:
    """B38"""
    await app.enqueue("t", {}, queue="theirs", delay=3600)
    async with running(app, queues={"theirs": 1}, presence_s=0.1) as other, running(app, **SOON) as worker:
        await worker.caretaker.run_once()
        assert adopted(worker) == []
        other.quiet()
        await eventually(lambda: adopted(worker) == ["theirs"])


async def test_two_of_many_workers_adopt_a_queue_and_all_agree_who(app: StreamQ, runner: AsyncRunner) -> None:
    """B38: a large fleet does not tend the same queue many times over."""
    names = [f"w{number}" for number in range(6)]
    await _announce(app, runner, names)
    for number in range(8):
        await app.enqueue("t", {}, queue=f"theirs{number}")
    keepers = [caretaker(app, runner, name) for name in names]
    for keeper in keepers:
        await keeper.run_once()
    all_adopted = [name for keeper in keepers for name in adopted(keeper)]
    assert sorted(all_adopted) == sorted([f"theirs{number}" for number in range(8)] * 2)
    assert sum(bool(adopted(keeper)) for keeper in keepers) > 2


async def _announce(app: StreamQ, runner: AsyncRunner, workers: list[str]) -> None:
    keys = Keys(app.config.namespace)
    now_ms = await runner.run(presence.server_time())
    members: list[str | int] = []
    for name in workers:
        members += [now_ms + 60_000, f"w{name}"]
    await runner.run(Command(None, (keys.serving,), ("ZADD", keys.serving, *members), int))


async def test_a_worker_whose_queues_are_all_there_are_looks_at_nothing_else(
    app: StreamQ, runner: AsyncRunner, server: Server
) -> None:
    """B30: one command a period."""
    await app.enqueue("t", {}, queue="mine")
    keeper = caretaker(app, runner)
    # Were it read, it would be refused.
    server.client().set(Keys(app.config.namespace).serving, "of the wrong type")
    assert await keeper.run_once() == 0
    await app.enqueue("t", {}, queue="theirs")
    with pytest.raises(ServerRefused):
        await keeper.run_once()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"", b"{x}", b"a\nb"])
async def test_a_name_in_the_registry_that_no_queue_can_have_is_left_alone(
    app: StreamQ, runner: AsyncRunner, server: Server, name: bytes
) -> None:
    """B3: what others put there does not end a worker."""
    await app.enqueue("t", {}, queue="theirs")
    server.client().sadd(Keys(app.config.namespace).queues.decode(), name)
    keeper = caretaker(app, runner)
    assert await keeper.run_once() == 1
    assert adopted(keeper) == ["theirs"]


async def test_a_queue_that_this_user_may_not_touch_is_not_adopted(
    app: StreamQ, runner: AsyncRunner, server: Server
) -> None:
    """B38: nor one whose keys make no sense; the others are."""
    await app.enqueue("t", {}, queue="theirs")
    await app.enqueue("t", {}, queue="broken")
    broken = keys_of(app, "broken")
    server.client().delete(broken.config.decode())
    server.client().set(broken.config.decode(), "of the wrong type")
    keeper = caretaker(app, runner)
    await keeper.run_once()
    assert adopted(keeper) == ["theirs"]


async def test_an_outage_in_the_middle_is_told_and_not_taken_for_a_refusal(
    app: StreamQ, runner: AsyncRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B38: the next look, soon, adopts what this one did not get to."""
    await app.enqueue("t", {}, queue="theirs")
    keeper, run, touched = caretaker(app, runner), runner.run, keys_of(app, "theirs").config

    async def broken(command: Command[Any], **more: Any) -> Any:
        if touched in (command.keys or command.args):
            raise Unavailable("gone")
        return await run(command, **more)

    monkeypatch.setattr(runner, "run", broken)
    with pytest.raises(Unavailable):
        await keeper.run_once()
    monkeypatch.undo()
    assert await keeper.run_once() == 1


async def test_a_queue_that_is_refused_does_not_keep_the_others_waiting(app: StreamQ, server: Server) -> None:
    """B3: a key of the wrong type neither ends the worker nor stops its other queues."""

    @app.task(name="t")
    async def task() -> None: ...

    redis = server.client()
    broken = keys_of(app, "broken")
    redis.set(broken.scheduled.decode(), "of the wrong type")
    redis.set(broken.completed.decode(), "of the wrong type")
    redis.set(broken.lanes[Lane.LOW].decode(), "of the wrong type")
    async with running(app, queues={"broken": 5, "good": 1}, wait=False) as worker:
        handle = await task.options(queue="good", delay=0.05, retention=60).enqueue()
        await eventually(lambda: worker.forwarder.forwarded == 1)
        with pytest.raises(ServerRefused, match="queue broken: Redis: WRONGTYPE"):
            await worker.janitor.run_once()
        await worker.recoverer.run_once()
        await handle.result(timeout=10)


async def test_a_round_goes_on_after_a_refusal_and_tells_the_first(app: StreamQ) -> None:
    """B3"""
    taken: list[str] = []

    async def step(queue: QueueKeys) -> str:
        await asyncio.sleep(0)
        if queue.name.startswith("bad"):
            raise ServerRefused(f"no {queue.name}")
        taken.append(queue.name)
        return queue.name

    queues = [keys_of(app, name) for name in ("bad1", "a", "bad2", "b")]
    with pytest.raises(ServerRefused, match=r"^queue bad1: no bad1$"):
        await each(queues, step)
    assert taken == ["a", "b"]
