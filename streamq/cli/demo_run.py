"""The demo from its beginning to its end: server, workers, tasks, the kill, the comparison."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from streamq.app import StreamQ
from streamq.broker import embedded
from streamq.cli import demo_tasks
from streamq.cli.demo_display import Display
from streamq.cli.supervising import Undertaker, start_child
from streamq.cli.worker import child_words
from streamq.client.handles import TaskHandle
from streamq.errors import StreamQError, Unavailable
from streamq.model.call import TaskCall
from streamq.worker.supervisor import Supervisor
from streamq.worker.worker import new_worker_id

if TYPE_CHECKING:
    from streamq.cli.demo_tasks import Answer, Summary

WORKERS = 2
CONCURRENCY = 4
"""In each process. The work is CPU-bound: more at once would not be faster."""
PROBES = 200
DELAYED_EVERY, FAILING_EVERY = 20, 25
LONGEST_DELAY_S = 3.0
START_WITHIN_S = 30.0
WORK_WITHIN_S = 110.0
"""Whatever has no result by then counts as lost: the demo always ends."""
_LINGER_S = 0.3
_PROBLEMS_SHOWN = 5


@dataclass(slots=True)
class Tally:
    """What the tasks came to."""

    total: int
    results: dict[str, Summary] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    retried: int = 0
    recovered: int = 0

    @property
    def ended(self) -> int:
        return len(self.results) + len(self.failures)

    @property
    def lost(self) -> int:
        """Tasks without a result, whatever the reason."""
        return self.total - len(self.results)

    def note(self, path: str, answer: Answer) -> None:
        summary, attempt, crashes = answer
        assert isinstance(summary, list)  # noqa: S101  # the task's own shape
        self.results[path] = summary
        self.retried += attempt != 1
        self.recovered += crashes != 0


def run(limit: int | None) -> bool:
    """The whole demo. Returns whether every task came to the right result. Raises StreamQError."""
    files = spread(demo_tasks.library_files(), limit)
    folder = Path(tempfile.mkdtemp(prefix="streamq-demo-"))
    try:
        display = Display()
        demo = Demo(files, folder, display)
        with display:
            asyncio.run(demo.run())
        display.figures(demo.figures())
        for problem in demo.problems()[:_PROBLEMS_SHOWN]:
            display.say(problem)
        return not demo.problems()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spread(files: list[str], limit: int | None) -> list[str]:
    """So many of them, evenly from the whole list."""
    if limit is None or limit >= len(files):
        return files
    return [files[place * len(files) // limit] for place in range(limit)]


class Demo:
    """One run. ``folder`` gets the server's data and the workers' log."""

    def __init__(self, files: list[str], folder: Path, display: Display) -> None:
        self._files = files
        self._folder = folder
        self._display = display
        self._tally = Tally(len(files))
        self._latencies_ms: list[float] = []
        self._elapsed_s = 0.0
        self._wrong: list[str] = []

    async def run(self) -> None:
        """Do everything and show how it goes. Raises StreamQError when the demo cannot be done."""
        logging.getLogger("streamq").addHandler(logging.FileHandler(self._folder / "demo.log"))
        logging.getLogger("streamq").propagate = False
        data = self._folder / "data"
        url = f"embedded://{quote(str(data))}"
        os.environ[demo_tasks.URL_VARIABLE] = url  # for the workers, which import the app by themselves
        app = StreamQ(url, namespace="demo")
        # Started here, so that it ends as soon as the demo does.
        lease = await asyncio.to_thread(embedded.start, str(data), linger_s=_LINGER_S)
        try:
            self._display.say(f"server: {embedded.find_program().name}, behind {url}")
            async with app, self._workers(app) as supervisor:
                self._latencies_ms = await self._probe(app)
                self._elapsed_s = await self._work(app, supervisor)
        finally:
            lease.release()
        self._wrong = await self._compare()

    @asynccontextmanager
    async def _workers(self, app: StreamQ) -> AsyncIterator[Supervisor]:
        """Two worker processes under a supervisor, for the length of the block."""
        settings: dict[str, Any] = {"queues": {demo_tasks.QUEUE: 1}, "concurrency": CONCURRENCY}
        config = app.worker(**settings).config
        words = child_words("streamq.cli.demo_tasks:app", config, "warning")
        undertaker = Undertaker(app, config)
        with (self._folder / "workers.log").open("ab") as log:
            supervisor = Supervisor(
                WORKERS,
                lambda worker_id: start_child(words, worker_id, output=log.fileno()),
                undertaker.recover,
                new_id=new_worker_id,
                stop_within_s=10.0,
            )
            running = asyncio.create_task(supervisor.run(), name="streamq-supervisor")
            try:
                await self._until_ready(app)
                self._display.say(f"workers: {_names(supervisor.children)}")
                yield supervisor
            finally:
                supervisor.stop()
                supervisor.stop()
                await running
                await undertaker.aclose()

    async def _until_ready(self, app: StreamQ) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        async with app.inspector() as inspector:
            while len(await inspector.workers()) < WORKERS:
                if time.monotonic() > deadline:
                    said = (self._folder / "workers.log").read_text(errors="replace").strip()
                    raise Unavailable(f"the workers did not start; their last words: {said[-500:] or 'none'}")
                await asyncio.sleep(0.02)

    # Tasks

    async def _probe(self, app: StreamQ) -> list[float]:
        """Ms from before the enqueue to the handler's start, one task at a time on idle workers."""
        self._display.begin("pickup on idle workers", PROBES)
        latencies_ms = []
        for done in range(1, PROBES + 1):
            sent_s = time.time()
            handle = await app.enqueue(demo_tasks.pick_up.call())
            latencies_ms.append((await handle.result(timeout=START_WITHIN_S) - sent_s) * 1000)
            self._display.update(done)
        return latencies_ms

    async def _work(self, app: StreamQ, supervisor: Supervisor) -> float:
        """Enqueue all, kill one worker half-way, wait for every result. Returns seconds taken."""
        self._display.begin("standard library", self._tally.total)
        began_s = time.monotonic()
        handles = await app.enqueue_many(call_for(place, path) for place, path in enumerate(self._files))
        waiting = {
            asyncio.create_task(self._collect(path, handle))
            for path, handle in zip(self._files, handles, strict=True)
        }
        killed = False
        while waiting:
            left_s = WORK_WITHIN_S - (time.monotonic() - began_s)
            ended, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, min(left_s, 0.1)), return_when=asyncio.FIRST_COMPLETED
            )
            elapsed_s = time.monotonic() - began_s
            self._display.update(self._tally.ended, self._tally.ended / elapsed_s)
            for one in ended:
                one.result()
            if not killed and self._tally.ended * 2 >= self._tally.total:
                killed = self._kill_one(supervisor)
            if left_s <= 0:
                break
        for one in waiting:
            one.cancel()
        return time.monotonic() - began_s

    async def _collect(self, path: str, handle: TaskHandle[Answer]) -> None:
        try:
            self._tally.note(path, await handle.result(timeout=WORK_WITHIN_S))
        except StreamQError as error:
            self._tally.failures.append(f"{path}: {error}")

    def _kill_one(self, supervisor: Supervisor) -> bool:
        for worker_id, pid in supervisor.children.items():
            os.kill(pid, signal.SIGKILL)
            self._display.say(
                f"half-way: kill -9 of worker {worker_id} (process {pid}), which runs {CONCURRENCY} tasks"
            )
            return True
        return False

    # Comparing

    async def _compare(self) -> list[str]:
        """The files whose result differs from a direct computation."""
        self._display.begin("computing directly", len(self._files))
        wrong = []
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
            # Pages: a file is often less work than handing it over.
            pages = [self._files[start : start + 10] for start in range(0, len(self._files), 10)]
            done = 0
            answers = [loop.run_in_executor(pool, summarise_page, page) for page in pages]
            for page, answer in zip(pages, answers, strict=True):
                for path, summary in zip(page, await answer, strict=True):
                    if path in self._tally.results and self._tally.results[path] != summary:
                        wrong.append(path)
                done += len(page)
                self._display.update(done, done / (time.monotonic() - began_s))
        return wrong

    # Figures

    def figures(self) -> list[tuple[str, str, str]]:
        """Name, figure and remark."""
        tally, latencies_ms = self._tally, self._latencies_ms
        cuts = statistics.quantiles(latencies_ms, n=100)
        tokens = sum(max(0, int(summary[2])) for summary in tally.results.values())
        elapsed = f"{self._elapsed_s:.1f} s with {WORKERS} processes"
        return [
            ("tasks", f"{tally.total:,}", f"{tokens:,} tokens of Python counted"),
            ("tasks/s", f"{tally.total / self._elapsed_s:,.0f}", elapsed),
            ("pickup p50", f"{cuts[49]:.2f} ms", "from enqueue to the handler's start, idle workers"),
            ("pickup p99", f"{cuts[98]:.2f} ms", f"of {len(latencies_ms)}"),
            ("retried", f"{tally.retried:,}", "failed once on purpose"),
            ("recovered", f"{tally.recovered:,}", "ran on the killed worker, and again elsewhere"),
            ("wrong", f"{len(self._wrong):,}", "results that differ from the direct computation"),
            ("lost", f"{tally.lost:,}", ""),
        ]

    def problems(self) -> list[str]:
        """What must not be: one line each, empty when all is well."""
        found = [f"wrong result: {path}" for path in self._wrong]
        found += [f"failed: {failure}" for failure in self._tally.failures]
        if unfinished := self._tally.total - self._tally.ended:
            found.append(f"{unfinished} tasks had not ended after {self._elapsed_s:.0f} s")
        return found


def call_for(place: int, path: str) -> TaskCall[Answer]:
    """The task for a file: some start later, some fail at first."""
    if place % FAILING_EVERY == 1:
        return demo_tasks.summarise_at_second_try.call(path)
    if place % DELAYED_EVERY == 2:
        delay_s = LONGEST_DELAY_S * ((place // DELAYED_EVERY) % 10 + 1) / 10
        return demo_tasks.summarise.options(delay=delay_s).call(path)
    return demo_tasks.summarise.call(path)


def summarise_page(paths: list[str]) -> list[Summary]:
    """The direct computation of some files, in another process."""
    return [demo_tasks.summary_of(path) for path in paths]


def _names(children: dict[str, int]) -> str:
    return ", ".join(f"{worker_id} (process {pid})" for worker_id, pid in children.items())
