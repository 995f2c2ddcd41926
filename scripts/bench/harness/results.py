"""The figures of a run: medians over repeats, and the JSON file they are kept in."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass
class Result:
    """One peer, one workload, one persistence: every repeat, and their medians."""

    peer: str
    workload: str
    persistence: str
    repeats: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The median of each figure over the repeats."""
        names = self.repeats[0] if self.repeats else {}
        return {name: statistics.median(repeat[name] for repeat in self.repeats) for name in names}

    @property
    def spread_pct(self) -> float | None:
        """How far the rates of the repeats lie apart: (highest - lowest) / median."""
        rates = [repeat["rate"] for repeat in self.repeats if "rate" in repeat]
        return (max(rates) - min(rates)) / statistics.median(rates) * 100 if len(rates) > 1 else None


@dataclass
class Run:
    """Everything one run of ``compare`` found."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    redis: str = ""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    results: dict[tuple[str, str, str], Result] = field(default_factory=dict)
    started: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    def result(self, peer: str, workload: str, persistence: str) -> Result:
        """The result to add to."""
        key = (peer, workload, persistence)
        return self.results.setdefault(key, Result(*key))

    def find(self, peer: str, workload: str, persistence: str) -> Result | None:
        """The result, if it was measured."""
        return self.results.get((peer, workload, persistence))

    def figure(self, peer: str, workload: str, persistence: str, name: str) -> float | None:
        """One median, if it was measured."""
        result = self.find(peer, workload, persistence)
        return result.figures.get(name) if result else None

    def save(self, path: Path) -> None:
        """Write it all as JSON."""
        told = {
            "format": FORMAT,
            "started": self.started,
            "machine": self.machine,
            "settings": self.settings,
            "redis": self.redis,
            "versions": self.versions,
            "titles": self.titles,
            "skipped": self.skipped,
            "results": [asdict(result) | {"median": result.figures} for result in self.results.values()],
        }
        path.write_text(json.dumps(told, indent=1) + "\n")


def load_run(path: Path) -> Run:
    """Read what ``save`` wrote."""
    told = json.loads(path.read_text())
    if told["format"] != FORMAT:
        raise SystemExit(f"{path}: format {told['format']}, this reads {FORMAT}")
    run = Run(
        **{
            key: told[key]
            for key in ("machine", "settings", "redis", "versions", "titles", "skipped", "started")
        }
    )
    for row in told["results"]:
        result = Result(row["peer"], row["workload"], row["persistence"], row["repeats"], row["error"])
        run.results[(result.peer, result.workload, result.persistence)] = result
    return run


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, without saying whose machine it is."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _first_field(Path("/proc/cpuinfo"), "model name"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def workloads_of(run: Run, persistence: str) -> list[str]:
    """Names of the workloads measured under this persistence, in the order first seen."""
    return list(dict.fromkeys(key[1] for key in run.results if key[2] == persistence))


def _first_field(path: Path, name: str) -> str:
    lines: Iterable[str] = path.read_text().splitlines() if path.exists() else ()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")
