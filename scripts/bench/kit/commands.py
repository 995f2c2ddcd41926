"""The command line that every adapter speaks, and the timed loops behind it.

    adapter enqueue-one N            one awaited call after another (async client) adapter enqueue-one-sync N
    the same with the blocking client adapter enqueue-bulk N           the peer's best bulk path, BATCH tasks
    a call adapter enqueue-100 N            COROUTINES coroutines (or threads, goroutines), each enqueueing
    one at a time adapter preload N TASK           N tasks, not timed: for a worker that starts later, or to
    weigh them adapter preload-scheduled N TASK the same, due in an hour adapter pickup N / lateness N    one
    ``stamp`` task every INTERVAL_S, due now / in DELAY_S adapter worker PROCESSES CONCURRENCY WORKLOAD

Measured commands print ``ready``, wait for a line on stdin, work, and print one JSON line with the figures.
Between the two the harness reads Redis's counters, so start-up and connecting count for nobody.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from kit.handlers import TEXT
from kit.timing import Clock, Timed

BATCH = 100
COROUTINES = 100
INTERVAL_S = 0.02
DELAY_S = 0.2
FAR_S = 3600.0
WARM_UP = 20

Item = tuple[int, str]
Batch = list[Item]

T = TypeVar("T")


class AsyncProducer(Protocol):
    """What an async peer's adapter offers."""

    async def open(self) -> None: ...
    async def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None: ...
    async def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None: ...
    async def close(self) -> None: ...


class SyncProducer(Protocol):
    """What a blocking peer's adapter offers."""

    def open(self) -> None: ...
    def enqueue(self, task: str, number: int, text: str, delay_s: float = 0.0) -> None: ...
    def enqueue_batch(self, task: str, batch: Batch, delay_s: float = 0.0) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class WorkerOrder:
    """Which worker to start; ``workload`` is for peers whose best settings depend on it."""

    processes: int
    concurrency: int
    workload: str

    @property
    def waits(self) -> bool:
        """Whether the handlers wait rather than compute."""
        return self.workload == "io-100"


def redis_url() -> str:
    """The Redis of this run."""
    return os.environ["BENCH_REDIS_URL"]


def batches(count: int) -> Iterator[Batch]:
    """``count`` payloads in batches of BATCH."""
    for start in range(0, count, BATCH):
        yield [(number, TEXT) for number in range(start, min(start + BATCH, count))]


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where the environment has it: the peers that can use it get it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def run_tool(name: str, *words: object) -> NoReturn:
    """Become one of the environment's own programs: the way the peer's manual starts a worker."""
    program = str(Path(sys.executable).parent / name)
    os.execv(program, [program, *(str(word) for word in words)])


def spawn_workers(order: WorkerOrder) -> NoReturn:
    """For peers without a supervisor of their own: one child of this adapter per process."""
    command = [sys.executable, sys.argv[0], "worker", "1", str(order.concurrency), order.workload]
    children = [subprocess.Popen(command) for _ in range(order.processes)]
    sys.exit(max(child.wait() for child in children))


class _AsyncCommands:
    def __init__(self, make: Callable[[], AsyncProducer]) -> None:
        self._make = make

    def run(self, command: str, count: int, task: str) -> Timed | None:
        return run_loop(self._connected(command, count, task))

    async def _connected(self, command: str, count: int, task: str) -> Timed | None:
        producer = self._make()
        await producer.open()
        try:
            return await self._dispatch(producer, command, count, task)
        finally:
            await producer.close()

    async def _dispatch(self, producer: AsyncProducer, command: str, count: int, task: str) -> Timed | None:
        match command:
            case "enqueue-one":
                return await self._one_by_one(producer, count)
            case "enqueue-100":
                return await self._concurrently(producer, count)
            case "enqueue-bulk":
                return await self._in_bulk(producer, count)
            case "enqueue-many":
                return await self._in_one_call(producer, count)
            case "preload":
                await self._preload(producer, count, task, 0.0)
                return None
            case "preload-scheduled":
                await self._preload(producer, count, task, FAR_S)
                return None
            case "pickup":
                return await self._paced(producer, count, 0.0)
            case "lateness":
                return await self._paced(producer, count, DELAY_S)
        raise SystemExit(f"unknown command {command}")

    async def _one_by_one(self, producer: AsyncProducer, count: int) -> Timed:
        for number in range(WARM_UP):
            await producer.enqueue("noop", number, TEXT)
        calls_ns = []
        clock = Clock()
        for number in range(count):
            called = time.perf_counter_ns()
            await producer.enqueue("noop", number, TEXT)
            calls_ns.append(time.perf_counter_ns() - called)
        return clock.stop(count, calls_ns)

    async def _concurrently(self, producer: AsyncProducer, count: int) -> Timed:
        async def enqueue_some(some: int) -> None:
            for number in range(some):
                await producer.enqueue("noop", number, TEXT)

        each = max(1, count // COROUTINES)
        await asyncio.gather(*(enqueue_some(2) for _ in range(COROUTINES)))
        clock = Clock()
        await asyncio.gather(*(enqueue_some(each) for _ in range(COROUTINES)))
        return clock.stop(each * COROUTINES)

    async def _in_bulk(self, producer: AsyncProducer, count: int) -> Timed:
        await producer.enqueue_batch("noop", [(number, TEXT) for number in range(WARM_UP)])
        clock = Clock()
        for batch in batches(count):
            await producer.enqueue_batch("noop", batch)
        return clock.stop(count)

    async def _in_one_call(self, producer: AsyncProducer, count: int) -> Timed:
        await producer.enqueue_batch("noop", [(number, TEXT) for number in range(WARM_UP)])
        everything = [(number, TEXT) for number in range(count)]
        clock = Clock()
        await producer.enqueue_batch("noop", everything)
        return clock.stop(count)

    async def _preload(self, producer: AsyncProducer, count: int, task: str, delay_s: float) -> None:
        for batch in batches(count):
            await producer.enqueue_batch(task, batch, delay_s)

    async def _paced(self, producer: AsyncProducer, count: int, delay_s: float) -> Timed:
        await producer.enqueue("noop", 0, TEXT)
        clock = Clock()
        for _ in range(count):
            called = time.monotonic_ns()
            await producer.enqueue("stamp", called + int(delay_s * 1e9), TEXT, delay_s)
            await asyncio.sleep(max(0.0, INTERVAL_S - (time.monotonic_ns() - called) / 1e9))
        return clock.stop(count)


class _SyncCommands:
    def __init__(self, make: Callable[[], SyncProducer]) -> None:
        self._make = make

    def run(self, command: str, count: int, task: str) -> Timed | None:
        producer = self._make()
        producer.open()
        try:
            return self._dispatch(producer, command, count, task)
        finally:
            producer.close()

    def _dispatch(self, producer: SyncProducer, command: str, count: int, task: str) -> Timed | None:
        match command:
            case "enqueue-one-sync":
                return self._one_by_one(producer, count)
            case "enqueue-bulk":
                return self._in_bulk(producer, count)
            case "preload":
                self._preload(producer, count, task, 0.0)
                return None
            case "preload-scheduled":
                self._preload(producer, count, task, FAR_S)
                return None
            case "pickup":
                return self._paced(producer, count, 0.0)
            case "lateness":
                return self._paced(producer, count, DELAY_S)
        raise SystemExit(f"unknown command {command}")

    def _one_by_one(self, producer: SyncProducer, count: int) -> Timed:
        for number in range(WARM_UP):
            producer.enqueue("noop", number, TEXT)
        calls_ns = []
        clock = Clock()
        for number in range(count):
            called = time.perf_counter_ns()
            producer.enqueue("noop", number, TEXT)
            calls_ns.append(time.perf_counter_ns() - called)
        return clock.stop(count, calls_ns)

    def _in_bulk(self, producer: SyncProducer, count: int) -> Timed:
        producer.enqueue_batch("noop", [(number, TEXT) for number in range(WARM_UP)])
        clock = Clock()
        for batch in batches(count):
            producer.enqueue_batch("noop", batch)
        return clock.stop(count)

    def _preload(self, producer: SyncProducer, count: int, task: str, delay_s: float) -> None:
        for batch in batches(count):
            producer.enqueue_batch(task, batch, delay_s)

    def _paced(self, producer: SyncProducer, count: int, delay_s: float) -> Timed:
        producer.enqueue("noop", 0, TEXT)
        clock = Clock()
        for _ in range(count):
            called = time.monotonic_ns()
            producer.enqueue("stamp", called + int(delay_s * 1e9), TEXT, delay_s)
            time.sleep(max(0.0, INTERVAL_S - (time.monotonic_ns() - called) / 1e9))
        return clock.stop(count)


def main(
    *,
    worker: Callable[[WorkerOrder], None] | None = None,
    async_producer: Callable[[], AsyncProducer] | None = None,
    sync_producer: Callable[[], SyncProducer] | None = None,
    extra: dict[str, Callable[[int], Timed]] | None = None,
) -> None:
    """Run the command in ``sys.argv``. Given both producers, the blocking one does ``enqueue-one-sync``."""
    command, *rest = sys.argv[1:]
    if command == "worker" and worker is not None:
        processes, concurrency, workload = rest
        worker(WorkerOrder(int(processes), int(concurrency), workload))
        return
    count, task = int(rest[0]), rest[1] if len(rest) > 1 else "noop"
    if extra and command in extra:
        timed: Timed | None = extra[command](count)
    elif sync_producer and (command == "enqueue-one-sync" or async_producer is None):
        timed = _SyncCommands(sync_producer).run(command, count, task)
    elif async_producer:
        timed = _AsyncCommands(async_producer).run(command, count, task)
    else:
        raise SystemExit(f"unknown command {command}")
    if timed is not None:
        print(timed.as_json(), flush=True)
