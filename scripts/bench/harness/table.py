"""How figures are shown: the columns of each workload, as plain text or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.peers import ORDER
from harness.results import Result, Run
from harness.workloads import Workload

YARDSTICK = "asynq"


@dataclass(frozen=True)
class Column:
    """One figure: its heading and how it is written."""

    figure: str
    heading: str
    write: Callable[[float], str]


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def significant(value: float) -> str:
    """Three figures or so."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


_RATE = Column("rate", "tasks/s", _whole)
_CLIENT = Column("client_us", "client us", significant)
_WORKER = Column("client_us", "worker us", significant)
_REDIS = Column("redis_us", "Redis us", significant)
_COMMANDS = Column("redis_commands", "commands/task", significant)
_P50, _P99 = Column("p50_ms", "p50 ms", significant), Column("p99_ms", "p99 ms", significant)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "produce": (_RATE, _CLIENT, _REDIS, _COMMANDS, _P50, _P99),
    "drain": (_RATE, _WORKER, _REDIS, _COMMANDS),
    "nap": (_RATE, Column("ideal_pct", "% of ideal", significant), _WORKER, _REDIS),
    "paced": (_P50, _P99, Column("earliest_ms", "earliest ms", significant)),
    "idle": (
        Column("commands_per_s", "commands/s", significant),
        Column("cpu_pct", "worker CPU %", significant),
    ),
    "memory": (Column("bytes_per_task", "bytes/task", _whole),),
}
# The figure whose ratio to the yardstick is shown.
_COMPARED = {"produce": "rate", "drain": "rate", "nap": "rate", "paced": "p50_ms", "memory": "bytes_per_task"}

Row = list[str]


def table(run: Run, workload: Workload, persistence: str) -> tuple[Row, list[Row], list[str]]:
    """Headings, rows and remarks of one workload: peers in their order, failures as remarks."""
    results = [found for peer in ORDER if (found := run.find(peer, workload.name, persistence))]
    measured = [result for result in results if result.repeats]
    columns = [
        column for column in _COLUMNS[workload.kind] if any(column.figure in r.figures for r in measured)
    ]
    compared = _COMPARED.get(workload.kind)
    yardstick = run.figure(YARDSTICK, workload.name, persistence, compared) if compared else None
    headings = ["", *(column.heading for column in columns)]
    if yardstick:
        headings.append("x Asynq")
    rows = [_row(run, result, columns, compared, yardstick) for result in measured]
    return headings, rows, _remarks(run, results)


def _row(
    run: Run, result: Result, columns: Sequence[Column], compared: str | None, yardstick: float | None
) -> Row:
    figures = result.figures
    row = [run.titles.get(result.peer, result.peer)]
    row += [column.write(figures[column.figure]) if column.figure in figures else "-" for column in columns]
    if yardstick and compared:
        row.append(significant(figures[compared] / yardstick))
    return row


def _remarks(run: Run, results: Sequence[Result]) -> list[str]:
    remarks = []
    for result in results:
        title = run.titles.get(result.peer, result.peer)
        if result.error:
            remarks.append(f"{title}: {result.error}")
        if extra := result.figures.get("extra_runs"):
            remarks.append(f"{title}: {extra:.0f} tasks ran more than once")
        if (spread := result.spread_pct) and spread > 25:
            remarks.append(f"{title}: repeats lie {spread:.0f} % apart")
    return remarks


def as_text(headings: Row, rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    return "\n".join(_aligned(row, widths) for row in (headings, *rows))


def as_markdown(headings: Row, rows: Sequence[Row]) -> str:
    """A Markdown table, figures to the right."""
    lines = [headings, ["---", *("--:" for _ in headings[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _aligned(row: Row, widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if not index else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join((first, *rest)).rstrip()
