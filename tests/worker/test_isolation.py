"""Isolated handlers: real child processes of a real worker, which outlives whatever they do."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from streamq import CallNext, Client, Reason, State, StreamQ, TaskContext, TaskHandle, TaskInfo, Worker
from streamq.broker.address import Address
from streamq.client.client import ClientConfig
from streamq.errors import RegistrationError, TaskCancelled, TaskNotFound
from streamq.model.limits import DEFAULT_LIMITS
from streamq.worker.config import WorkerConfig
from streamq.worker.held import Stop
from streamq.worker.home import Home
from streamq.worker.isolation import Isolator
from streamq.worker.middleware import Middleware
from tests.servers import Server
from tests.support import SHORT, eventually, live
from tests.worker import isolated

pytestmark = pytest.mark.processes


class Stage:
    """A worker of the isolated app on the test's server and namespace, and a client."""

    def __init__(self, server: Server, namespace: str) -> None:
        self.address = Address.parse(server.url)
        self.client = Client(self.address, ClientConfig(namespace=namespace))
        self.namespace = namespace

    def worker(self, middleware: tuple[Middleware, ...] = (), **settings: Any) -> Worker:
        """With short times, as ``tests.support.make_worker``."""
        config = WorkerConfig.of(
            {**SHORT, "concurrency": 2, **settings},
            namespace=self.namespace,
            home=isolated.app.home(),
            lifespan=isolated.lifespan,
        )
        definitions = {
            name: replace(definition, middleware=middleware)
            for name, definition in isolated.app.definitions().items()
        }
        return Worker(self.address, definitions, config)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Worker]:
        worker = self.worker(**settings)
        async with live(worker):
            yield worker
        assert worker.isolator.pids == []

    async def enqueue(self, name: str, *args: Any, **options: Any) -> TaskHandle[Any]:
        task = isolated.app.tasks[name]
        call = task.options(**options).call(*args) if options else task.call(*args)
        return await self.client.enqueue(call)

    async def result(self, name: str, *args: Any, **options: Any) -> Any:
        handle = await self.enqueue(name, *args, **options)
        return await handle.result(30)

    async def archived(self, name: str, *args: Any, **options: Any) -> TaskInfo:
        """Enqueue, and wait until it is given up."""
        return await self.given_up(await self.enqueue(name, *args, **options))

    async def given_up(self, handle: TaskHandle[Any], state: State = State.ARCHIVED) -> TaskInfo:
        async def there() -> TaskInfo | None:
            info = await handle.info()
            return info if info.state is state else None

        info: TaskInfo = await eventually(there, f"the task is {state}", within_s=40)
        return info

    async def gone(self, handle: TaskHandle[Any]) -> None:
        """Wait until nothing is left of the task."""

        async def missing() -> bool:
            try:
                await handle.info()
            except TaskNotFound:
                return True
            return False

        await eventually(missing, "it is gone", within_s=40)


@pytest.fixture
async def stage(server: Server, namespace: str) -> AsyncIterator[Stage]:
    stage = Stage(server, namespace)
    async with stage.client:
        yield stage


def dead(pid: int) -> bool:
    """Gone, or waiting to be reaped by whoever its parent is now."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def pids_of(folder: Path, task_id: str) -> list[int]:
    """What ``wait`` has left behind: its process, and the one that it started."""
    path = folder / task_id
    await eventually(path.exists, "the handler runs", within_s=40)
    pids: list[int] = json.loads(path.read_text())
    return pids


# Running


async def test_async_and_sync_handlers_run_in_a_child_process(stage: Stage) -> None:
    async with stage.running():
        assert await stage.result("add", 2, 40) == 42
        seen = await stage.result("where")
    assert seen["pid"] != os.getpid()
    assert seen["parent"] == os.getpid()
    assert seen["main"], "sync handlers have the main thread"


async def test_the_child_enters_the_lifespan_once_and_is_used_again(stage: Stage) -> None:
    async with stage.running(concurrency=1):
        first, second = await stage.result("where"), await stage.result("where")
    assert first == second
    assert first["state"] == {"entered": 1, "pid": first["pid"]}


async def test_a_child_that_has_had_its_runs_is_replaced(stage: Stage) -> None:
    async with stage.running() as worker:
        pids = [await stage.result("once") for _ in range(3)]
        await eventually(lambda: all(map(dead, pids)), "they have ended")
        assert len(worker.isolator.pids) <= 2
    assert len(set(pids)) == 3


async def test_a_child_stands_ready_before_the_first_task(stage: Stage) -> None:
    """And no more than there are slots."""
    async with stage.running(concurrency=1) as worker:
        (pid,) = worker.isolator.pids
        assert (await stage.result("where"))["pid"] == pid
        assert worker.isolator.pids == [pid]


async def test_children_are_as_many_as_run_and_a_spare_but_never_more_than_slots(
    stage: Stage, tmp_path: Path
) -> None:
    async with stage.running(concurrency=3) as worker:
        first = await stage.enqueue("wait", str(tmp_path))
        await pids_of(tmp_path, first.id)
        assert len(worker.isolator.pids) == 2
        others = [await stage.enqueue("wait", str(tmp_path)) for _ in range(3)]
        await pids_of(tmp_path, others[0].id)
        await pids_of(tmp_path, others[1].id)
        assert len(worker.isolator.pids) == 3


async def test_a_handler_sees_its_task(stage: Stage) -> None:
    """A66, in a child process."""
    async with stage.running():
        handle = await stage.enqueue("about", headers={"who": "me"}, retry=3)
        seen = await handle.result(30)
    assert seen.pop("deadline") > 0
    assert seen == {
        "id": handle.id,
        "type": "about",
        "queue": "default",
        "headers": {"who": "me"},
        "attempt": 1,
        "retried": 0,
        "crashes": 0,
        "max_retries": 3,
        "loop": "asyncio",
    }


async def test_what_a_handler_writes_comes_out_of_the_worker(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    async with stage.running():
        await stage.result("shout", "loudly")
    written = capfd.readouterr()
    assert "out loudly" in written.out
    assert "log loudly" in written.err


async def test_a_result_that_cannot_be_stored_matters_only_where_it_is_kept(stage: Stage) -> None:
    """As without isolation: the work is done, so it is not tried again."""
    async with stage.running():
        await stage.gone(await stage.enqueue("odd-result"))
        info = await stage.archived("odd-result", retention=60)
    assert info.retried == 0
    assert info.error is not None
    assert info.error.startswith("PayloadError: result")


async def test_a_cancel_kills_the_child_and_what_it_started(stage: Stage, tmp_path: Path) -> None:
    """B10: it cannot swallow that. The task is archived as cancelled, and the worker goes on."""
    async with stage.running():
        handle = await stage.enqueue("wait", str(tmp_path))
        pids = await pids_of(tmp_path, handle.id)
        assert await handle.cancel() is False
        with pytest.raises(TaskCancelled):
            await handle.result(30)
        await eventually(lambda: all(map(dead, pids)), "they have ended")
        assert (await handle.info()).retried == 0
        assert await stage.result("add", 1, 1) == 2


# Errors


async def test_an_error_reads_as_if_it_had_been_raised_in_the_worker(stage: Stage) -> None:
    async with stage.running():
        info = await stage.archived("fail", "lost")
        assert info.error == "KeyError: 'lost'"
        assert info.message is not None
        assert "isolated.py" in (info.message.traceback or "")
        assert "raise KeyError(kind)" in (info.message.traceback or "")
        assert (await stage.archived("fail", "exit")).error == "HandlerExited: the handler raised SystemExit"
        assert (await stage.archived("fail", "cancel")).error == "CancelledError"
        assert await stage.result("add", 1, 1) == 2


async def test_the_predicate_for_failures_sees_the_error_itself(stage: Stage) -> None:
    """B24: what is no failure is tried again although no retry is left."""
    async with stage.running():
        info = await stage.given_up(await stage.enqueue("picky"), State.RETRY)
    assert (info.retried, info.error) == (0, "KeyError: 'busy'")


async def test_a_predicate_that_raises_in_a_child_process_is_logged_there(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    """B32: the error counts as a failure, and the process serves on."""
    async with stage.running():
        info = await stage.archived("broken")
        assert info.error == "KeyError: 'lost'"
        assert await stage.result("add", 1, 1) == 2
    assert f"is_failure raised id={info.id} type=broken" in capfd.readouterr().err


async def test_dependencies_are_made_in_the_child_process_and_cleaned_up_there(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also for a task that came by a pattern."""
    wants = isolated.app.tasks["wants:*"]
    async with stage.running():
        handle = await stage.client.enqueue(wants.named("wants:much").call())
        both, pid, name = await handle.result(timeout=20)
        failing = await stage.client.enqueue(wants.named("wants:more").call("lost"))
        info = await stage.given_up(failing, State.ARCHIVED)
    assert (both, name, info.error) == ([pid, pid], "wants:much", "ValueError: lost")
    assert pid != os.getpid()
    written = capfd.readouterr().out
    assert "wants:much left well" in written
    assert "wants:more left after ValueError" in written


async def test_middleware_stands_in_the_worker_around_the_child_process(stage: Stage, tmp_path: Path) -> None:
    """It sees the result, the error, and the end of a run that is out of time."""
    seen: list[Any] = []

    async def watch(context: TaskContext, call_next: CallNext) -> Any:
        try:
            result = await call_next()
        except BaseException as error:
            seen.append((context.type, type(error).__name__, str(error)))
            raise
        seen.append((context.type, result))
        return result

    async with stage.running(middleware=(watch,)):
        assert await stage.result("add", 1, 2) == 3
        assert (await stage.archived("fail", "lost")).error == "KeyError: 'lost'"
        late = await stage.archived("wait", str(tmp_path), timeout=0.5)
    assert seen[0] == ("add", 3)
    assert seen[1][:2] == ("fail", "HandlerFailed")
    assert seen[2][:2] == ("wait", "CancelledError")
    assert (late.error or "").startswith("AttemptTimeout: ")


async def test_handlers_steer_their_tasks_from_a_child_process(stage: Stage) -> None:
    """A55-A57: what chooses the outcome is the same as in the worker."""
    async with stage.running():
        await stage.gone(await stage.enqueue("steer", "drop"))
        later = await stage.given_up(await stage.enqueue("steer", "later"), State.RETRY)
        skipped = await stage.archived("steer", "skip")
        wrapped = await stage.archived("steer", "wrapped")
        released = await stage.given_up(await stage.enqueue("steer", "release"), State.RETRY)
    assert later.next_at is not None
    assert later.failed_at is not None
    assert 7100 < (later.next_at - later.failed_at).total_seconds() < 7300
    assert skipped.error == "SkipRetry: never"
    assert wrapped.error == "ValueError: wrapped"
    assert released.retried == 0


# Crashes and limits


@pytest.mark.parametrize(
    "how, told",
    [
        ("segfault", "ChildFailed: the child process was killed by SIGSEGV"),
        ("exit", "ChildFailed: the child process exited with code 1"),
        ("sigkill", "ChildFailed: the child process was killed by SIGKILL"),
    ],
)
async def test_a_crash_fails_the_attempt_and_leaves_the_worker_alone(
    stage: Stage, how: str, told: str
) -> None:
    """B9, F3: a task that takes its process down counts as a failure, and the crash is named."""
    async with stage.running() as worker:
        info = await stage.archived("crash", how)
        assert (info.error, info.crashes) == (told, 0)
        assert await stage.result("add", 1, 1) == 2
        assert worker.executor.running == 0


@pytest.mark.parametrize(
    "name, args, told",
    [
        ("hog", [2048], "memory limit of 512 MiB"),
        ("spin", [], "cpu limit of 1 s"),
        ("open-many", [], "limit of 64 open files"),
    ],
)
async def test_an_overrun_fails_the_attempt_with_the_limit_named(
    stage: Stage, name: str, args: list[Any], told: str
) -> None:
    """F3: a handler that wants more than it may have fails, and its child makes way."""
    async with stage.running(concurrency=1) as worker:
        before = worker.isolator.pids
        info = await stage.archived(name, *args)
        assert info.error == f"ResourceLimitExceeded: {told}"
        assert await stage.result("add", 1, 1) == 2
        assert not set(before) & set(worker.isolator.pids)


async def test_what_stays_within_its_limits_succeeds_and_lifts_them(stage: Stage) -> None:
    async with stage.running(concurrency=1):
        before = await stage.result("limits")
        await stage.enqueue("hog", 8, task_id="small")
        assert await stage.result("limits") == before


async def test_a_memory_limit_below_what_the_child_takes_is_named(stage: Stage) -> None:
    async with stage.running():
        info = await stage.archived("cramped")
    assert info.error is not None
    assert info.error.startswith("ResourceLimitExceeded: memory limit of 16 MiB: the child process")
    assert info.error.endswith("raise isolate.memory")


async def test_a_handler_that_holds_the_interpreter_costs_no_lease(stage: Stage) -> None:
    """F5: for twice the lease no other thread of the handler's process runs; the worker's do."""
    async with stage.running(lease_ms=1_000) as worker:
        handle = await stage.enqueue("hold-gil", 2.0)
        assert await stage.result("second") == os.getpid()
        assert await handle.result(30) == 0
        assert worker.settler.lost == 0
        assert worker.settler.settled == 2


# Ending


async def test_a_timeout_kills_the_child_and_what_it_started(stage: Stage, tmp_path: Path) -> None:
    """B11: the slot is free only when the handler is dead, so that no retry overlaps it."""
    async with stage.running() as worker:
        handle = await stage.enqueue("wait", str(tmp_path))
        pids = await pids_of(tmp_path, handle.id)
        worker.executor.stop_runs(Stop.TIMEOUT)
        info = await stage.given_up(handle)
        assert info.error is not None
        assert info.error.startswith("AttemptTimeout")
        assert dead(pids[0])
        await eventually(lambda: all(map(dead, pids)), "both have ended")
        assert pids[0] not in worker.isolator.pids


async def test_a_cancelled_task_is_killed(stage: Stage, tmp_path: Path) -> None:
    """A123, B10: at once, wherever its handler is, and with the outcome that was asked for."""
    async with stage.running() as worker:
        handle = await stage.enqueue("wait", str(tmp_path))
        pids = await pids_of(tmp_path, handle.id)
        assert await handle.cancel() is False, "its worker is told"
        info = await stage.given_up(handle)
        assert info.reason is Reason.CANCELLED
        await eventually(lambda: all(map(dead, pids)), "both have ended")
        await eventually(lambda: worker.executor.running == 0, "the slot is free")


STARTED = ["sleep", f"601.{os.getpid()}"]
"""A program of this test process alone: another run of the tests may be under way."""


async def test_what_a_crashed_handler_had_started_ends_with_it(stage: Stage) -> None:
    async with stage.running() as worker:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        info = await stage.archived("crash", " ".join(STARTED))
        assert info.error == "ChildFailed: the child process exited with code 1"

        def left() -> set[int]:
            found = {child.pid for child in psutil.Process().children(recursive=True)}
            return {pid for pid in found - before if not dead(pid)} - set(worker.isolator.pids)

        await eventually(lambda: not left(), "nothing is left of it")
    assert not [one for one in psutil.process_iter() if started_here(one)]


def started_here(process: psutil.Process) -> bool:
    """A ``sleep`` of the handler above, which would be nobody's child by now."""
    try:
        return bool(process.cmdline() == STARTED and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


async def test_a_timeout_shorter_than_a_start_does_not_keep_children_from_starting(stage: Stage) -> None:
    """What was started for a run that is over serves the next one."""
    async with stage.running(concurrency=1) as worker:
        (pid,) = worker.isolator.pids
        info = await stage.archived("fail", "late", timeout=0.001)
        assert info.error is not None
        assert info.error.startswith("AttemptTimeout")
        assert (await stage.result("where"))["pid"] == pid


async def test_a_used_child_makes_way_for_a_task_that_wants_a_fresh_one(stage: Stage) -> None:
    """There is one slot, so there is one child: the new one is started when the other has ended."""
    async with stage.running(concurrency=1):
        used = (await stage.result("where"))["pid"]
        assert await stage.result("once") != used
        assert dead(used)


async def test_a_child_that_cannot_be_started_fails_the_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr("streamq.worker.isolation.ChildProcess", refuse)
    async with stage.running():
        info = await stage.archived("fail", "any")
    assert info.error is not None
    assert info.error.startswith("ChildFailed: the child process cannot be started: no memory")


async def test_a_child_that_ends_without_work_is_replaced_when_it_is_needed(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """And that it ended is said."""
    async with stage.running(concurrency=1) as worker:
        first = (await stage.result("where"))["pid"]
        os.kill(first, 9)
        await eventually(lambda: worker.isolator.pids == [], "it has ended")
        assert f"child process ended without work pid={first} end=" in caplog.text
        assert (await stage.result("where"))["pid"] != first


async def test_children_that_have_had_nothing_to_do_are_let_go_but_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamq.worker.isolation._IDLE_S", 0.05)
    async with stage.running(concurrency=3) as worker:
        await asyncio.gather(*(stage.result("where") for _ in range(9)))
        await eventually(lambda: len(worker.isolator.pids) == 1, "the others have ended")
        assert (await stage.result("where"))["pid"] == worker.isolator.pids[0]


async def test_a_lost_lease_kills_the_child(stage: Stage, tmp_path: Path) -> None:
    """A77: nobody else's run is disturbed by one that goes on."""
    async with stage.running() as worker:
        handle = await stage.enqueue("wait", str(tmp_path))
        pids = await pids_of(tmp_path, handle.id)
        (run,) = worker.held.runs()
        worker._on_lost(run.source.key, [run.entry.entry_id])
        await eventually(lambda: all(map(dead, pids)), "both have ended")
        await eventually(lambda: worker.executor.running == 0, "the slot is free")


async def test_a_shutdown_kills_the_child_and_gives_the_task_back(stage: Stage, tmp_path: Path) -> None:
    """A69, B33: given back only after the handler is dead, and nothing is spent."""
    worker = stage.worker(grace_s=0.1)
    async with live(worker) as task:
        handle = await stage.enqueue("wait", str(tmp_path))
        pids = await pids_of(tmp_path, handle.id)
        worker.stop()
        await asyncio.wait_for(task, 20)
    assert all(map(dead, pids))
    info = await handle.info()
    assert (info.state, info.retried, info.crashes) == (State.READY, 0, 0)


async def test_a_worker_that_stops_leaves_no_process_behind(stage: Stage) -> None:
    """A130."""
    async with stage.running(concurrency=3) as worker:
        await asyncio.gather(*(stage.result("where") for _ in range(6)))
        pids = worker.isolator.pids
        assert pids
    assert all(map(dead, pids))


async def test_signals_to_all_processes_of_a_service_do_not_end_a_run(stage: Stage, tmp_path: Path) -> None:
    """A service manager may signal the children too: when they end, the worker decides."""
    async with stage.running(concurrency=1) as worker:
        handle = await stage.enqueue("wait", str(tmp_path), 1.0, retention=60)
        child, _ = await pids_of(tmp_path, handle.id)
        for number in (15, 2, 1):
            os.kill(child, number)
        assert await handle.result(30) is None
        assert worker.isolator.pids == [child]


async def test_whatever_mix_of_ends_leaves_nothing_behind(stage: Stage) -> None:
    """A130: neither processes nor threads, and at no time more children than slots."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    async with stage.running(concurrency=2) as worker:
        ends = [("crash", "segfault"), ("crash", "exit"), ("fail", "x"), ("fail", "exit"), ("hold-gil", 60.0)]
        failing = [
            await stage.enqueue(name, word, timeout=1, retry=0) for name, word in ends for _ in range(2)
        ]
        fine = [await stage.enqueue(name) for name in ("once", "where", "once")]
        for handle in fine:
            await handle.result(60)
        for handle in failing:
            await stage.given_up(handle)
            assert len(worker.isolator.pids) <= 2
    await eventually(
        lambda: not [one for one in threading.enumerate() if one.name.startswith("streamq-child")],
        "its threads have ended",
    )
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


# Loops


def test_isolation_works_on_uvloop_too(server: Server, namespace: str) -> None:
    """The child has the same kind of loop as its worker; its end is noticed on both."""

    async def scene() -> dict[str, Any]:
        stage = Stage(server, namespace)
        async with stage.client, stage.running() as worker:
            info = await stage.archived("crash", "exit")
            assert info.error == "ChildFailed: the child process exited with code 1"
            seen: dict[str, Any] = await stage.result("about")
            assert worker.isolator.pids
        return seen

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scene())["loop"] == "uvloop"


# Loading


async def test_an_app_that_is_not_there_in_a_child_fails_the_attempt_and_says_so(stage: Stage) -> None:
    """The worker goes on, and starts no child again and again without work for it."""
    worker = stage.worker()
    worker.isolator = worker.executor._invoker._isolator = Isolator(
        Home("tests.worker.isolated", "gone"), 2, DEFAULT_LIMITS, worker.progress.note
    )
    async with live(worker):
        await eventually(lambda: worker.isolator.pids == [], "the spare one has given up")
        info = await stage.archived("fail", "x")
    assert info.error == (
        "ChildFailed: the child process cannot load the app: RegistrationError: isolate: "
        "tests.worker.isolated.gone is not there in a child process; "
        "define it whenever the module is imported"
    )


# Registering


def test_a_handler_inside_a_function_is_refused_with_the_remedy() -> None:
    app = StreamQ()

    def local() -> None:
        pass

    with pytest.raises(RegistrationError, match="top level of a module; move it there"):
        app.task(isolate=True)(local)


def test_an_app_that_no_module_has_is_refused_with_the_remedy() -> None:
    app = StreamQ()
    app.task(name="x", isolate=True)(top_level)
    with pytest.raises(RegistrationError, match="keep the app there"):
        app.worker()


def top_level() -> None:
    """A handler that stands where it should."""


async def test_what_an_aggregator_makes_runs_in_a_child_process(stage: Stage) -> None:
    """The aggregator itself runs in the worker; the handler's members are there no more."""
    async with stage.running():
        handles = [await stage.enqueue("total", number, group="g") for number in (1, 2)]
        number, group, pid = await handles[0].result(30)
    assert (number, group) == (3, "g")
    assert pid != os.getpid()
