"""What ``compare`` prints at the end: circumstances, every table, the targets."""

from __future__ import annotations

from harness.results import Run, workloads_of
from harness.table import as_text, significant, table
from harness.targets import judge
from harness.workloads import CATALOGUE

_PERSISTENCE_TITLES = {"none": "without persistence", "aof": "append-only file, fsync every second"}


def show(run: Run) -> None:
    """Print it all."""
    _show_circumstances(run)
    for persistence in _PERSISTENCE_TITLES:
        _show_tables(run, persistence)
    _show_targets(run)


def _show_circumstances(run: Run) -> None:
    machine = run.machine
    print(f"\n{run.started}  Redis {run.redis}  Python {run.settings['python']}")
    print(f"{machine['cpus']} CPUs, {machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}")
    for name, versions in run.versions.items():
        print(f"  {run.titles[name]}: " + ", ".join(f"{key} {value}" for key, value in versions.items()))
    for name, reason in run.skipped.items():
        print(f"  {run.titles[name]}: left out: {reason}")


def _show_tables(run: Run, persistence: str) -> None:
    names = workloads_of(run, persistence)
    for workload in CATALOGUE:
        if workload.name in names:
            headings, rows, remarks = table(run, workload, persistence)
            print(f"\n{workload.title} ({_PERSISTENCE_TITLES[persistence]})\n{as_text(headings, rows)}")
            print("".join(f"  ! {remark}\n" for remark in remarks), end="")


def _show_targets(run: Run) -> None:
    verdicts = judge(run)
    if verdicts:
        rows = [[v.title, v.wanted, significant(v.found), "met" if v.met else "MISSED"] for v in verdicts]
        print(f"\n{as_text(['Targets', 'wanted', 'found', ''], rows)}")
