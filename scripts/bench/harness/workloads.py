"""What is measured: the catalogue of workloads, in the order they run and are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["produce", "drain", "nap", "paced", "idle", "memory"]

CONCURRENCY = 100
IDEAL_NAPS_A_SECOND = 2000.0


@dataclass(frozen=True)
class Workload:
    """One row of the catalogue.

    ``pace`` says which of a peer's paces sizes it; 0 ``fixed_tasks`` means "by pace". ``with_aof`` marks the
    ones worth repeating with an append-only file.
    """

    name: str
    title: str
    kind: Kind
    pace: str = "one"
    fixed_tasks: int = 0
    processes: int = 1
    task: str = "noop"
    with_aof: bool = False


CATALOGUE = (
    Workload("enqueue-one", "Enqueue one by one, async client", "produce", with_aof=True),
    Workload("enqueue-one-sync", "Enqueue one by one, blocking client", "produce", with_aof=True),
    Workload("enqueue-bulk", "Enqueue in batches of 100", "produce", pace="bulk", with_aof=True),
    Workload("enqueue-many", "Enqueue everything in one call", "produce", pace="bulk"),
    Workload("enqueue-100", "100 coroutines (goroutines) enqueueing one at a time", "produce", pace="bulk"),
    Workload("drain-1", "Drain, one worker process, no-op", "drain", pace="drain", with_aof=True),
    Workload(
        "drain-2", "Drain, two worker processes, no-op", "drain", pace="drain", processes=2, with_aof=True
    ),
    Workload(
        "drain-yield",
        "Drain, one worker process, handlers that await once",
        "drain",
        "drain",
        task="yield_once",
    ),
    Workload("io-100", "50 ms sleeps at concurrency 100 (ideal: 2,000/s)", "nap", pace="nap", task="nap"),
    Workload(
        "pickup", "Pickup on an idle worker, from the enqueue call", "paced", fixed_tasks=300, task="stamp"
    ),
    Workload(
        "lateness", "Start of a task due in 200 ms, after its time", "paced", fixed_tasks=300, task="stamp"
    ),
    Workload("idle", "An idle worker", "idle"),
    Workload("memory-ready", "Memory of a ready task", "memory", fixed_tasks=20_000),
    Workload("memory-scheduled", "Memory of a scheduled task", "memory", fixed_tasks=20_000),
    Workload("floor-xadd-sync", "Floor: XADD pipelined by 100, redis-py", "produce", pace="bulk"),
    Workload("floor-xadd-async", "Floor: XADD pipelined by 100, redis-py asyncio", "produce", pace="bulk"),
    Workload("floor-read", "Floor: XREADGROUP 100, XACK, XDEL, redis-py", "produce", pace="bulk"),
    Workload(
        "floor-read-async", "Floor: XREADGROUP 100, XACK, XDEL, redis-py asyncio", "produce", pace="bulk"
    ),
)


def pick_workloads(names: Sequence[str]) -> list[Workload]:
    """The named workloads in catalogue order; all of them when ``names`` is empty."""
    known = [workload.name for workload in CATALOGUE]
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"unknown workload {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return [workload for workload in CATALOGUE if not names or workload.name in names]
