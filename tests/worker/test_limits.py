"""Limits of running tasks, seen through workers: never more than allowed, nothing spent, nothing lost."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from streamq import (
    CallNext,
    Concurrency,
    GroupRule,
    Member,
    Retry,
    SlidingWindow,
    StreamQ,
    TaskContext,
    TokenBucket,
)
from streamq.broker.keys import Keys
from streamq.broker.limiting import LONGEST_WAIT_MS, Admission
from streamq.broker.scripts import script
from streamq.broker.working import Entry
from streamq.clock import wall_ms
from streamq.codec import decode_message
from streamq.errors import OptionError, Unavailable
from streamq.inspector import Inspector
from streamq.model.definition import Definition
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.parked import Reason
from streamq.model.retry import DEFAULT_RETRY
from streamq.model.run_limits import RunLimit, Scope
from streamq.model.states import State
from streamq.worker.held import Run, Source, Stop
from streamq.worker.limiter import Limiter, Place
from streamq.worker.outcome import (
    LONGEST_BACKOFF_MS,
    NotAdmitted,
    Outcome,
    PutBack,
    after_refusal,
)
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server
from tests.support import eventually, keys_of, running
from tests.worker.test_outcomes import Errors, in_state


class Gate:
    """Handlers that run until they are let go; counts them."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.ran: list[str] = []

    async def __call__(self, name: str = "", key: str = "") -> None:
        self.running[key] += 1
        self.most[key] = max(self.most[key], self.running[key])
        try:
            await self.open.wait()
        finally:
            self.running[key] -= 1
            self.ran.append(name)


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def waiting(inspector: Inspector, count: int) -> None:
    """Wait until so many tasks have been put back."""

    async def look() -> bool:
        return (await inspector.queue("default")).retry == count

    await eventually(look, f"{count} tasks are put back")


# Concurrency


async def test_no_more_run_at_once_than_allowed_over_all_workers(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """I10: three workers with room for many; the others are put back and hold no slot."""
    app.task(name="t", limits=[Concurrency(3)])(gate.__call__)
    await app.enqueue_many(app.call("t", {"name": str(number)}) for number in range(30))
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(running(app, concurrency=20)) for _ in range(3)]
        await waiting(inspector, 27)
        assert gate.running[""] == 3
        # Those that ask hold a slot for a moment.
        await eventually(lambda: sum(worker.executor.running for worker in workers) == 3)
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 30)
    assert gate.most[""] == 3
    assert sorted(gate.ran, key=int) == [str(number) for number in range(30)]


async def test_a_task_that_is_put_back_spends_no_retry_and_counts_as_no_failure(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """However often; nobody's hook is told of it, and no attempt is counted."""
    errors = Errors()
    app.task(name="t", limits=[Concurrency(1)], retry=0, retention=60, on_error=errors)(gate.__call__)
    first, second = await app.enqueue_many([app.call("t"), app.call("t")])
    async with running(app) as worker:
        await waiting(inspector, 1)
        await eventually(lambda: worker.limiter.asked >= 4, "it asks again and again")
        gate.open.set()
        for handle in (first, second):
            info = await in_state(inspector, handle.id, State.COMPLETED)
            assert (info.retried, info.crashes, info.error) == (0, 0, None)
    assert not errors.told
    assert (await inspector.counters("default")).get("failed", 0) == 0


async def test_no_middleware_sees_a_task_that_may_not_start(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """There is no attempt that it could stand around."""
    seen: list[str] = []

    async def note(context: TaskContext, call_next: CallNext) -> Any:
        seen.append(context.id)
        return await call_next()

    app.middleware(note)
    app.task(name="t", limits=[Concurrency(1)])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 3)
    async with running(app):
        await waiting(inspector, 2)
        assert len(seen) == 1
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 3)
    assert len(seen) == len(set(seen)) == 3


async def test_each_value_of_a_key_is_counted_apart(app: StreamQ, inspector: Inspector, gate: Gate) -> None:
    """A key that is full keeps nobody else from running."""
    app.task(name="t", limits=[Concurrency(1, key="key")])(gate.__call__)
    calls = [app.call("t", {"name": f"{key}{number}", "key": key}) for number in range(5) for key in "ab"]
    await app.enqueue_many([*calls, app.call("t", {"name": "c0", "key": "c"})])
    async with running(app, concurrency=20):
        await waiting(inspector, 8)
        assert gate.running == {"a": 1, "b": 1, "c": 1}
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 11)
    assert gate.most == {"a": 1, "b": 1, "c": 1}


async def test_a_key_may_be_a_function_of_the_arguments(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    limit = Concurrency(1, key=lambda name="", key="": key.lower())
    app.task(name="t", limits=[limit])(gate.__call__)
    await app.enqueue_many(app.call("t", {"key": key}) for key in "aAbB")
    async with running(app):
        await waiting(inspector, 2)
        assert sorted(gate.running.elements(), key=str.lower) in (
            ["a", "b"], ["a", "B"], ["A", "b"], ["A", "B"],
        )  # fmt: skip
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 4)


async def test_tasks_that_share_a_name_share_the_limit(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """And one without it is not held up."""
    app.task(name="one", limits=[Concurrency(2, name="api")])(gate.__call__)
    app.task(name="two", limits=[Concurrency(2, name="api")])(gate.__call__)
    app.task(name="free")(gate.__call__)
    calls = [app.call(name, {"key": "free" if name == "free" else ""}) for name in ("one", "two", "free")]
    await app.enqueue_many(calls * 3)
    async with running(app, concurrency=20):
        await waiting(inspector, 4)
        assert gate.running == {"": 2, "free": 3}
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 9)
    assert gate.most[""] == 2


async def test_a_limit_of_one_worker_counts_in_each_apart(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    app.task(name="t", limits=[Concurrency(2, scope="worker")])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 10)
    async with running(app) as one, running(app) as other:
        await eventually(lambda: gate.running[""] == 4)
        await waiting(inspector, 6)
        await eventually(lambda: (one.executor.running, other.executor.running) == (2, 2))
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 10)
    assert gate.most[""] == 4


async def test_a_task_that_redis_refuses_takes_no_place_in_its_worker(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """All of its limits count it, or none does."""
    app.task(name="holder", limits=[Concurrency(1, name="api")])(gate.__call__)
    app.task(name="t", limits=[Concurrency(1, scope="worker"), Concurrency(1, name="api")])(gate.__call__)
    await app.enqueue("holder", {})
    async with running(app) as worker:
        await eventually(lambda: gate.running[""] == 1)
        await app.enqueue("t", {})
        await waiting(inspector, 1)
        assert not worker.limiter._running_here
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 2)


async def test_a_task_that_starts_by_a_limit_of_its_worker_asks_nobody(app: StreamQ, gate: Gate) -> None:
    gate.open.set()
    app.task(name="t", limits=[Concurrency(100, scope="worker")])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 50)
    async with running(app) as worker:
        await eventually(lambda: len(gate.ran) == 50)
        assert worker.limiter.asked == 0
    assert not worker.limiter._running_here


@pytest.mark.parametrize("scope", ["all", "worker"])
async def test_a_place_that_becomes_free_is_taken_at_once(
    app: StreamQ, inspector: Inspector, gate: Gate, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """One of those that wait is roused for it: by themselves they would ask in a minute."""
    monkeypatch.setattr("streamq.worker.outcome.FIRST_WAIT_MS", 60_000)
    monkeypatch.setattr("streamq.worker.outcome.LONGEST_BACKOFF_MS", 60_000)
    app.task(name="t", limits=[Concurrency(2, scope=scope)])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 30)
    async with running(app, concurrency=40):
        await waiting(inspector, 28)
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 30)
    assert gate.most[""] == 2


async def test_why_a_task_waits_can_be_seen(app: StreamQ, inspector: Inspector, gate: Gate) -> None:
    """Its state is retry, though it has not failed."""
    app.task(name="t", limits=[Concurrency(1)])(gate.__call__)
    handles = await app.enqueue_many([app.call("t")] * 2)

    async def states() -> set[tuple[State, Reason | None]]:
        return {(info.state, info.reason) for info in [await handle.info() for handle in handles]}

    async def seen() -> bool:
        # It asks now and then; for a moment it is active, too.
        return await states() == {(State.ACTIVE, None), (State.RETRY, Reason.LIMITED)}

    async with running(app):
        await eventually(seen)


async def test_a_batch_counts_once_and_is_put_back_whole(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """With every member, and each of them is run in one batch alone."""
    batches: list[list[str]] = []

    @app.batch_task(name="b", limits=[Concurrency(1)], group_rule=GroupRule(grace=0.05))
    async def run(members: list[Member]) -> None:
        batches.append([str(member.args[0]) for member in members])
        await gate()

    for group in ("x", "y"):
        grouped = run.options(group=group)
        await app.enqueue_many(grouped.call(f"{group}{number}") for number in range(3))
    async with running(app):
        await waiting(inspector, 1)
        assert len(batches) == 1
        gate.open.set()
        await eventually(lambda: len(batches) == 2)
    assert sorted(batches) == [["x0", "x1", "x2"], ["y0", "y1", "y2"]]
    assert gate.most[""] == 1


async def test_tokens_are_given_back_with_the_outcome(
    app: StreamQ, inspector: Inspector, server: Server, gate: Gate
) -> None:
    """Whatever the outcome is; an idle limiter leaves no key behind."""
    ends = asyncio.Event()

    @app.task(name="t", limits=[Concurrency(10)], retry=Retry(max_retries=1, delay=3600))
    async def task(how: str) -> None:
        await ends.wait()
        if how == "fails":
            raise ValueError(how)

    redis: Any = server.client()
    keys = keys_of(app)
    await app.enqueue_many(task.call(how) for how in ("ends", "fails"))
    async with running(app):
        await eventually(lambda: redis.zcard(keys.limiter("c0:t")) == 2)
        ends.set()
        await eventually(lambda: not redis.exists(keys.limiter("c0:t"), keys.limiters))
        await waiting(inspector, 1)


async def test_a_thread_that_outlives_its_attempt_keeps_its_place(app: StreamQ, inspector: Inspector) -> None:
    """I10: a sync handler cannot be cancelled; while it runs on, no other takes its place."""
    ends = threading.Event()
    started: list[int] = []

    @app.task(name="t", timeout=0.05, retry=0, limits=[Concurrency(1)])
    def task(number: int) -> None:
        started.append(number)
        if number == 0:
            ends.wait(30)

    async with running(app) as worker:
        first = await task.enqueue(0)
        await eventually(lambda: started)
        await task.enqueue(1)
        await waiting(inspector, 1)
        [run] = [run for run in worker.executor.stuck_runs() if run.outliving is not None]
        await eventually(lambda: run.stop is Stop.TIMEOUT)
        asked = worker.limiter.asked
        await eventually(lambda: worker.limiter.asked > asked, "the other one asks once more")
        await waiting(inspector, 1)
        assert started == [0]
        ends.set()
        await in_state(inspector, first.id, State.ARCHIVED)
        await eventually(lambda: started == [0, 1])


# Rates


@pytest.mark.parametrize(
    "limit, first_s",
    [(SlidingWindow(3, per=60), 60), (TokenBucket(3, per=60, burst=3), 20)],
    ids=["window", "bucket"],
)
async def test_no_more_start_within_a_time_than_allowed(
    app: StreamQ, server: Server, inspector: Inspector, gate: Gate, limit: RunLimit, first_s: int
) -> None:
    """I10: the others are put back until their turn, each to one of its own, and ask no sooner."""
    gate.open.set()
    app.task(name="t", limits=[limit])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 6)
    async with running(app) as one, running(app) as other:
        await waiting(inspector, 3)
        assert len(gate.ran) == 3
        redis: Any = server.client()
        due = [score / 1000 for _, score in redis.zrange(keys_of(app).retry, 0, -1, withscores=True)]
        for turn, wait_s in enumerate(moment - wall_ms() / 1000 for moment in due):
            assert first_s + 20 * turn - 15 <= wait_s <= first_s + 20 * turn + 1
        assert one.limiter.asked + other.limiter.asked <= 6


async def test_a_rate_is_kept_up_and_never_passed(app: StreamQ, server: Server, gate: Gate) -> None:
    """I10: a hundred tasks through a window of 20 in 100 ms, in two workers, by the times Redis noted."""
    gate.open.set()
    app.task(name="t", limits=[SlidingWindow(20, per=0.1), SlidingWindow(100, per=60)])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 100)
    async with running(app, concurrency=50), running(app, concurrency=50):
        await eventually(lambda: len(gate.ran) == 100)
    # The long window remembers every start.
    redis: Any = server.client()
    starts_us = [int(start) for start in redis.lrange(keys_of(app).limiter("w1:t"), 0, -1)]
    assert len(starts_us) == 100
    assert all(later - start >= 100_000 for start, later in zip(starts_us, starts_us[20:], strict=False))


# Asking


async def test_tasks_that_start_together_ask_in_one_call(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """And while a call is in flight, those that come meanwhile gather for the next."""
    gate.open.set()
    app.task(name="t", limits=[Concurrency(1000)])(gate.__call__)
    await app.enqueue_many([app.call("t")] * 500)
    async with running(app, concurrency=100) as worker:
        await eventually(lambda: len(gate.ran) == 500)
        assert worker.limiter.asked <= 50


async def test_a_task_without_limits_never_asks(app: StreamQ, gate: Gate) -> None:
    """Its handler is awaited as it is."""
    gate.open.set()
    task = app.task(name="t")(gate.__call__)
    assert task.definition(app.defaults).plain
    await app.enqueue("t")
    async with running(app) as worker:
        await eventually(lambda: gate.ran)
        assert worker.limiter.asked == 0


async def test_a_task_for_which_redis_could_not_be_asked_is_put_back_and_does_not_run(
    server: Server, namespace: str, proxy_for: ProxyFor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer was lost: nobody knows whether it may run. It comes back, and its token with it."""
    proxy = await proxy_for(server)
    gate.open.set()
    async with StreamQ(server.url, namespace=namespace) as direct:
        direct.task(name="t", limits=[Concurrency(1)], retention=60)(gate.__call__)
        app = StreamQ(proxy.url, namespace=namespace)
        app.task(name="t", limits=[Concurrency(1)], retention=60)(gate.__call__)
        lost = proxy.lose_next_reply(script("admit").sha)
        async with direct.inspector() as inspector, running(app):
            handle = await direct.enqueue("t")
            await eventually(lost.is_set)
            assert not gate.ran
            info = await in_state(inspector, handle.id, State.COMPLETED)
            assert (info.retried, info.crashes) == (0, 0)
    assert len(gate.ran) == 1
    assert "cannot ask whether tasks may start" in caplog.text


async def test_a_user_without_the_rights_to_ask_runs_nothing_unlimited(
    private_server: PrivateServer, gate: Gate
) -> None:
    """A refusal of Redis counts as "not now", and costs no retry."""
    server = private_server()
    client: Any = server.client()
    client.execute_command("ACL", "SETUSER", "old", "on", ">secret", "~*", "&*", "+@all", "-zcard")
    app = StreamQ(server.url.replace("redis://", "redis://old:secret@"))
    gate.open.set()
    app.task(name="t", limits=[Concurrency(1)], retry=0, retention=60)(gate.__call__)
    async with app, app.inspector() as inspector, running(app):
        handle = await app.enqueue("t")
        await in_state(inspector, handle.id, State.RETRY)
        assert not gate.ran
        client.execute_command("ACL", "SETUSER", "old", "+zcard")
        await in_state(inspector, handle.id, State.COMPLETED)
    assert len(gate.ran) == 1


async def test_a_key_function_that_raises_fails_the_attempt(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    """It is the user's code, like the handler; the task is not lost, and does not run unlimited."""

    def broken(*_: object, **__: object) -> object:
        raise ValueError("no key")

    app.task(name="t", limits=[Concurrency(1, key=broken)], retry=0)(gate.__call__)
    handle = await app.enqueue("t")
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert info.error == "ValueError: no key"
    assert not gate.ran


async def test_a_key_that_cannot_be_told_from_others_fails_the_attempt(
    app: StreamQ, inspector: Inspector, gate: Gate
) -> None:
    app.task(name="t", limits=[Concurrency(1, key=lambda **_: object())], retry=0)(gate.__call__)
    handle = await app.enqueue("t")
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert info.error is not None
    assert info.error.startswith("PayloadError: limits")
    assert not gate.ran


def test_a_key_that_is_no_argument_is_refused_when_the_task_is_registered(app: StreamQ) -> None:
    def handler(user: str) -> None: ...

    with pytest.raises(OptionError, match="usr"):
        app.task(name="t", limits=[Concurrency(1, key="usr")])(handler)
    assert "t" not in app.tasks


async def test_a_removed_queue_takes_its_limiters_along(
    app: StreamQ, inspector: Inspector, server: Server, gate: Gate
) -> None:
    """Also those of each value of a key."""
    gate.open.set()
    limits: list[RunLimit] = [SlidingWindow(1, per=60, key="key"), TokenBucket(1, per=60)]
    app.task(name="t", limits=limits)(gate.__call__)
    await app.enqueue_many(app.call("t", {"key": str(number)}) for number in range(20))
    async with running(app):
        await waiting(inspector, 19)
    await inspector.remove_queue("default", force=True)
    left = list(server.client().scan_iter(f"sq:{app.config.namespace}:*", count=1000))
    assert not [key for key in left if b"{default}" in key]


# One worker's limiter by itself


class Mute:
    """A runner that notes what it is to send, and answers when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, asyncio.Future[Any]]] = []

    def post(self, command: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent.append((command, answer))
        return answer


async def handler() -> None:
    """Never called here."""


DEFINITION = Definition(
    "t", handler, True, DEFAULT_RETRY, timeout_ms=None, retention_ms=0, limits=(Concurrency(1),)
)


def new_run(entry_id: bytes = b"1-1") -> Run:
    entry = Entry(Lane.NORMAL, entry_id, b"a", b"", Lane.NORMAL, 0)
    return Run(Source(Keys().queue("default"), Lane.NORMAL), entry)


async def asking(limiter: Limiter, run: Run) -> asyncio.Task[list[Place]]:
    """A run that has begun to ask."""
    task = asyncio.create_task(limiter.admit(run, DEFINITION, [], {}))
    await asyncio.sleep(0)
    return task


async def test_an_attempt_whose_time_is_over_before_it_could_start_is_put_back() -> None:
    """It has not been tried, so it has not failed."""
    runner = Mute()
    limiter: Any = Limiter(runner, "w1")  # type: ignore[arg-type]
    run = new_run()
    task = await asking(limiter, run)
    run.stop = Stop.TIMEOUT
    task.cancel()
    with pytest.raises(NotAdmitted):
        await task
    assert run.tokens == [("c0:t", b"n1-1")], "what may have been taken is given back"


async def test_a_run_that_is_stopped_while_it_asks_is_cancelled_as_any() -> None:
    runner = Mute()
    limiter: Any = Limiter(runner, "w1")  # type: ignore[arg-type]
    run = new_run()
    task = await asking(limiter, run)
    run.stop = Stop.SHUTDOWN
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_call_is_in_flight_and_the_rest_joins_the_next() -> None:
    """At most 100 at a time; one that gave up meanwhile is left out."""
    runner = Mute()
    limiter: Any = Limiter(runner, "w1")  # type: ignore[arg-type]
    runs = [new_run(b"1-%d" % number) for number in range(150)]
    first = await asking(limiter, runs[0])
    await eventually(lambda: len(runner.sent) == 1)
    others = [await asking(limiter, run) for run in runs[1:]]
    others[0].cancel()
    await asyncio.wait([others[0]])
    assert len(runner.sent) == 1
    runner.sent[0][1].set_result(Admission([0], []))
    assert await first == []
    await eventually(lambda: len(runner.sent) == 2)
    tokens = [word for word in runner.sent[1][0].args if isinstance(word, bytes) and word != b"a"]
    assert tokens == [b"n1-%d" % number for number in range(2, 102)]
    runner.sent[1][1].set_exception(Unavailable("gone"))
    await eventually(lambda: len(runner.sent) == 3)
    runner.sent[2][1].set_result(Admission([-7] * 48, []))
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    waits = Counter(outcome.wait_ms for outcome in outcomes if isinstance(outcome, NotAdmitted))
    assert waits == {1000: 100, 7: 48}


@pytest.mark.parametrize("wait_ms, known", [(5, True), (LONGEST_WAIT_MS, False), (-5, False)])
async def test_a_turn_is_known_unless_it_is_the_longest_wait_or_somebody_elses_end(
    wait_ms: int, known: bool
) -> None:
    runner = Mute()
    task = await asking(Limiter(runner, "w1"), new_run())  # type: ignore[arg-type]
    await eventually(lambda: runner.sent)
    runner.sent[0][1].set_result(Admission([wait_ms], []))
    with pytest.raises(NotAdmitted) as refusal:
        await task
    assert (refusal.value.wait_ms, refusal.value.known) == (abs(wait_ms), known)


async def test_for_places_that_were_found_free_others_are_roused() -> None:
    """Their tasks ended without giving them back: their workers died."""
    runner = Mute()
    task = await asking(Limiter(runner, "w1"), new_run())  # type: ignore[arg-type]
    await eventually(lambda: runner.sent)
    runner.sent[0][1].set_result(Admission([0], [("c0:t", b""), ("c0:t", b"")]))
    await task
    await eventually(lambda: len(runner.sent) == 2)
    given = runner.sent[1][0]
    assert (given.script, list(given.args)) == (script("give_back"), ["c0:t", b"", "c0:t", b""])


# What becomes of it


def delay_of(outcome: Outcome) -> int:
    assert isinstance(outcome, PutBack)
    return outcome.delay_ms


def test_who_knows_his_turn_comes_back_at_it() -> None:
    message = Message.new(type="t", payload=b"", put_back=7)
    assert delay_of(after_refusal(message, NotAdmitted(1234, known=True))) == 1234


def test_who_waits_for_others_asks_less_and_less_often() -> None:
    """And never sooner than his turn; spread by a quarter."""
    message = Message.new(type="t", payload=b"")
    delays = []
    for _ in range(11):
        outcome = after_refusal(message, NotAdmitted(1), spread=0.5)
        delays.append(delay_of(outcome))
        assert isinstance(outcome, PutBack)
        message = outcome.message
    assert delays == [*(100 * 2**doubled for doubled in range(9)), LONGEST_BACKOFF_MS, LONGEST_BACKOFF_MS]
    assert delay_of(after_refusal(message, NotAdmitted(LONGEST_WAIT_MS), spread=0.0)) == 225_000
    assert delay_of(after_refusal(message, NotAdmitted(LONGEST_WAIT_MS), spread=1.0)) == 375_000


async def test_a_task_that_ran_forgets_how_often_it_was_put_back(
    app: StreamQ, inspector: Inspector, server: Server, gate: Gate
) -> None:
    """So that the next time it has to wait, it begins with short waits again."""

    @app.task(name="t", limits=[Concurrency(1)], retry=Retry(max_retries=1, delay=3600))
    async def task() -> None:
        await gate()
        raise ValueError

    redis: Any = server.client()

    async def put_back(task_id: str) -> int:
        value = redis.hget(keys_of(app).parked, task_id)
        return decode_message(value.partition(b":")[2]).put_back if value else 0

    async def has_been_put_back() -> bool:
        counts = [await put_back(handle.id) for handle in (first, second)]
        return min(counts) == 0 < max(counts)

    first, second = await app.enqueue_many([task.call(), task.call()])
    async with running(app):
        await eventually(has_been_put_back)
        gate.open.set()
        await eventually(lambda: len(gate.ran) == 2)
        await waiting(inspector, 2)
        assert [await put_back(handle.id) for handle in (first, second)] == [0, 0]
