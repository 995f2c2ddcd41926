"""One measurement: run one workload of one peer against the run's Redis, and return its figures.

Everything is watched from outside: Redis's INFO, /proc for the CPU of the peer's process tree, and the board
on which handlers count. While a drain runs, Redis hears nothing from the harness.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.children import Child, ChildFailed
from harness.environments import LOGS, Environment
from harness.peers import Peer
from harness.server import Counters, Server
from harness.workloads import CONCURRENCY, IDEAL_NAPS_A_SECOND, Workload
from kit.board import Board, Reading

Figures = dict[str, float]

_POLL_S = 0.002
_SETTLE_S = 0.1
_HEAD_START_S = 1.0
_READY_LIMIT_S = 60.0
_IDLE_SETTLE_S = 2.0
_REST_LIMIT_S = 5.0
_IDLE_WINDOW_S = 10.0
_FEWEST_TASKS, _MOST_TASKS = 200, 400_000
_HUNDRED = 100


@dataclass
class Measurement:
    """One peer, one workload, one repeat. ``seconds`` is how long a throughput workload should about take."""

    peer: Peer
    environment: Environment
    workload: Workload
    server: Server
    board: Board
    seconds: float
    limit_s: float
    tasks_wanted: int | None = None
    idle_window_s: float = _IDLE_WINDOW_S

    def run(self) -> Figures:
        """Measure. Raises ChildFailed when the peer ends, errs or takes longer than the limit."""
        self.server.flush()
        self.board.clear()
        (LOGS / self.log_name).unlink(missing_ok=True)
        return _BY_KIND[self.workload.kind](self)

    @property
    def tasks(self) -> int:
        """How many tasks, a multiple of 100: as told, as fixed, or sized by the peer's pace."""
        # While a second process starts, the first one works: what it may take then comes on top.
        seconds = self.seconds + (_HEAD_START_S if self.workload.processes > 1 else 0.0)
        wanted = self.tasks_wanted or self.workload.fixed_tasks or int(self._pace() * seconds)
        if self.workload.fixed_tasks:
            wanted = min(wanted, self.workload.fixed_tasks)
        bounded = min(max(wanted, _FEWEST_TASKS), _MOST_TASKS)
        return bounded // _HUNDRED * _HUNDRED

    @property
    def log_name(self) -> str:
        """The file under the logs that gets what the adapter says on standard error."""
        return f"{self.peer.name}.{self.workload.name}.log"

    def _pace(self) -> float:
        pace = self.peer.pace
        if self.workload.pace == "nap":
            return pace.get("nap", min(pace["drain"], IDEAL_NAPS_A_SECOND))
        return pace[self.workload.pace] * math.sqrt(self.workload.processes)

    @contextmanager
    def adapter(self, *words: object, talks: bool = True) -> Iterator[Child]:
        """The peer's adapter with these words, ended at the end."""
        child = Child(
            [*self.environment.command, *(str(word) for word in words)],
            environment=self.environment.variables(self.server.url, self.board.path),
            log=LOGS / self.log_name,
            cwd=self.environment.directory,
            talks=talks,
        )
        try:
            yield child
        finally:
            child.end()

    @contextmanager
    def worker(self) -> Iterator[Child]:
        """The peer's worker for this workload."""
        words = ("worker", self.workload.processes, CONCURRENCY, self.workload.name)
        with self.adapter(*words, talks=False) as child:
            yield child

    def preload(self, count: int, task: str, command: str = "preload") -> None:
        """Enqueue ``count`` tasks, unmeasured."""
        with self.adapter(command, count, task, talks=False) as child:
            child.wait(self.limit_s)

    def wait_for(self, worker: Child, enough: Callable[[Reading], bool]) -> Reading:
        """Watch the board until it is ``enough``."""
        deadline = time.monotonic() + self.limit_s
        while not enough(reading := self.board.read()):
            if not worker.running:
                raise ChildFailed(f"the worker ended: {worker.last_words()}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{reading.tasks} of {self.tasks} tasks after {self.limit_s:.0f} s")
            time.sleep(_POLL_S)
        return reading


def _produce(run: Measurement) -> Figures:
    with run.adapter(run.workload.name, run.tasks) as child:
        before = _ready(run, child)
        told = _told(run, child)
        used = run.server.counters().minus(before)
    tasks = told["tasks"]
    figures = {
        "tasks": tasks,
        "seconds": told["seconds"],
        "rate": tasks / told["seconds"],
        "client_us": told["client_cpu_s"] / tasks * 1e6,
        **_redis_figures(used, tasks),
    }
    figures |= {key: told[key] for key in ("p50_ms", "p99_ms") if key in told}
    return figures


def _drain(run: Measurement) -> Figures:
    """From the moment every worker process has run a task to the last task; start-up is left out for all."""
    run.preload(run.tasks, run.workload.task)
    with run.worker() as worker:
        opened = run.wait_for(
            worker, lambda seen: seen.processes >= run.workload.processes or seen.tasks >= run.tasks
        )
        before, cpu_before = run.server.counters(), worker.cpu_s()
        closed = run.wait_for(worker, lambda seen: seen.tasks >= run.tasks)
        time.sleep(_SETTLE_S)
        used, cpu_s = run.server.counters().minus(before), worker.cpu_s() - cpu_before
        extra = run.board.read().tasks - run.tasks
    tasks = closed.tasks - opened.tasks
    if tasks < run.tasks // 4:
        raise ChildFailed(f"over before {run.workload.processes} processes were up: too few tasks to measure")
    seconds = (closed.taken_ns - opened.taken_ns) / 1e9
    return {
        "tasks": tasks,
        "seconds": seconds,
        "rate": tasks / seconds,
        "client_us": cpu_s / tasks * 1e6,
        "extra_runs": extra,
        **_redis_figures(used, tasks),
    }


def _nap(run: Measurement) -> Figures:
    """From the first handler's start to the last one's end: the ideal is exactly tasks x 50 ms / 100."""
    run.preload(run.tasks, run.workload.task)
    with run.worker() as worker:
        opened = run.wait_for(worker, lambda seen: seen.tasks >= 1)
        before, cpu_before = run.server.counters(), worker.cpu_s()
        closed = run.wait_for(worker, lambda seen: seen.tasks >= run.tasks)
        time.sleep(_SETTLE_S)
        used, cpu_s = run.server.counters().minus(before), worker.cpu_s() - cpu_before
    seconds = (closed.taken_ns - closed.first_ns) / 1e9
    rate = closed.tasks / seconds
    # CPU is told for what came after the first look, so that starting up counts for nobody.
    later = max(1, closed.tasks - opened.tasks)
    return {
        "tasks": closed.tasks,
        "seconds": seconds,
        "rate": rate,
        "ideal_pct": rate / IDEAL_NAPS_A_SECOND * 100,
        "client_us": cpu_s / later * 1e6,
        **_redis_figures(used, later),
    }


def _paced(run: Measurement) -> Figures:
    """The worker has run one task and waits; then one ``stamp`` task every 20 ms."""
    with run.worker() as worker, run.adapter(run.workload.name, run.tasks) as producer:
        producer.hear(_READY_LIMIT_S)
        run.wait_for(worker, lambda seen: seen.tasks >= 1)
        producer.say("go")
        told = _heard(producer, run.limit_s)
        wanted = int(told["tasks"])
        run.wait_for(worker, lambda seen: seen.tasks >= wanted + 1)
        samples = sorted(run.board.samples_ns())
    return {
        "tasks": wanted,
        "p50_ms": _percentile(samples, 50) / 1e6,
        "p99_ms": _percentile(samples, 99) / 1e6,
        "earliest_ms": samples[0] / 1e6,
    }


def _idle(run: Measurement) -> Figures:
    """What a worker that has nothing to do asks of Redis and of its own machine."""
    with run.worker() as worker:
        run.preload(1, "noop")
        run.wait_for(worker, lambda seen: seen.tasks >= 1)
        time.sleep(_IDLE_SETTLE_S)
        cpu_before = worker.cpu_s()
        issued = run.server.count_issued(run.idle_window_s)
        cpu_s = worker.cpu_s() - cpu_before
    return {"commands_per_s": issued / run.idle_window_s, "cpu_pct": cpu_s / run.idle_window_s * 100}


def _memory(run: Measurement) -> Figures:
    """Growth of used_memory between two moments without clients; the first tasks pay for fixed keys."""
    command = "preload-scheduled" if run.workload.name == "memory-scheduled" else "preload"
    run.preload(_HUNDRED, "noop", command)
    before = _memory_at_rest(run)
    run.preload(run.tasks, "noop", command)
    return {"tasks": run.tasks, "bytes_per_task": (_memory_at_rest(run) - before) / run.tasks}


def _memory_at_rest(run: Measurement) -> int:
    deadline = time.monotonic() + _REST_LIMIT_S
    while int(run.server.wire.info("clients")["connected_clients"]) > 1 and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return run.server.counters().used_memory


_BY_KIND: dict[str, Callable[[Measurement], Figures]] = {
    "produce": _produce,
    "drain": _drain,
    "nap": _nap,
    "paced": _paced,
    "idle": _idle,
    "memory": _memory,
}


def _ready(run: Measurement, child: Child) -> Counters:
    child.hear(_READY_LIMIT_S)
    return run.server.counters()


def _told(run: Measurement, child: Child) -> Figures:
    child.say("go")
    return _heard(child, run.limit_s)


def _heard(child: Child, limit_s: float) -> Figures:
    figures: Figures = json.loads(child.hear(limit_s))
    return figures


def _redis_figures(used: Counters, tasks: float) -> Figures:
    return {
        "redis_us": used.cpu_s / tasks * 1e6,
        "redis_commands": used.commands / tasks,
        "redis_reads": used.reads / tasks,
    }


def _percentile(ordered: list[int], percent: int) -> int:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
