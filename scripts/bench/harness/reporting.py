"""``scripts/bench/report``: what ``compare --json`` wrote, as Markdown. Every row, weak ones included."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from harness.results import Run, load_run, workloads_of
from harness.table import as_markdown, significant, table
from harness.targets import judge
from harness.workloads import CATALOGUE

_PERSISTENCE_TITLES = {"none": "Without persistence", "aof": "With an append-only file, fsync every second"}


def main() -> int:
    """Print one section per file."""
    parser = argparse.ArgumentParser(
        prog="report", description="Figures of scripts/bench/compare as Markdown."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what compare --json wrote")
    for path in parser.parse_args().files:
        print("\n".join(section(load_run(path))))
    return 0


def section(run: Run) -> Iterator[str]:
    """One run: where and with what, the targets, then every table."""
    yield f"## Python {run.settings['python']}, {run.started[:10]}\n"
    yield from _circumstances(run)
    yield from _targets(run)
    for persistence, title in _PERSISTENCE_TITLES.items():
        names = workloads_of(run, persistence)
        if not names:
            continue
        yield f"### {title}\n"
        for workload in CATALOGUE:
            if workload.name in names:
                headings, rows, remarks = table(run, workload, persistence)
                yield f"**{workload.title}**\n"
                if rows:
                    yield as_markdown(headings, rows) + "\n"
                if remarks:
                    yield "\n".join(f"- {remark}" for remark in remarks) + "\n"


def _circumstances(run: Run) -> Iterator[str]:
    machine, settings = run.machine, run.settings
    look = "; a quick look, not a result" if settings["quick"] else ""
    where = (
        f"{machine['cpus']} CPUs ({machine['processor']}), {machine['memory_gib']} GiB, {machine['system']}"
    )
    how = f"medians of {settings['repeat']}; workloads of about {settings['seconds']:g} s{look}"
    yield f"{where}; Redis {run.redis} on loopback; {how}.\n"
    yield "\n".join(f"- {run.titles[name]}: {_told(found)}" for name, found in run.versions.items()) + "\n"
    for name, reason in run.skipped.items():
        yield f"- {run.titles[name]} was left out: {reason}\n"


def _told(versions: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in versions.items() if key != "python")


def _targets(run: Run) -> Iterator[str]:
    verdicts = judge(run)
    if verdicts:
        yield "### Targets\n"
        yield (
            as_markdown(
                ["", "wanted", "found", ""],
                [
                    [v.title, v.wanted, significant(v.found), "met" if v.met else "**missed**"]
                    for v in verdicts
                ],
            )
            + "\n"
        )
