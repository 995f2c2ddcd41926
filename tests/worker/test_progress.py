"""Progress from a handler to whoever looks: from any thread, soon, seldom, and never after the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from streamq import (
    GroupRule,
    Inspector,
    Member,
    Progress,
    Retry,
    StreamQ,
    SyncTaskHandle,
    TaskHandle,
    current_task,
)
from streamq.broker.command import Command
from streamq.broker.keys import Keys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import Entry
from streamq.errors import OptionError, ServerError, Unavailable
from streamq.model.definition import Definition
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.retry import DEFAULT_RETRY
from streamq.worker.context import TaskContext
from streamq.worker.held import Run, Source
from streamq.worker.progress import ProgressWriter
from tests.servers import Server
from tests.support import eventually, keys_of, running
from tests.worker.test_isolation import Stage
from tests.worker.test_outcomes import is_gone


class Redis(AsyncRunner):
    """Takes what is written, and refuses when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[Any, Any]]] = []
        self.away = False

    @property
    def said(self) -> list[tuple[Any, Any]]:
        return [word for call in self.calls for word in call]

    async def run_all(self, commands: Sequence[Command[Any]], *, limit_s: float | None = None) -> list[Any]:
        if self.away:
            raise Unavailable("gone")
        words: list[list[Any]] = [list(command.args) for command in commands]
        self.calls.append([(some[at + 1], some[at + 2]) for some in words for at in range(1, len(some), 3)])
        return [[b"ok"] for _ in commands]


def run_of(task_id: bytes, queue: str = "q", entry_id: bytes = b"1-1") -> Run:
    return Run(
        Source(Keys().queue(queue), Lane.NORMAL), Entry(Lane.NORMAL, entry_id, task_id, b"", Lane.NORMAL, 0)
    )


# The writer


async def test_many_tasks_share_a_write_and_the_newest_word_wins() -> None:
    redis = Redis()
    writer = ProgressWriter(redis, consumer="w")
    a, b, c = run_of(b"a"), run_of(b"b"), run_of(b"c", "other")
    for said in (b"1", b"2", b"3"):
        writer.note(a, said)
    writer.note(b, b"4")
    writer.note(c, b"5")
    assert await writer.run_once() == 3
    assert redis.calls == [[(b"a", b"3"), (b"b", b"4"), (b"c", b"5")]]


async def test_a_task_is_written_again_only_after_a_while_and_others_do_not_wait_for_it() -> None:
    redis = Redis()
    writer = ProgressWriter(redis, consumer="w", every_s=0.2)
    a, b = run_of(b"a"), run_of(b"b")
    writer.note(a, b"1")
    assert await writer.run_once() == 1
    writer.note(a, b"2")
    writer.note(b, b"1")
    assert await writer.run_once() == 1
    writer.note(a, b"3")
    await eventually(writer.run_once, "the pause is over")
    assert redis.calls == [[(b"a", b"1")], [(b"b", b"1")], [(b"a", b"3")]]


async def test_what_a_settled_task_says_is_not_written() -> None:
    redis = Redis()
    writer = ProgressWriter(redis, consumer="w")
    run = run_of(b"a")
    writer.note(run, b"1")
    run.outcome_recorded = True
    assert await writer.run_once() == 0
    assert redis.calls == []


async def test_words_wait_for_redis_and_newer_ones_win() -> None:
    redis = Redis()
    writer = ProgressWriter(redis, consumer="w", every_s=0.01)
    run, other = run_of(b"a"), run_of(b"b")
    writer.note(run, b"old")
    writer.note(other, b"only")
    redis.away = True
    with pytest.raises(Unavailable):
        await writer.run_once()
    writer.note(run, b"new")
    redis.away = False
    await eventually(writer.run_once, "it is written")
    assert sorted(redis.said) == [(b"a", b"new"), (b"b", b"only")]


async def test_what_is_said_during_a_write_that_fails_is_not_overwritten() -> None:
    """By the older word, which is to be written again. A write fails with any of its commands."""

    class Refusing(Redis):
        async def run_all(
            self, commands: Sequence[Command[Any]], *, limit_s: float | None = None
        ) -> list[Any]:
            replies = await super().run_all(commands, limit_s=limit_s)
            if len(self.calls) > 1:
                return replies
            writer.note(run, b"newer")
            return [ServerError("refused")]

    redis, run = Refusing(), run_of(b"a")
    writer = ProgressWriter(redis, consumer="w", every_s=0)
    writer.note(run, b"older")
    with pytest.raises(ServerError, match="refused"):
        await writer.run_once()
    assert await writer.run_once() == 1
    assert redis.said == [(b"a", b"older"), (b"a", b"newer")]


def test_a_thread_that_outlives_its_worker_may_go_on_talking() -> None:
    """The loop that would wake the writer is closed; nobody hears it, and it does not fail."""
    writer = ProgressWriter(Redis(), consumer="w")
    writer._loop = asyncio.new_event_loop()
    writer._loop.close()
    writer.note(run_of(b"a"), b"1")
    assert writer._latest


async def test_a_handler_that_never_stops_talking_costs_two_writes_a_second() -> None:
    """From a thread, while the writer runs."""
    redis = Redis()
    writer = ProgressWriter(redis, consumer="w", every_s=0.1)
    writing = asyncio.create_task(writer.run())
    run = run_of(b"a")
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    def talk() -> None:
        for count in range(100_000):
            writer.note(run, b"%d" % count)

    await asyncio.to_thread(talk)
    await eventually(lambda: (b"a", b"99999") in redis.said, "the last word is written")
    took_s = loop.time() - began_s
    assert len(redis.calls) <= took_s / 0.1 + 2
    writing.cancel()


async def test_a_word_marks_its_run_so_that_the_settler_tidies_up() -> None:
    writer = ProgressWriter(Redis(), consumer="w")
    run = run_of(b"a")
    run.beside = (b"member",)
    writer.note(run, b"1")
    writer.note(run, b"2")
    assert list(run.beside) == [b"member", b"a"]


# In a worker


async def seen(handle: TaskHandle[Any]) -> Progress | None:
    """What a reader sees."""
    return await handle.progress()


@pytest.mark.parametrize("kind", ["async", "sync", "thread"])
async def test_readers_see_what_a_handler_says(app: StreamQ, inspector: Inspector, kind: str) -> None:
    go_on = threading.Event()
    asked = asyncio.Event()

    async def speak() -> None:
        current_task().progress(0.4, "reading")
        await asked.wait()

    def speak_in_a_thread() -> None:
        current_task().progress(0.4, "reading")
        go_on.wait(30)

    async def have_a_thread_speak() -> None:
        await asyncio.to_thread(current_task().progress, 0.4, "reading")
        await asked.wait()

    handlers: dict[str, Any] = {"async": speak, "sync": speak_in_a_thread, "thread": have_a_thread_speak}
    task = app.task(name="t")(handlers[kind])
    async with running(app):
        handle = await task.enqueue()
        progress = await eventually(lambda: seen(handle), "it is told")
        assert (progress.fraction, progress.text) == (0.4, "reading")
        assert (await handle.info()).progress == progress
        with app.sync() as client:
            same: SyncTaskHandle[Any] = SyncTaskHandle(client, handle.queue, handle.id)
            assert same.progress() == progress
        go_on.set()
        asked.set()
        await eventually(lambda: is_gone(inspector, handle.id), "it is done")
        await eventually(lambda: nothing_beside(app), "nothing is left of it")


async def nothing_beside(app: StreamQ) -> bool:
    keys = keys_of(app)
    command = Command(None, (keys.progress,), ("HLEN", keys.progress), int)
    return await app.client.runner.run(command) == 0


async def test_a_batch_speaks_for_its_members(app: StreamQ) -> None:
    written = asyncio.Event()

    @app.batch_task(name="t", group_rule=GroupRule(grace=60, max_size=2))
    async def speak(members: list[Member]) -> None:
        current_task().progress(0.5, f"{len(members)} of them")
        await written.wait()

    async with running(app):
        one, other = [await speak.options(group="g").enqueue() for _ in range(2)]
        for handle in (one, other):
            progress = await eventually(partial(seen, handle), "it is told")
            assert progress.text == "2 of them"
        written.set()
        await eventually(lambda: nothing_beside(app), "nothing is left of it")


async def test_a_retained_task_has_a_result_and_no_progress(app: StreamQ) -> None:
    written = asyncio.Event()

    @app.task(name="t", retention=60)
    async def speak() -> int:
        current_task().progress(0.4)
        await written.wait()
        return 1

    async with running(app):
        handle = await speak.enqueue()
        await eventually(lambda: seen(handle), "it is told")
        written.set()
        assert await handle.result(20) == 1
        await eventually(lambda: nothing_beside(app), "nothing is left of it")


async def test_an_archived_task_shows_how_far_it_got(app: StreamQ) -> None:
    written = asyncio.Event()

    @app.task(name="t", retry=Retry(max_retries=0))
    async def speak() -> None:
        current_task().progress(0.4, "half-way")
        await written.wait()
        raise ValueError

    async with running(app):
        handle = await speak.enqueue()
        await eventually(lambda: seen(handle), "it is told")
        written.set()
        info = await eventually(lambda: archived(handle), "it is archived")
        assert info.progress.text == "half-way"


async def archived(handle: TaskHandle[Any]) -> Any:
    info = await handle.info()
    return info if info.state.value == "archived" else None


async def test_a_handler_in_a_child_process_is_heard(server: Server, namespace: str) -> None:
    """All that it says in a rush is not written, but the last of it is."""
    stage = Stage(server, namespace)
    async with stage.client, stage.running():
        handle = await stage.enqueue("speak", 1_000)
        said = await eventually(lambda: last_word(handle), "its last word is told", within_s=40)
        assert said == Progress(1.0, "1000 of 1000", said.at)
        assert await stage.client.cancel(handle.queue, handle.id) is False


async def last_word(handle: TaskHandle[Any]) -> Progress | None:
    progress = await handle.progress()
    return progress if progress is not None and progress.fraction == 1 else None


async def test_progress_shows_in_no_log(
    app: StreamQ, inspector: Inspector, caplog: pytest.LogCaptureFixture
) -> None:
    """I11: what a handler says may be as secret as its arguments."""
    written = asyncio.Event()

    @app.task(name="t")
    async def speak() -> None:
        current_task().progress(0.5, "canary-7f3a")
        await written.wait()

    with caplog.at_level(logging.DEBUG):
        async with running(app):
            handle = await speak.enqueue()
            await eventually(lambda: seen(handle), "it is told")
            written.set()
            await eventually(lambda: is_gone(inspector, handle.id), "it is done")
    assert caplog.records
    assert "canary" not in caplog.text


async def test_a_handler_that_says_nonsense_fails(app: StreamQ) -> None:
    @app.task(name="t", retry=Retry(max_retries=0))
    async def speak() -> None:
        current_task().progress(40)

    async with running(app):
        info = await eventually_archived(await speak.enqueue())
        assert info.error == "OptionError: progress: must be a number from 0 to 1, or None"


async def eventually_archived(handle: TaskHandle[Any]) -> Any:
    return await eventually(lambda: archived(handle), "it is archived")


def test_a_context_without_a_worker_takes_progress_and_drops_it() -> None:
    """In tests of handlers, with a context made by hand."""

    async def handler() -> None: ...

    message = Message.new(type="t", payload=b"")
    definition = Definition("t", handler, True, DEFAULT_RETRY, timeout_ms=None, retention_ms=0)
    context = TaskContext(run_of(b"a"), message, definition, 0, None)
    context.progress(0.5, "x")
    with pytest.raises(OptionError):
        context.progress(2)


def test_a_handle_knows_nothing_before_the_first_word(server: Server, namespace: str) -> None:
    app = StreamQ(server.url, namespace=namespace)
    with app.sync() as client:
        assert client.enqueue("t", {}).progress() is None
