"""What a measured loop took: wall time, this process's CPU time, and single calls where they matter."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Timed:
    """What a measured loop produced."""

    tasks: int
    seconds: float
    client_cpu_s: float
    calls_ns: Sequence[int] = ()

    def as_json(self) -> str:
        figures: dict[str, float] = {
            "tasks": self.tasks,
            "seconds": self.seconds,
            "client_cpu_s": self.client_cpu_s,
        }
        if self.calls_ns:
            ordered = sorted(self.calls_ns)
            figures["p50_ms"] = ordered[len(ordered) // 2] / 1e6
            figures["p99_ms"] = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e6
        return json.dumps(figures)


class Clock:
    """Wall and CPU time of this process since ``wait_for_go``."""

    def __init__(self) -> None:
        wait_for_go()
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, tasks: int, calls_ns: Sequence[int] = ()) -> Timed:
        return Timed(tasks, time.perf_counter() - self._started, time.process_time() - self._cpu, calls_ns)


def wait_for_go() -> None:
    """Tell the harness that everything is connected and warm; go on when it says so."""
    print("ready", flush=True)
    sys.stdin.readline()
