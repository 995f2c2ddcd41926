"""Dependencies and the typed state, seen through a worker: provided for each run, cleaned up after it.

Annotations are evaluated where they stand (no ``from __future__ import annotations``): some name
providers that are local to a test.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest

from streamq import INJECTED, CallNext, Depends, Drop, StreamQ, TaskContext, current_task
from streamq.errors import RegistrationError
from streamq.inspector import Inspector
from streamq.model.states import State
from streamq.worker import executor, resolver
from tests.servers import Server
from tests.support import eventually, live, make_worker, running
from tests.worker.test_outcomes import in_state, is_gone


@dataclass
class Db:
    """Something that is opened and closed."""

    name: str = "db"
    open: bool = True


@dataclass
class Journal:
    """What the providers of this module did, newest last. Emptied by each test."""

    lines: list[str] = field(default_factory=list)
    fail: str = ""

    def note(self, line: str) -> None:
        self.lines.append(line)
        if line == self.fail:
            raise ConnectionError(line)


journal = Journal()


@pytest.fixture(autouse=True)
def _empty_journal() -> None:
    journal.lines.clear()
    journal.fail = ""


def told(error: BaseException | None) -> str:
    return "well" if error is None else type(error).__name__


async def get_pool(context: TaskContext) -> AsyncIterator[Db]:
    """An async generator that asks for the context."""
    journal.note("pool opens")
    try:
        yield Db(context.type)
    except BaseException as error:
        journal.note(f"pool closes after {told(error)}")
        raise
    journal.note("pool closes well")


def get_session(pool: Annotated[Db, Depends(get_pool)]) -> Iterator[Db]:
    """A generator that wants another dependency."""
    journal.note("session opens")
    db = Db(f"session of {pool.name}")
    try:
        yield db
    except BaseException as error:
        journal.note(f"session closes after {told(error)}")
        raise
    finally:
        db.open = False
    journal.note("session closes well")


async def get_limit() -> int:
    journal.note("limit")
    return 7


def get_thread() -> str:
    return threading.current_thread().name


SUCCESS = ["pool opens", "session opens", "limit", "handler", "session closes well", "pool closes well"]


def register(app: StreamQ, kind: str, work: Any = lambda: None, **options: Any) -> Any:
    """A task that wants everything, as an async or a sync handler."""

    async def handler(
        number: int,
        session: Annotated[Db, Depends(get_session)] = INJECTED,
        limit: Annotated[int, Depends(get_limit)] = INJECTED,
        again: Annotated[Db, Depends(get_pool)] = INJECTED,
    ) -> str:
        journal.note("handler")
        assert session.open
        work()
        return f"{number} {session.name} {limit} {again.name}"

    def sync_handler(
        number: int,
        session: Annotated[Db, Depends(get_session)] = INJECTED,
        limit: Annotated[int, Depends(get_limit)] = INJECTED,
        again: Annotated[Db, Depends(get_pool)] = INJECTED,
    ) -> str:
        journal.note("handler")
        assert session.open
        work()
        return f"{number} {session.name} {limit} {again.name}"

    decorate = app.task(name="wants", retention=60, retry=0, **options)
    return decorate(handler) if kind == "async" else decorate(sync_handler)


KINDS = pytest.mark.parametrize("kind", ["async", "sync"])


# Provided, and cleaned up


@KINDS
async def test_dependencies_are_nested_made_once_a_run_and_cleaned_up_in_the_opposite_order(
    app: StreamQ, kind: str
) -> None:
    task = register(app, kind)
    first = await task.enqueue(1)
    async with running(app):
        assert await first.result(timeout=20) == "1 session of wants 7 wants"
        assert journal.lines == SUCCESS
        await (await task.enqueue(2)).result(timeout=20)
    assert journal.lines == SUCCESS * 2


@KINDS
async def test_cleanups_see_the_error_of_the_handler(app: StreamQ, inspector: Inspector, kind: str) -> None:
    def fail() -> None:
        raise ValueError("x")

    handle = await register(app, kind, fail).enqueue(1)
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines == [*SUCCESS[:4], "session closes after ValueError", "pool closes after ValueError"]
    assert info.error == "ValueError: x"


@KINDS
async def test_an_error_of_a_provider_is_a_failed_attempt_and_what_was_entered_is_left(
    app: StreamQ, inspector: Inspector, kind: str
) -> None:
    journal.fail = "session opens"
    handle = await register(app, kind).enqueue(1)
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines == ["pool opens", "session opens", "pool closes after ConnectionError"]
    assert info.error == "ConnectionError: session opens"


@KINDS
async def test_an_error_of_a_cleanup_is_a_failed_attempt_and_the_others_are_told(
    app: StreamQ, inspector: Inspector, kind: str
) -> None:
    """As where a transaction cannot be committed."""
    journal.fail = "session closes well"
    handle = await register(app, kind).enqueue(1)
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines == [*SUCCESS[:5], "pool closes after ConnectionError"]
    assert info.error == "ConnectionError: session closes well"


async def test_a_cleanup_that_swallows_the_error_hides_it_from_nobody(
    app: StreamQ, inspector: Inspector
) -> None:
    """Else the outer one would commit, and the failed task would count as done."""

    async def forgiving(pool: Annotated[Db, Depends(get_pool)]) -> AsyncIterator[None]:
        with contextlib.suppress(ValueError):
            yield

    @app.task(name="bad", retry=0)
    async def bad(it: Annotated[None, Depends(forgiving)] = INJECTED) -> None:
        raise ValueError("x")

    handle = await bad.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines == ["pool opens", "pool closes after ValueError"]
    assert info.error == "ValueError: x"


async def test_an_async_handler_that_is_out_of_time_is_cleaned_up_after(
    app: StreamQ, inspector: Inspector
) -> None:
    @app.task(name="slow", retry=0, timeout=0.05)
    async def slow(session: Annotated[Db, Depends(get_session)] = INJECTED) -> None:
        await asyncio.Event().wait()

    handle = await slow.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines[2:] == ["session closes after CancelledError", "pool closes after CancelledError"]
    assert (info.error or "").startswith("AttemptTimeout: ")


async def test_a_thread_that_is_out_of_time_has_its_dependencies_until_it_ends(
    app: StreamQ, inspector: Inspector
) -> None:
    begun, end = threading.Event(), threading.Event()
    was_open: list[bool] = []

    @app.task(name="slow", retry=0, timeout=0.05)
    def slow(session: Annotated[Db, Depends(get_session)] = INJECTED) -> None:
        begun.set()
        end.wait(20)
        was_open.append(session.open)

    handle = await slow.enqueue()
    async with running(app, concurrency=1) as worker:
        await eventually(begun.is_set)
        [run] = worker.executor.stuck_runs()
        await eventually(lambda: run.stop)
        assert journal.lines == ["pool opens", "session opens"]
        end.set()
        await in_state(inspector, handle.id, State.ARCHIVED)
    assert was_open == [True]
    assert journal.lines[2:] == ["session closes after CancelledError", "pool closes after CancelledError"]


async def test_a_shutdown_cleans_up_what_it_cancels(app: StreamQ, inspector: Inspector) -> None:
    @app.task(name="slow")
    async def slow(session: Annotated[Db, Depends(get_session)] = INJECTED) -> None:
        journal.note("handler")
        await asyncio.Event().wait()

    handle = await slow.enqueue()
    worker = make_worker(app, grace_s=0.05)
    async with live(worker):
        await eventually(lambda: "handler" in journal.lines)
        worker.stop()
        await in_state(inspector, handle.id, State.READY)
    assert journal.lines[3:] == ["session closes after CancelledError", "pool closes after CancelledError"]


async def test_what_a_thread_enters_while_the_run_is_cancelled_is_left(
    app: StreamQ, inspector: Inspector
) -> None:
    """A provider in a thread cannot be stopped half-way; what it opened must not leak."""
    begun, end = threading.Event(), threading.Event()

    def slow_session() -> Iterator[None]:
        begun.set()
        end.wait(20)
        journal.note("opened")
        try:
            yield
        except BaseException as error:  # a generator that is merely forgotten is closed, too
            journal.note(f"closed after {told(error)}")
            raise

    @app.task(name="slow", retry=0, timeout=0.05)
    async def slow(session: Annotated[None, Depends(slow_session)] = INJECTED) -> None:
        journal.note("handler")

    handle = await slow.enqueue()
    async with running(app, concurrency=1) as worker:
        await eventually(begun.is_set)
        [run] = worker.executor.stuck_runs()
        await eventually(lambda: run.stop)
        end.set()
        await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines == ["opened", "closed after CancelledError"]


async def test_a_plain_function_may_provide_what_an_async_one_returns(app: StreamQ) -> None:
    async def fetch() -> str:
        return "fetched"

    def get() -> Any:
        return fetch()

    @app.task(name="t")
    async def task(value: Annotated[Any, Depends(get)] = INJECTED) -> None:
        journal.note(value)

    await task.enqueue()
    async with running(app):
        await eventually(lambda: journal.lines == ["fetched"])


async def test_a_cleanup_that_hangs_is_broken_off_and_the_others_are_done(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "CLEANUP_S", 0.05)

    async def hanging(pool: Annotated[Db, Depends(get_pool)]) -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    @app.task(name="hangs", retry=0)
    async def hangs(it: Annotated[None, Depends(hanging)] = INJECTED) -> None: ...

    handle = await hangs.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert journal.lines == ["pool opens", "pool closes after TimeoutError"]
    assert (info.error or "").startswith("TimeoutError")


async def passed(deadline: datetime | None) -> None:
    """Wait until the time is over, and for timers that are due by then."""
    assert deadline is not None
    await eventually(lambda: datetime.now(UTC) > deadline + timedelta(milliseconds=50))


async def test_a_cleanup_is_not_cut_off_when_the_time_is_over(app: StreamQ, inspector: Inspector) -> None:
    """What was done is committed; middleware outside is under the timeout again."""
    ended = asyncio.Event()

    async def slow_to_leave(context: TaskContext) -> AsyncIterator[None]:
        yield
        await passed(context.deadline)
        ended.set()

    @app.task(name="kept", retry=0, timeout=0.1, retention=60)
    async def kept(it: Annotated[None, Depends(slow_to_leave)] = INJECTED) -> str:
        return "done"

    handle = await kept.enqueue()
    async with running(app):
        assert await handle.result(timeout=20) == "done"
    assert ended.is_set()


async def test_middleware_that_hangs_after_a_cleanup_is_still_timed_out(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_LEAVING_S", 0.05)

    @app.middleware
    async def hanging(context: TaskContext, call_next: CallNext) -> None:
        await call_next()
        await asyncio.Event().wait()

    async def slow_to_leave(context: TaskContext) -> AsyncIterator[None]:
        yield
        await passed(context.deadline)

    @app.task(name="hangs", retry=0, timeout=0.1)
    async def hangs(it: Annotated[None, Depends(slow_to_leave)] = INJECTED) -> None: ...

    handle = await hangs.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("AttemptTimeout: ")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration()], ids=repr)
async def test_whatever_a_provider_raises_the_worker_lives(
    app: StreamQ, inspector: Inspector, error: BaseException
) -> None:
    """B32"""

    def sync_broken() -> None:
        raise error

    async def async_broken() -> None:
        raise error

    @app.task(name="sync", retry=0)
    async def first(it: Annotated[None, Depends(sync_broken)] = INJECTED) -> None: ...

    @app.task(name="async", retry=0)
    async def second(it: Annotated[None, Depends(async_broken)] = INJECTED) -> None: ...

    handles = [await first.enqueue(), await second.enqueue()]
    async with running(app, concurrency=1):
        for handle in handles:
            await in_state(inspector, handle.id, State.ARCHIVED)


async def test_a_provider_may_steer(app: StreamQ, inspector: Inspector) -> None:
    def gate() -> None:
        raise Drop

    @app.task(name="gated")
    async def gated(it: Annotated[None, Depends(gate)] = INJECTED) -> None: ...

    handle = await gated.enqueue()
    async with running(app):
        await eventually(lambda: is_gone(inspector, handle.id))


# Where and with what


async def test_plain_functions_provide_in_threads_and_the_others_in_the_loop(app: StreamQ) -> None:
    async def in_loop() -> str:
        return threading.current_thread().name

    seen: list[str] = []

    @app.task(name="where")
    async def where(
        plain: Annotated[str, Depends(get_thread)] = INJECTED,
        coroutine: Annotated[str, Depends(in_loop)] = INJECTED,
    ) -> None:
        seen.extend([plain, coroutine])

    await where.enqueue()
    async with running(app):
        await eventually(lambda: seen)
    assert seen == ["streamq-handler", threading.current_thread().name]


async def test_a_handler_may_ask_for_its_context(app: StreamQ) -> None:
    seen: list[Any] = []

    @app.task(name="asks")
    def asks(number: int, context: TaskContext = INJECTED) -> None:
        seen.append((number, context.id, context is current_task()))

    handle = await asks.enqueue(5)
    async with running(app):
        await eventually(lambda: seen)
    assert seen == [(5, handle.id, True)]


async def test_a_producer_cannot_give_what_the_worker_provides(app: StreamQ, inspector: Inspector) -> None:
    register(app, "async")
    handle = await app.enqueue("wants", {"number": 1, "session": "mine"})
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert info.error == (
        "TypeError: the argument 'session' is provided by the worker; a producer cannot give it"
    )
    assert journal.lines == []


# Stand-ins


@KINDS
async def test_a_provider_can_be_overridden_while_a_test_runs(app: StreamQ, kind: str) -> None:
    """Also below others; the stand-in may want things itself; afterwards all is as before."""

    async def fake_pool(limit: Annotated[int, Depends(get_limit)]) -> Db:
        return Db(f"fake {limit}")

    async def other_pool() -> Db:
        return Db("other")

    task = register(app, kind)
    async with running(app):
        with app.override(get_pool, fake_pool):
            assert await (await task.enqueue(1)).result(timeout=20) == "1 session of fake 7 7 fake 7"
            with app.override(get_pool, other_pool):
                assert await (await task.enqueue(2)).result(timeout=20) == "2 session of other 7 other"
            assert await (await task.enqueue(3)).result(timeout=20) == "3 session of fake 7 7 fake 7"
        assert await (await task.enqueue(4)).result(timeout=20) == "4 session of wants 7 wants"
    assert journal.lines.count("pool opens") == 1


def test_a_stand_in_that_cannot_provide_is_refused() -> None:
    app = StreamQ()

    def wants_original(pool: Annotated[Db, Depends(get_pool)]) -> Db:
        return pool

    def wants_url(url: str) -> Db:
        return Db(url)

    for stand_in, problem in ((wants_original, "want each other"), (wants_url, "wants_url.url: has no")):
        with pytest.raises(RegistrationError, match=problem), app.override(get_pool, stand_in):
            pass


# State


@dataclass
class Shop:
    name: str


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[Shop]:
    yield Shop("corner")


async def test_the_state_of_the_lifespan_can_be_had_with_its_type(server: Server, namespace: str) -> None:
    def get_shop(context: TaskContext) -> Shop:
        return context.state_as(Shop)

    async with StreamQ(server.url, namespace=namespace, lifespan=lifespan) as app:

        @app.task(name="right", retention=60)
        async def right(shop: Annotated[Shop, Depends(get_shop)] = INJECTED) -> str:
            return f"{shop.name} {current_task().state_as(Shop).name}"

        @app.task(name="wrong", retry=0)
        async def wrong() -> None:
            current_task().state_as(Db)

        good, bad = await right.enqueue(), await wrong.enqueue()
        async with running(app), app.inspector() as inspector:
            assert await good.result(timeout=20) == "corner corner"
            info = await in_state(inspector, bad.id, State.ARCHIVED)
    assert info.error == "UsageError: state: is a Shop, not a Db; the app's lifespan yields it"


async def test_without_a_lifespan_the_state_is_nothing(app: StreamQ, inspector: Inspector) -> None:
    @app.task(name="wrong", retry=0)
    async def wrong() -> None:
        current_task().state_as(Db)

    handle = await wrong.enqueue()
    async with running(app):
        info = await in_state(inspector, handle.id, State.ARCHIVED)
    assert (info.error or "").startswith("UsageError: state: is nothing, not a Db; ")
