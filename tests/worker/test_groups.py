"""Groups through a worker: when they become batches, and that a batch is a task like any other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest

from streamq import (
    INJECTED,
    Concurrency,
    Depends,
    Drop,
    GroupRule,
    Member,
    Reason,
    Retry,
    StreamQ,
    TaskCall,
    TaskContext,
    Unique,
    current_task,
)
from streamq.broker import sweeping
from streamq.broker.command import Command
from streamq.broker.grouping import Flushed
from streamq.broker.runner import AsyncRunner
from streamq.clock import wall_ms
from streamq.errors import (
    OptionError,
    RegistrationError,
    ResultNotKept,
    TaskCancelled,
    TaskFailed,
    TaskInBatch,
    TaskNotFound,
    Unavailable,
)
from streamq.inspector import Inspector
from streamq.model.options import Options
from streamq.model.states import State
from streamq.worker.aggregator import Aggregator
from tests.conftest import PrivateServer
from tests.servers import Server
from tests.support import eventually, keys_of, live, make_worker, running
from tests.worker.test_outcomes import in_state, is_gone

SOON = GroupRule(grace=0.05)
LATER = GroupRule(grace=3600, max_delay=None, max_size=None)


def of_size(size: int) -> GroupRule:
    """A group that becomes a batch when it is full, and not before."""
    return GroupRule(grace=3600, max_delay=None, max_size=size)


class Batches:
    """A batch handler that takes note of what it gets."""

    def __init__(self) -> None:
        self.seen: list[list[Member]] = []
        self.contexts: list[TaskContext] = []

    async def __call__(self, members: list[Member]) -> int:
        self.seen.append(members)
        self.contexts.append(current_task())
        return len(members)

    @property
    def args(self) -> list[list[Any]]:
        """The first argument of each member, batch by batch."""
        return [[member.args[0] for member in members] for members in self.seen]


@pytest.fixture
def batches() -> Batches:
    return Batches()


async def waits(inspector: Inspector, count: int) -> None:
    """So many tasks wait in groups."""

    async def look() -> bool:
        return (await inspector.queue("default")).aggregating == count

    await eventually(look)


# When a group becomes a batch


async def test_a_group_that_has_fallen_quiet_becomes_a_batch(app: StreamQ, batches: Batches) -> None:
    """A90, A21: with everything that each task was enqueued with, in the order in which they came."""
    task = app.batch_task(name="t", group_rule=SOON, headers={"from": "here"})(batches)
    before = datetime.now(UTC)
    first = await task.in_group("g").enqueue(1, tag="x")
    second = await task.options(group="g", headers={"trace": "7"}).enqueue(2)
    third = await task.in_group("g").enqueue(3)
    async with running(app):
        await eventually(lambda: batches.seen)
    [members] = batches.seen
    assert [member.id for member in members] == [first.id, second.id, third.id]
    assert batches.args == [[1, 2, 3]]
    assert [dict(member.kwargs) for member in members] == [{"tag": "x"}, {}, {}]
    assert [dict(member.headers) for member in members][:2] == [
        {"from": "here"},
        {"from": "here", "trace": "7"},
    ]
    assert all(member.enqueued_at is not None for member in members)
    assert members[0].enqueued_at is not None
    assert before - timedelta(seconds=1) <= members[0].enqueued_at <= datetime.now(UTC)


async def test_a_batch_is_made_after_the_grace_period_and_never_earlier(
    app: StreamQ, batches: Batches
) -> None:
    """A90: by a worker that had gone to sleep for longer."""
    task = app.batch_task(name="t", group_rule=GroupRule(grace=0.3))(batches)
    async with running(app) as worker:
        await eventually(lambda: worker.hints._listener._standing)
        began = time.monotonic()
        await task.in_group("g").enqueue(1)
        await eventually(lambda: batches.seen, within_s=4)  # the longest sleep is five seconds
        assert time.monotonic() - began >= 0.3


async def test_a_group_that_never_falls_quiet_becomes_a_batch_all_the_same(
    app: StreamQ, batches: Batches
) -> None:
    """A91."""
    rule = GroupRule(grace=3600, max_delay=0.4, max_size=None)
    task = app.batch_task(name="t", group_rule=rule)(batches)
    async with running(app):
        began, number = time.monotonic(), 0
        while not batches.seen:
            await task.in_group("g").enqueue(number)
            number += 1
            assert time.monotonic() < began + 20
        assert time.monotonic() - began >= 0.4
    assert batches.args[0][:3] == [0, 1, 2]


async def test_a_full_group_becomes_a_batch_at_once(
    app: StreamQ, batches: Batches, inspector: Inspector
) -> None:
    """A92, A93: five of six; the sixth stays, due by its own rule."""
    task = app.batch_task(name="t", group_rule=of_size(5))(batches)
    async with running(app):
        await app.enqueue_many([task.in_group("g").call(number) for number in range(6)])
        await eventually(lambda: batches.seen)
        assert batches.args == [[0, 1, 2, 3, 4]]
        [group] = await inspector.groups("default")
    assert (group.type, group.name, group.size) == ("t", "g", 1)
    assert group.due_at - group.oldest_at == timedelta(hours=1)


async def test_limits_that_are_none_do_not_make_a_batch(
    app: StreamQ, batches: Batches, inspector: Inspector
) -> None:
    """A95: a thousand members that came long ago wait for the grace period alone."""
    task = app.batch_task(name="t")(batches)
    calls = [task.options(group="g", group_rule=LATER).call(number) for number in range(600)]
    await app.enqueue_many(calls)
    async with running(app) as worker:
        await worker.forwarder.run_once()
        assert await worker.aggregator.run_once() == 0
        await waits(inspector, 600)
    assert not batches.seen


async def test_groups_are_apart_by_name_task_and_queue(app: StreamQ) -> None:
    one, two = Batches(), Batches()
    first = app.batch_task(name="one", group_rule=SOON)(one)
    second = app.batch_task(name="two", group_rule=SOON)(two)
    for number, task in enumerate((first, second, first)):
        await task.in_group("g").enqueue(number)
    await first.in_group("h").enqueue(3)
    await first.options(group="g", queue="other").enqueue(4)
    async with running(app, queues={"default": 1, "other": 1}):
        await eventually(lambda: len(one.seen) == 3 and two.seen)
    assert sorted(one.args) == [[0, 2], [3], [4]]
    assert two.args == [[1]]
    assert {context.group for context in one.contexts} == {"g", "h"}


async def test_a_delayed_member_joins_its_group_when_it_is_due(
    app: StreamQ, batches: Batches, inspector: Inspector
) -> None:
    """B12, A84: it does not run alone."""
    task = app.batch_task(name="t", group_rule=of_size(2))(batches)
    late = await task.options(group="g", delay=0.2).enqueue("late")
    info = await late.info()
    assert (info.state, info.group) == (State.SCHEDULED, "g")
    async with running(app):
        await in_state(inspector, late.id, State.AGGREGATING)
        assert not batches.seen
        await task.in_group("g").enqueue("early")
        await eventually(lambda: batches.seen)
    assert batches.args == [["late", "early"]]


async def test_a_task_without_a_group_is_a_batch_of_its_own(app: StreamQ, batches: Batches) -> None:
    task = app.batch_task(name="t", retention=60)(batches)
    handle = await task.enqueue(7)
    async with running(app):
        assert await handle.result(timeout=20) == 1
    [[member]] = batches.seen
    assert (member.id, member.args) == (handle.id, (7,))
    [context] = batches.contexts
    assert (context.group, [one.id for one in context.members]) == (None, [handle.id])


async def test_a_group_is_not_left_behind_by_a_worker_that_stops(app: StreamQ, batches: Batches) -> None:
    """B13: nothing more comes, and the worker that would have made the batch is gone."""
    task = app.batch_task(name="t", group_rule=GroupRule(grace=0.3))(batches)
    async with running(app) as worker:
        await task.in_group("g").enqueue(1)
        await worker.forwarder.run_once()
    assert not batches.seen
    async with running(app):
        await eventually(lambda: batches.seen)


async def test_of_many_aggregators_one_makes_the_batch(app: StreamQ, inspector: Inspector) -> None:
    """B14: whoever comes second finds nothing due."""
    task = app.batch_task(name="t", group_rule=of_size(3))(Batches())
    await app.enqueue_many([task.in_group("g").call(number) for number in range(3)])
    runners = [AsyncRunner(app.address) for _ in range(4)]
    aggregators = [Aggregator(runner) for runner in runners]
    for aggregator in aggregators:
        aggregator.expect(keys_of(app), 0)
    made = await asyncio.gather(*(aggregator.run_once() for aggregator in aggregators))
    assert sorted(made) == [0, 0, 0, 1]
    assert (await inspector.queue("default")).ready == 1
    for runner in runners:
        await runner.aclose()


# A batch is a task


async def test_nothing_is_left_of_a_batch_that_succeeded(
    app: StreamQ, batches: Batches, inspector: Inspector, server: Server
) -> None:
    """A97: its members' records go with it; another group is not touched."""
    task = app.batch_task(name="t", group_rule=SOON)(batches)
    handles = [await task.in_group("g").enqueue(number) for number in range(3)]
    stays = await task.options(group="h", group_rule=LATER).enqueue(9)
    keys = keys_of(app)
    async with running(app):
        await eventually(lambda: batches.seen)
        for handle in handles:
            await eventually(lambda handle=handle: is_gone(inspector, handle.id))  # type: ignore[misc]
    assert (await stays.info()).state is State.AGGREGATING
    redis = server.client()
    await eventually(lambda: redis.hkeys(keys.grouped) == [stays.id.encode()])
    assert redis.hkeys(keys.parked) == [stays.id.encode()]
    assert redis.hlen(keys.index) == 0


async def test_members_end_with_their_batch(app: StreamQ, batches: Batches, inspector: Inspector) -> None:
    """Each member's handle has the batch's result; its state is the batch's."""
    task = app.batch_task(name="t", group_rule=GroupRule(grace=0.3), retention=60)(batches)
    handles = [await task.in_group("g").enqueue(number) for number in range(3)]
    waiting = [asyncio.ensure_future(handle.result(timeout=20)) for handle in handles]
    began = time.monotonic()
    async with running(app):
        assert await asyncio.gather(*waiting) == [3, 3, 3]
    assert time.monotonic() - began < 4, "they were woken, and did not look again after five seconds"
    info = await handles[1].info()
    assert (info.state, info.batch, info.group) == (State.COMPLETED, batches.contexts[0].id, "g")
    assert info.batch is not None
    assert (await inspector.task("default", info.batch)).state is State.COMPLETED


async def test_the_blocking_client_waits_for_a_member_too(app: StreamQ, batches: Batches) -> None:
    task = app.batch_task(name="t", group_rule=SOON, retention=60)(batches)
    with app.sync() as sync:
        handle = sync.enqueue(task.in_group("g").call(1))
        async with running(app):
            began = time.monotonic()
            assert await asyncio.to_thread(handle.result, 20) == 1
            assert time.monotonic() - began < 4


async def test_a_member_tells_how_far_its_batch_is(app: StreamQ) -> None:
    said, ends = asyncio.Event(), asyncio.Event()

    @app.batch_task(name="t", group_rule=SOON)
    async def task(_members: list[Member]) -> None:
        current_task().progress(0.5, "half of them")
        said.set()
        await ends.wait()

    handle = await task.in_group("g").enqueue(1)
    async with running(app):
        await said.wait()
        progress = await eventually(handle.progress)
        ends.set()
    assert (progress.fraction, progress.text) == (0.5, "half of them")


async def test_a_member_of_a_batch_that_is_not_kept_has_no_result(app: StreamQ, batches: Batches) -> None:
    task = app.batch_task(name="t", group_rule=SOON)(batches)
    handle = await task.in_group("g").enqueue(1)
    async with running(app):
        await eventually(lambda: batches.seen)
        with pytest.raises(ResultNotKept):
            await handle.result(timeout=20)


async def test_a_batch_that_failed_is_tried_again_with_the_same_members(
    app: StreamQ, inspector: Inspector
) -> None:
    """B15: under the same id; then its members' handles raise what it failed with."""
    seen: list[tuple[str, int, list[str]]] = []

    @app.batch_task(name="t", group_rule=SOON, retry=Retry(max_retries=2, delay=0.02))
    async def task(members: list[Member]) -> None:
        context = current_task()
        seen.append((context.id, context.retried, [member.id for member in members]))
        raise ValueError("no luck")

    handles = [await task.in_group("g").enqueue(number) for number in range(2)]
    async with running(app):
        for handle in handles:
            with pytest.raises(TaskFailed, match="ValueError: no luck"):
                await handle.result(timeout=20)
    assert [retried for _, retried, _ in seen] == [0, 1, 2]
    assert {id_ for id_, _, _ in seen} == {seen[0][0]}
    assert all(ids == [handle.id for handle in handles] for _, _, ids in seen)
    info = await inspector.task("default", handles[0].id)
    assert (info.state, info.reason, info.retried) == (State.ARCHIVED, Reason.FAILED, 2)


async def test_a_batch_has_a_timeout(app: StreamQ, inspector: Inspector) -> None:
    @app.batch_task(name="t", group_rule=SOON, timeout=0.05, retry=0)
    async def task(_members: list[Member]) -> None:
        await asyncio.Event().wait()

    handle = await task.in_group("g").enqueue(1)
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("AttemptTimeout")


async def test_a_batch_that_a_stopping_worker_gives_back_is_run_by_the_next(app: StreamQ) -> None:
    """A99: there is no set of members beside the batch that could grow stale; its entry is issued anew."""
    seen: list[tuple[str, list[str]]] = []
    started = asyncio.Event()

    @app.batch_task(name="t", group_rule=SOON)
    async def task(members: list[Member]) -> None:
        seen.append((current_task().id, [member.id for member in members]))
        if len(seen) == 1:
            started.set()
            await asyncio.Event().wait()

    await app.enqueue_many([task.in_group("g").call(number) for number in range(3)])
    async with running(app, grace_s=0):
        await started.wait()
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    assert seen[0] == seen[1]


async def test_a_batch_of_a_worker_that_died_is_run_again_as_it_was(
    app: StreamQ, batches: Batches, server: Server
) -> None:
    """B13, A99: its lease decides, by Redis's clock; one that is fresh is not touched."""
    task = app.batch_task(name="t", group_rule=of_size(2))(batches)
    handles = await app.enqueue_many([task.in_group("g").call(number) for number in range(2)])
    keys, redis = keys_of(app), server.client()
    runner = AsyncRunner(app.address)
    aggregator = Aggregator(runner)
    aggregator.expect(keys, 0)
    assert await aggregator.run_once() == 1
    await runner.aclose()
    [lane] = [key for key in keys.lanes.values() if key.endswith(b":normal")]
    redis.xgroup_create(lane, "w", "0")
    redis.xreadgroup("w", "dead", {lane: ">"}, count=1)
    async with running(app) as worker:
        await worker.recoverer.run_once()
        assert not batches.seen
        await worker.recoverer.run_once("dead")
        await eventually(lambda: batches.seen)
    assert [member.id for member in batches.seen[0]] == [handle.id for handle in handles]
    assert batches.contexts[0].crashes == 1


async def test_options_of_a_batch_are_those_of_its_first_member(app: StreamQ, inspector: Inspector) -> None:
    """Where it was enqueued with some of its own; else those of the task."""
    attempts: list[int] = []

    @app.batch_task(name="t", group_rule=SOON, retry=Retry(max_retries=9, delay=0.01))
    async def task(_members: list[Member]) -> None:
        attempts.append(current_task().max_retries)
        raise ValueError

    first = await task.options(group="g", retry=Retry(max_retries=1, delay=0.01)).enqueue(1)
    await task.options(group="g", retry=5).enqueue(2)
    async with running(app):
        await in_state(inspector, first.id, State.ARCHIVED)
    assert attempts == [1, 1]


async def test_a_sync_batch_handler_runs_in_a_thread(app: StreamQ) -> None:
    threads: list[str] = []

    @app.batch_task(name="t", group_rule=SOON, retention=60)
    def task(members: list[Member]) -> list[int]:
        threads.append(threading.current_thread().name)
        return [member.args[0] for member in members]

    await task.in_group("g").enqueue(1)
    handle = await task.in_group("g").enqueue(2)
    async with running(app):
        assert await handle.result(timeout=20) == [1, 2]
    assert threads != [threading.current_thread().name]


async def test_middleware_stands_around_a_batch(app: StreamQ, batches: Batches) -> None:
    around: list[int] = []

    @app.middleware
    async def note(context: TaskContext, call_next: Callable[[], Awaitable[Any]]) -> Any:
        around.append(len(context.members))
        return await call_next()

    task = app.batch_task(name="t", group_rule=SOON)(batches)
    for number in range(3):
        await task.in_group("g").enqueue(number)
    async with running(app):
        await eventually(lambda: batches.seen)
    assert around == [3]


async def test_a_handler_that_drops_a_batch_drops_its_members(app: StreamQ, inspector: Inspector) -> None:
    @app.batch_task(name="t", group_rule=SOON)
    async def task(_members: list[Member]) -> None:
        raise Drop

    handle = await task.in_group("g").enqueue(1)
    async with running(app):
        await eventually(lambda: is_gone(inspector, handle.id))


# Members that cannot take part


async def unreadable(app: StreamQ, server: Server, task_id: str) -> None:
    """Spoil the message of a task that waits in a group."""
    server.client().hset(keys_of(app).parked, task_id, b"n0:\xff\xff")


async def test_a_member_that_cannot_be_read_is_archived_by_itself(
    app: StreamQ, batches: Batches, server: Server, inspector: Inspector
) -> None:
    """Nothing is lost, and the others run: with the batch's result, under their own ids."""
    task = app.batch_task(name="t", group_rule=of_size(3), retention=60)(batches)
    first, second = [await task.in_group("g").enqueue(number) for number in range(2)]
    await unreadable(app, server, first.id)
    third = await task.in_group("g").enqueue(2)
    async with running(app):
        assert await second.result(timeout=20) == await third.result(timeout=20) == 2
        info = await in_state(inspector, first.id, State.ARCHIVED)
    assert batches.args == [[1, 2]]
    assert (info.reason, info.batch) == (Reason.UNDECODABLE, None)
    assert server.client().hget(keys_of(app).parked, first.id) == b"n0!undecodable:\xff\xff"
    with pytest.raises(TaskFailed, match="undecodable"):
        await first.result(timeout=5)


async def test_a_member_that_cannot_be_read_stays_in_a_batch_that_failed(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """A newer worker may be able to read it when the batch is tried again."""

    @app.batch_task(name="t", group_rule=of_size(2), retry=0)
    async def task(members: list[Member]) -> None:
        assert [member.args[0] for member in members] == [1]
        raise ValueError

    first = await task.in_group("g").enqueue(0)
    await unreadable(app, server, first.id)
    await task.in_group("g").enqueue(1)
    async with running(app):
        info = await in_state(inspector, first.id, State.ARCHIVED)
    assert (info.reason, info.batch is not None) == (Reason.FAILED, True)
    assert info.message is not None
    assert b"\xff\xff" in info.message.payload


async def test_a_batch_of_which_nothing_can_be_read_keeps_every_member(
    app: StreamQ, batches: Batches, server: Server, inspector: Inspector
) -> None:
    task = app.batch_task(name="t", group_rule=GroupRule(grace=0.3))(batches)
    handles = [await task.in_group("g").enqueue(number) for number in range(2)]
    for handle in handles:
        await unreadable(app, server, handle.id)
    async with running(app):
        for handle in handles:
            info = await in_state(inspector, handle.id, State.ARCHIVED)
            assert info.reason is Reason.UNDECODABLE
    assert not batches.seen
    assert (await inspector.queue("default")).archived == 2


async def test_expired_members_do_not_run(app: StreamQ, batches: Batches, inspector: Inspector) -> None:
    """Nor those past their deadline: each is archived, or dropped, as it would have been alone."""
    task = app.batch_task(name="t", group_rule=of_size(4))(batches)
    past = datetime.now(UTC) - timedelta(minutes=1)
    expired = await task.options(group="g", expires=past).enqueue("expired")
    dropped = await task.options(group="g", expires=past, on_expiry="drop").enqueue("dropped")
    late = await task.options(group="g", deadline=past).enqueue("late")
    await task.in_group("g").enqueue("good")
    async with running(app):
        assert (await in_state(inspector, expired.id, State.ARCHIVED)).reason is Reason.EXPIRED
        info = await in_state(inspector, late.id, State.ARCHIVED)
        assert (info.error or "").startswith("AttemptTimeout")
        await eventually(lambda: is_gone(inspector, dropped.id))
    assert batches.args == [["good"]]


async def test_hooks_hear_of_members_that_were_archived_by_themselves(
    app: StreamQ, batches: Batches, server: Server
) -> None:
    """on_archive is told what it would have been told of the task alone; the batch's success is told, too."""
    archived: list[tuple[str, Any]] = []
    succeeded: list[tuple[str, Any]] = []
    task = app.batch_task(
        name="t",
        group_rule=of_size(3),
        on_archive=lambda context, cause: archived.append((context.id, cause)),
        on_success=lambda context, result: succeeded.append((context.id, result)),
    )(batches)
    spoiled = await task.in_group("g").enqueue(0)
    await unreadable(app, server, spoiled.id)
    past = datetime.now(UTC) - timedelta(minutes=1)
    expired = await task.options(group="g", expires=past).enqueue(1)
    await task.in_group("g").enqueue(2)
    async with running(app):
        await eventually(lambda: len(archived) == 2 and succeeded)
    assert dict(archived) == {spoiled.id: Reason.UNDECODABLE, expired.id: Reason.EXPIRED}
    assert succeeded == [(batches.contexts[0].id, 1)]


async def test_a_batch_whose_members_are_no_members_is_kept(
    app: StreamQ, batches: Batches, server: Server, inspector: Inspector
) -> None:
    """Somebody else wrote it."""
    from streamq.codec import encode_message
    from streamq.model.message import Message

    app.batch_task(name="t")(batches)
    handle = await app.enqueue("t", {})
    keys, redis = keys_of(app), server.client()
    [lane] = [key for key in keys.lanes.values() if key.endswith(b":normal")]
    bad = encode_message(Message.new(type="t", payload=b"\x01", group="g"))
    entry_id: Any = redis.xadd(lane, {"id": "bad", "m": bad})
    redis.hset(keys.index, "bad", b"n" + entry_id)
    async with running(app):
        info = await in_state(inspector, "bad", State.ARCHIVED)
        await eventually(lambda: is_gone(inspector, handle.id))
    assert info.reason is Reason.UNDECODABLE


# Aggregators: one task of many

AggregateOf = Callable[[str, list[Member]], Any]


def summed(app: StreamQ, aggregate: AggregateOf, **options: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """A task with that aggregator, and what it was run with."""
    ran: list[tuple[Any, ...]] = []

    @app.task(name="t", aggregate=aggregate, **{"group_rule": SOON, **options})
    async def task(*args: Any) -> Any:
        ran.append((current_task().id, current_task().group, *args))
        return args

    return task, ran


async def test_an_aggregator_makes_one_task_of_a_group(app: StreamQ) -> None:
    """It runs in place, as the batch; the members' handles have its result."""

    def join(group: str, members: list[Member]) -> Any:
        return task.call(group, sum(member.args[0] for member in members))

    task, ran = summed(app, join, retention=60)
    handles = [await task.in_group("g").enqueue(number) for number in (1, 2, 3)]
    async with running(app):
        assert [await handle.result(timeout=20) for handle in handles] == [["g", 6]] * 3
        alone = await task.enqueue("without a group")
        assert await alone.result(timeout=20) == ["without a group"]
    info = await handles[0].info()
    assert ran[0] == (info.batch, "g", "g", 6)
    assert ran[1] == (alone.id, None, "without a group")


async def test_an_aggregator_may_wait_and_may_call_another_task(app: StreamQ) -> None:
    other: list[Any] = []

    @app.task(name="other")
    def target(total: int) -> int:
        other.append(total)
        return total

    async def join(_group: str, members: list[Member]) -> TaskCall[Any]:
        await asyncio.sleep(0)
        return target.call(len(members))

    task, ran = summed(app, join, retention=60)
    handles = [await task.in_group("g").enqueue(number) for number in range(3)]
    async with running(app):
        assert await handles[0].result(timeout=20) == 3
    assert (other, ran) == ([3], [])


async def test_what_an_aggregator_makes_may_be_a_batch_task(app: StreamQ, batches: Batches) -> None:
    target = app.batch_task(name="target")(batches)
    task, _ = summed(app, lambda group, members: target.call(group, len(members)))
    await task.in_group("g").enqueue(1)
    async with running(app):
        await eventually(lambda: batches.seen)
    [[member]] = batches.seen
    assert member.args == ("g", 1)


async def test_what_an_aggregator_makes_stays_in_its_queue(app: StreamQ, inspector: Inspector) -> None:
    """A100: and is not enqueued at all; options of the call that it makes mean nothing."""

    def elsewhere(_group: str, members: list[Member]) -> TaskCall[Any]:
        options = Options.of({"queue": "elsewhere", "delay": 3600})
        return TaskCall("t", (len(members),), options=options)

    task, ran = summed(app, elsewhere)
    await task.in_group("g").enqueue(1)
    async with running(app):
        await eventually(lambda: ran)
    assert "elsewhere" not in await inspector.queues()


async def test_an_aggregator_that_returns_none_drops_the_batch(app: StreamQ, inspector: Inspector) -> None:
    """B15."""
    task, ran = summed(app, lambda _group, _members: None)
    handle = await task.in_group("g").enqueue(1)
    async with running(app) as worker:
        await eventually(lambda: is_gone(inspector, handle.id))
        await task.enqueue("the worker lives")
        await eventually(lambda: ran)
        assert worker.settler.lost == 0
    assert (await inspector.queue("default")).size == 0


async def raise_later(_group: str, _members: list[Member]) -> Any:
    await asyncio.sleep(0)
    raise ValueError("no sum")


def raise_now(_group: str, _members: list[Member]) -> Any:
    raise ValueError("no sum")


def leave(_group: str, _members: list[Member]) -> Any:
    raise SystemExit


@pytest.mark.parametrize(
    "aggregate, error",
    [
        (raise_now, "ValueError: no sum"),
        (raise_later, "ValueError: no sum"),
        (leave, "HandlerExited"),
        (lambda _group, _members: 7, "BadAggregate: the aggregator of 't'"),
        (lambda _group, _members: "t", "BadAggregate"),
        (lambda _group, _members: TaskCall("nobody"), "HandlerNotFound"),
        (lambda _group: None, "TypeError"),
    ],
)
async def test_an_aggregator_that_fails_is_a_failed_attempt(
    app: StreamQ, inspector: Inspector, aggregate: Any, error: str
) -> None:
    """B15: tried again like any, then archived with every member; the worker lives."""
    task, ran = summed(app, aggregate, retry=Retry(max_retries=1, delay=0.01))
    handle = await task.in_group("g").enqueue(1)
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
        await task.enqueue("the worker lives")
        await eventually(lambda: ran)
    assert (info.retried, info.reason) == (1, Reason.FAILED)
    assert (info.error or "").startswith(error)


# What is refused


async def test_a_group_of_a_task_that_makes_no_batches_is_refused(
    app: StreamQ, inspector: Inspector, server: Server
) -> None:
    """Before anything is written: by the task, by its name, by one of its patterns, in many, blocking."""

    async def plain() -> None: ...

    task = app.task(name="plain")(plain)
    app.task(name="email:*")(plain)
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: task.in_group("g").enqueue(),
        lambda: app.enqueue("plain", {}, group="g"),
        lambda: app.enqueue("email:welcome", {}, group="g"),
        lambda: app.enqueue(task.call(), group="g"),
    ]
    for call in calls:
        with pytest.raises(OptionError, match=r"batch_task") as refused:
            await call()
        assert refused.value.field == "group"
    with app.sync() as sync, pytest.raises(OptionError, match="makes no batches"):
        sync.enqueue("plain", {}, group="g")
    assert list(server.client().scan_iter(f"sq:{app.config.namespace}:*")) == []


async def test_a_task_that_is_not_known_here_may_have_a_group(app: StreamQ, inspector: Inspector) -> None:
    """A producer without the workers' code cannot know; a worker that takes no groups tries again later."""
    handle = await app.enqueue("theirs", {}, group="g", group_rule=SOON)

    async def plain() -> None: ...

    app.task(name="theirs", retry=Retry(max_retries=1, delay=3600))(plain)
    async with running(app):
        info = await in_state(inspector, handle.id, State.RETRY)
    assert (info.error or "").startswith("HandlerNotFound: 'theirs' takes no groups")


@pytest.mark.parametrize("group", ["", " ", "a\nb", "a\x00b", 7, "x" * 300])
async def test_a_bad_group_is_refused(app: StreamQ, batches: Batches, group: Any) -> None:
    task = app.batch_task(name="t")(batches)
    with pytest.raises(OptionError, match="group"):
        task.in_group(group)


async def test_a_bad_rule_is_refused(app: StreamQ, batches: Batches) -> None:
    task = app.batch_task(name="t")(batches)
    with pytest.raises(OptionError, match="must be a GroupRule, not int"):
        task.options(group_rule=5)  # type: ignore[arg-type]


async def test_keep_last_and_groups_do_not_go_together(app: StreamQ, batches: Batches) -> None:
    task = app.batch_task(name="t", unique=Unique("keep_last"))(batches)
    with pytest.raises(OptionError, match="keep_last"):
        await task.in_group("g").enqueue(1)


def test_an_aggregator_must_be_a_function(app: StreamQ) -> None:
    with pytest.raises(RegistrationError, match="aggregate"):
        app.task(name="t", aggregate=7)  # type: ignore[call-overload]


# With other features


async def test_a_unique_member_is_one_until_its_batch_has_ended(app: StreamQ, batches: Batches) -> None:
    task = app.batch_task(name="t", group_rule=SOON, unique=Unique(on_conflict="return"))(batches)
    first = await task.in_group("g").enqueue(1)
    second = await task.in_group("g").enqueue(1)
    assert (second.id, second.created) == (first.id, False)
    async with running(app):
        await eventually(lambda: batches.seen)

        async def again() -> bool:
            return (await task.in_group("h").enqueue(1)).created

        await eventually(again)
    assert batches.args[0] == [1]


def provide_factor() -> int:
    return 10


async def test_a_batch_handler_is_given_what_it_needs(app: StreamQ) -> None:
    """Dependencies stand beside the members."""

    @app.batch_task(name="t", group_rule=SOON, retention=60)
    async def task(
        members: list[Member], factor: Annotated[int, Depends(provide_factor)] = INJECTED
    ) -> list[int]:
        return [member.args[0] * factor for member in members]

    await task.in_group("g").enqueue(1)
    handle = await task.in_group("g").enqueue(2)
    async with running(app):
        assert await handle.result(timeout=20) == [10, 20]


async def test_a_limit_counts_batches(app: StreamQ) -> None:
    """Two batches of a task that may run once at a time never overlap; a batch is put back as a whole."""
    now = most = 0
    ran: list[str | None] = []

    @app.batch_task(name="t", group_rule=SOON, limits=[Concurrency(1)])
    async def task(members: list[Member]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1
        ran.extend(current_task().group for _ in members)

    for group in ("g", "h", "g", "h"):
        await task.in_group(group).enqueue()
    async with running(app):
        await eventually(lambda: len(ran) == 4)
    assert (most, sorted(ran, key=str)) == (1, ["g", "g", "h", "h"])


async def test_a_batch_that_is_cancelled_takes_its_members_along(app: StreamQ, inspector: Inspector) -> None:
    """A member inside of it cannot be cancelled alone; one that still waits can."""
    started = asyncio.Event()

    @app.batch_task(name="t", group_rule=of_size(2))
    async def task(_members: list[Member]) -> None:
        started.set()
        await asyncio.Event().wait()

    waits = await task.in_group("h").enqueue(0)
    first, second = await app.enqueue_many([task.in_group("g").call(number) for number in (1, 2)])
    async with running(app):
        await started.wait()
        with pytest.raises(TaskInBatch) as refused:
            await first.cancel()
        await inspector.cancel("default", refused.value.batch_id)
        with pytest.raises(TaskCancelled):
            await second.result(timeout=20)
        assert await waits.cancel()
    assert await inspector.groups("default") == []
    info = await waits.info()
    assert (info.state, info.reason) == (State.ARCHIVED, Reason.CANCELLED)


async def test_what_redis_does_not_hear_of_is_not_deleted(app: StreamQ, batches: Batches) -> None:
    """A98: an outcome that does not get through leaves the batch as it is; it is settled later, and once."""
    task = app.batch_task(name="t", group_rule=of_size(2), retention=60)(batches)
    handles = await app.enqueue_many([task.in_group("g").call(number) for number in (1, 2)])
    worker = make_worker(app)
    real, refused = worker.settler._runner, asyncio.Event()
    away = True

    class Refusing:
        async def run_all(self, commands: Any) -> Any:
            if away:
                refused.set()
                raise Unavailable("gone for a moment")
            return await real.run_all(commands)

    worker.settler._runner = Refusing()  # type: ignore[assignment]
    async with live(worker):
        await refused.wait()
        info = await handles[0].info()
        assert (info.state, info.batch) == (State.ACTIVE, batches.contexts[0].id)
        away = False
        assert await handles[1].result(timeout=20) == 2
    assert len(batches.seen) == 1


async def test_a_member_can_be_deleted_until_it_is_in_a_batch(
    app: StreamQ, batches: Batches, inspector: Inspector
) -> None:
    task = app.batch_task(name="t", group_rule=of_size(2), retry=0)(batches)
    handle = await task.in_group("g").enqueue(1)
    info = await handle.info()
    assert (info.state, info.group, info.batch) == (State.AGGREGATING, "g", None)
    assert info.next_at is not None
    assert info.next_at > datetime.now(UTC) + timedelta(minutes=59)
    await inspector.delete("default", handle.id)
    assert await inspector.groups("default") == []
    with pytest.raises(TaskNotFound):
        await handle.info()
    first, _ = await app.enqueue_many([task.in_group("g").call(number) for number in range(2)])
    await inspector.pause("default")
    async with running(app, wait=False):
        await in_state(inspector, first.id, State.READY)
        with pytest.raises(TaskInBatch) as refused:
            await inspector.delete("default", first.id)
        assert refused.value.batch_id == (await first.info()).batch


async def test_a_queue_is_removed_with_its_groups(
    app: StreamQ, batches: Batches, inspector: Inspector, server: Server
) -> None:
    """B18."""
    task = app.batch_task(name="t", group_rule=LATER)(batches)
    await task.in_group("g").enqueue(1)
    await task.options(group="g", delay=3600).enqueue(2)
    info = await inspector.queue("default")
    assert (info.aggregating, info.scheduled, info.size) == (1, 1, 2)
    await inspector.remove_queue("default", force=True)
    assert not list(server.client().scan_iter(f"sq:{app.config.namespace}:{{default}}:*"))


async def test_what_a_purged_batch_leaves_is_swept(
    app: StreamQ, batches: Batches, inspector: Inspector, server: Server
) -> None:
    """The records of its members; until then a look at them finds nothing."""
    task = app.batch_task(name="t", group_rule=SOON, retention=60)(batches)
    handle = await task.in_group("g").enqueue(1)
    keys, redis = keys_of(app), server.client()
    async with running(app):
        await in_state(inspector, handle.id, State.COMPLETED)
    await inspector.delete("default", batches.contexts[0].id)
    assert await is_gone(inspector, handle.id)
    steps = sweeping.sweep(keys, wall_ms())
    runner = AsyncRunner(app.address)
    command: Command[Any] | None = next(steps)
    while command is not None:
        reply = await runner.run(command)
        try:
            command = steps.send(reply)
        except StopIteration:
            command = None
    await runner.aclose()
    assert redis.exists(keys.grouped, keys.parked, keys.aggregating, keys.groups) == 0


# What it costs


async def test_groups_ride_in_the_call_that_enqueues(private_server: PrivateServer) -> None:
    """One round trip for two hundred tasks in as many groups; one call makes batches of dozens."""
    server = private_server()
    app = StreamQ(server.url)
    task = app.batch_task(name="t", group_rule=of_size(2))(Batches())
    calls = [task.in_group(f"g{number % 100}").call(number) for number in range(200)]
    async with app:
        await app.client.ping()
        await app.enqueue("warm", {}, group="up", group_rule=LATER)
        before = server.commandstats()
        await app.enqueue_many(calls)
        after = server.commandstats() - before
        assert after["evalsha"] == 1
        runner = AsyncRunner(app.address)
        aggregator = Aggregator(runner)
        aggregator.expect(keys_of(app), 0)
        before = server.commandstats()
        assert await aggregator.run_once() == 100
        after = server.commandstats() - before
        assert after["evalsha"] <= 6
        await runner.aclose()


@pytest.mark.parametrize(
    "told_ms, next_ms, known_s",
    [(None, 60_000, 60), (1_000, 60_000, 1), (60_000, 1_000, 1), (None, -1, None)],
)
async def test_an_aggregator_sleeps_until_the_soonest_group_that_it_has_heard_of(
    app: StreamQ, told_ms: int | None, next_ms: int, known_s: float | None
) -> None:
    """By the answer of its call, or from others while that was under way."""
    queue = keys_of(app)

    class Runner(AsyncRunner):
        async def run(self, command: Command[Any], **_more: Any) -> Any:
            if told_ms is not None:
                aggregator.expect(queue, told_ms)
            return Flushed(1, 1, 0, next_ms)

    aggregator = Aggregator(Runner(app.address))
    aggregator.expect(queue, 0)
    assert await aggregator.run_once() == 1
    assert aggregator._pause_s() == (known_s if known_s is None else pytest.approx(known_s, abs=0.5))


async def test_an_aggregator_that_knows_of_no_group_sends_nothing(app: StreamQ) -> None:
    """Not even a connection is made: its runner has no server to talk to."""
    nowhere = StreamQ("redis://127.0.0.1:1/0")
    runner = AsyncRunner(nowhere.address)
    aggregator = Aggregator(runner)
    assert await aggregator.run_once() == 0
    aggregator.expect(keys_of(app), 60_000)
    assert await aggregator.run_once() == 0
    aggregator.expect(keys_of(app), 0)
    aggregator.expect(keys_of(app), -1)
    assert await aggregator.run_once() == 0
    await runner.aclose()


async def test_an_aggregator_goes_on_after_an_outage(app: StreamQ, batches: Batches) -> None:
    """What was due stays due."""
    task = app.batch_task(name="t", group_rule=of_size(1))(batches)
    await task.in_group("g").enqueue(1)
    worker = make_worker(app)
    real, refused = worker.aggregator._runner, 0

    class Refusing:
        async def run(self, command: Any) -> Any:
            nonlocal refused
            if refused < 2:
                refused += 1
                raise Unavailable("gone for a moment")
            return await real.run(command)

    worker.aggregator._runner = Refusing()  # type: ignore[assignment]
    async with live(worker):
        await eventually(lambda: batches.seen)
    assert refused == 2
