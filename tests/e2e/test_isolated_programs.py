"""Isolated handlers of whole programs: started in each way there is, ended in each way there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from streamq import StreamQ
from streamq.errors import TaskFailed
from tests.e2e.processes import WITHIN_S, environment, wait_until
from tests.servers import Server

pytestmark = pytest.mark.processes

PROGRAM = """
import asyncio, os, time
from pathlib import Path
from streamq import StreamQ, current_task

app = StreamQ(os.environ["URL"], namespace=os.environ["NAMESPACE"], defaults={"retention": 600, "retry": 0})

@app.task(isolate=True)
def pid() -> int:
    return os.getpid()

@app.task(name="hang", isolate=True)
def hang() -> None:
    Path("hangs").write_text(str(os.getpid()))
    time.sleep(600)

@app.task(name="nested", isolate=True)
async def nested() -> str:
    handle = await pid.enqueue()
    return handle.id
"""
GUARDED = """
async def main() -> None:
    async with app:
        await app.worker(lease_ms=2_000).run()

if __name__ == "__main__":
    asyncio.run(main())
"""
UNGUARDED = (
    "asyncio.run(app.worker().run())\n",
    "async def main() -> None:\n    await app.worker().run()\n\nasyncio.run(main())\n",
)


class Program:
    """Files in a folder, and processes that run them."""

    def __init__(self, server: Server, namespace: str, folder: Path) -> None:
        self.folder = folder
        self.url, self.namespace = server.url, namespace
        self.app = StreamQ(server.url, namespace=namespace, defaults={"retention": 600})

    def write(self, name: str, *parts: str) -> None:
        (self.folder / name).write_text("".join(parts))

    @contextmanager
    def run(self, *words: str) -> Iterator[psutil.Popen]:
        """Kill it, and what it has started, at the end of the block."""
        more = environment(URL=self.url, NAMESPACE=self.namespace)
        with (self.folder / "log").open("ab") as log:
            process = psutil.Popen(
                [sys.executable, *words],
                cwd=self.folder, env=more, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        with ExitStack() as stack:
            stack.callback(process.wait)
            try:
                yield process
            finally:
                if process.is_running():
                    for one in [*process.children(recursive=True), process]:
                        one.kill()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def result(self, name: str) -> object:
        with self.app.sync() as client:
            return client.enqueue(name).result(WITHIN_S)

    def hang(self) -> psutil.Process:
        """The process that runs the handler which hangs."""
        hangs = self.folder / "hangs"
        hangs.unlink(missing_ok=True)
        with self.app.sync() as client:
            client.enqueue("hang")
        wait_until(lambda: hangs.exists() and hangs.read_text(), "the handler runs")
        return psutil.Process(json.loads(hangs.read_text()))


@pytest.fixture
def program(server: Server, namespace: str, tmp_path: Path) -> Program:
    return Program(server, namespace, tmp_path)


def test_handlers_of_a_script_are_found_under_the_names_they_have_in_it(program: Program) -> None:
    """``python shop.py``: the module is ``__main__`` in the worker, and imported again in the child."""
    program.write("shop.py", PROGRAM, GUARDED)
    with program.run("shop.py") as worker:
        assert program.result("__main__.pid") in {child.pid for child in worker.children()}
        assert isinstance(program.result("nested"), str)


def test_handlers_of_a_module_that_is_run_are_found(program: Program) -> None:
    """``python -m shop``."""
    program.write("shop.py", PROGRAM, GUARDED)
    with program.run("-m", "shop") as worker:
        assert program.result("__main__.pid") in {child.pid for child in worker.children()}


def test_handlers_in_other_modules_than_the_apps_are_found(program: Program) -> None:
    """``streamq worker shop:app``, with a handler that ``shop`` imports and registers itself."""
    program.write("helpers.py", "import os\n\ndef plain_pid() -> int:\n    return os.getpid()\n")
    program.write(
        "shop.py", "from helpers import plain_pid\n", PROGRAM,
        "app.task(name='plain', isolate=True)(plain_pid)\n",
    )  # fmt: skip
    with program.run("-m", "streamq", "worker", "shop:app") as worker:
        assert program.result("plain") in {child.pid for child in worker.children()}
        assert program.result("shop.pid") in {child.pid for child in worker.children()}


@pytest.mark.parametrize("unguarded", UNGUARDED)
def test_a_script_that_starts_its_worker_when_imported_is_told_of_the_guard(
    program: Program, unguarded: str
) -> None:
    program.write("shop.py", PROGRAM, unguarded)
    with (
        program.run("shop.py"),
        pytest.raises(TaskFailed, match=r"keep .* under 'if __name__ == .__main__.:'"),
    ):
        program.result("__main__.pid")


def test_no_child_outlives_a_worker_that_is_killed(program: Program) -> None:
    """F1: neither the one that runs a handler nor the one that waits for work."""
    program.write("shop.py", PROGRAM)
    with program.run("-m", "streamq", "worker", "shop:app") as worker:
        program.result("shop.pid")
        running = program.hang()
        children = worker.children(recursive=True)
        assert running in children
        assert len(children) >= 2
        worker.kill()
        gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert len(gone) == len(children)


def test_no_child_outlives_a_worker_that_stops(program: Program) -> None:
    """A130."""
    program.write("shop.py", PROGRAM)
    with program.run("-m", "streamq", "worker", "shop:app", "--grace", "0.1") as worker:
        program.hang()
        children = worker.children(recursive=True)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WITHIN_S) == 0
    assert all(not child.is_running() for child in children)


def test_a_child_process_knows_its_worker_is_gone_without_help_of_the_kernel(program: Program) -> None:
    """Where no system call ties it to its parent: it sees the end of its socket."""
    program.write("sitecustomize.py", "import ctypes\ndel ctypes.CDLL\n")
    program.write("shop.py", PROGRAM)
    path = os.environ.get("PYTHONPATH", "")
    words = ["-m", "streamq", "worker", "shop:app"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(program.folder), path])))
        with program.run(*words) as worker:
            running = program.hang()
            children = worker.children(recursive=True)
            worker.kill()
            _, alive = psutil.wait_procs(children, timeout=20)
    assert running in children
    assert not alive
