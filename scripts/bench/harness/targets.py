"""What StreamQ promises of its speed, each promise as one ratio or figure of a run.

Ratios of medians within one run, since absolute figures drift from machine to machine and from hour to hour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.peers import BASELINE, VARIANTS
from harness.results import Run

_PLAIN = "none"
_OWN, _YARDSTICK, _FLOOR = "streamq", "asynq", "raw"


@dataclass(frozen=True)
class Target:
    """``find`` gives the figure, or None where the run did not measure it; ``bound`` is what was promised."""

    title: str
    bound: float
    find: Callable[[Run], float | None]
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether the value keeps the promise."""
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def wanted(self) -> str:
        """The promise in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"


@dataclass(frozen=True)
class Verdict:
    """One target beside what the run found."""

    title: str
    wanted: str
    found: float
    met: bool


def judge(run: Run) -> list[Verdict]:
    """Every target the run has figures for."""
    verdicts = []
    for target in _targets(run):
        found = target.find(run)
        if found is not None:
            verdicts.append(Verdict(target.title, target.wanted, found, target.met(found)))
    return verdicts


def _targets(run: Run) -> list[Target]:
    eager = tuple(map(int, str(run.settings["python"]).split(".")[:2])) >= (3, 12)
    drain, bulk, one, sync = "drain-1", "enqueue-bulk", "enqueue-one", "enqueue-one-sync"
    return [
        Target("drain, one process: x Asynq", 6 if eager else 2.5, _against(drain, _YARDSTICK)),
        Target("drain, one process: x the best Python peer", 8, _against_best_python(drain)),
        Target(
            "drain: Redis CPU a task, x Asynq", 0.2, _against(drain, _YARDSTICK, "redis_us"), at_most=True
        ),
        Target("drain: commands a task", 0.1, _own(drain, "redis_commands"), at_most=True),
        Target("drain of handlers that await once: x Asynq", 2, _against("drain-yield", _YARDSTICK)),
        Target("50 ms sleeps at concurrency 100: % of ideal", 97, _own("io-100", "ideal_pct")),
        Target("batches of 100: x Asynq's best bulk path", 1.2, _against_best_bulk_of_yardstick),
        Target("batches of 100: x the best Python peer", 7, _against_best_python(bulk)),
        Target(
            "batches of 100: x raw XADD by 100, blocking",
            1.5,
            _against(bulk, _FLOOR, other="floor-xadd-sync"),
        ),
        Target(
            "batches of 100: x raw XADD by 100, asyncio",
            1.5,
            _against(bulk, _FLOOR, other="floor-xadd-async"),
        ),
        Target(
            "one enqueue_many: x raw XADD by 100, blocking",
            1.5,
            _against("enqueue-many", _FLOOR, other="floor-xadd-sync"),
        ),
        Target("batches of 100: socket reads of Redis a batch", 1.2, _reads_a_batch, at_most=True),
        Target("100 coroutines: x one coroutine", 5, _against("enqueue-100", _OWN, other=one)),
        Target("one by one, blocking: x Asynq", 0.8, _against(sync, _YARDSTICK)),
        Target("one by one, blocking: x the best Python peer", 1, _against_best_python(sync)),
        Target("one by one, async: x the best async Python peer", 2, _against_best_python(one)),
        Target("pickup on an idle worker: p50 ms", 1, _own("pickup", "p50_ms"), at_most=True),
        Target("pickup on an idle worker: p99 ms", 5, _own("pickup", "p99_ms"), at_most=True),
        Target("lateness of a scheduled task: p99 ms", 50, _own("lateness", "p99_ms"), at_most=True),
        Target("an idle worker: commands/s", 3, _own("idle", "commands_per_s"), at_most=True),
        Target("drain: x the baseline", 0.95, _against(drain, BASELINE)),
        Target("batches of 100: x the baseline", 0.95, _against(bulk, BASELINE)),
        Target("one enqueue_many: x the baseline", 0.95, _against("enqueue-many", BASELINE)),
        Target("drain of unique tasks: x plain ones", 0.7, _of_unique(drain)),
        Target("batches of 100 unique tasks: x plain ones", 0.7, _of_unique(bulk)),
        Target("one enqueue_many of unique tasks: x plain ones", 0.7, _of_unique("enqueue-many")),
        Target("bytes a ready task", 350, _own("memory-ready", "bytes_per_task"), at_most=True),
        Target("bytes a scheduled task", 450, _own("memory-scheduled", "bytes_per_task"), at_most=True),
    ]


def _own(workload: str, figure: str) -> Callable[[Run], float | None]:
    return lambda run: run.figure(_OWN, workload, _PLAIN, figure)


def _against(
    workload: str, peer: str, figure: str = "rate", other: str | None = None
) -> Callable[[Run], float | None]:
    return lambda run: _ratio(
        run.figure(_OWN, workload, _PLAIN, figure), run.figure(peer, other or workload, _PLAIN, figure)
    )


def _of_unique(workload: str) -> Callable[[Run], float | None]:
    return lambda run: _ratio(
        run.figure("streamq-unique", workload, _PLAIN, "rate"), run.figure(_OWN, workload, _PLAIN, "rate")
    )


def _against_best_python(workload: str) -> Callable[[Run], float | None]:
    def find(run: Run) -> float | None:
        names = [name for name in run.titles if name not in {_OWN, _YARDSTICK, _FLOOR, *VARIANTS}]
        return _ratio(run.figure(_OWN, workload, _PLAIN, "rate"), _best(run, names, [workload]))

    return find


def _against_best_bulk_of_yardstick(run: Run) -> float | None:
    best = _best(run, [_YARDSTICK], ["enqueue-bulk", "enqueue-100"])
    return _ratio(run.figure(_OWN, "enqueue-bulk", _PLAIN, "rate"), best)


def _reads_a_batch(run: Run) -> float | None:
    reads = run.figure(_OWN, "enqueue-bulk", _PLAIN, "redis_reads")
    return None if reads is None else reads * 100


def _best(run: Run, names: list[str], workloads: list[str]) -> float | None:
    rates = [run.figure(name, workload, _PLAIN, "rate") for name in names for workload in workloads]
    return max((rate for rate in rates if rate), default=None)


def _ratio(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
