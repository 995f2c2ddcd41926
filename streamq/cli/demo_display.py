"""What the demo shows: a live bar on a terminal, plain lines elsewhere, and the figures at the end."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_STEPS = 5
"""How many lines a phase gets where nothing can be drawn over."""


class Display:
    """Phases one after the other, each with a count that goes up; remarks in between."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._phase: TaskID | None = None
        self._name = ""
        self._total = 1
        self._shown = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def say(self, text: str) -> None:
        """A remark on a line of its own."""
        self._console.print(text, soft_wrap=True, markup=False)

    def begin(self, name: str, total: int) -> None:
        """Start the next phase."""
        self._name, self._total, self._shown = name, total, 0
        if self._console.is_terminal:
            self._phase = self._progress.add_task(name, total=total, speed="")
        else:
            self.say(f"{name} ...")

    def update(self, done: int, speed: float | None = None) -> None:
        """How far the phase is; ``speed`` in tasks per second."""
        rate = "" if speed is None else f"{speed:,.0f}/s"
        if self._phase is not None:
            self._progress.update(self._phase, completed=done, speed=rate)
        step = done * _PLAIN_STEPS // self._total
        if self._phase is None and step > self._shown:
            self._shown = step
            self.say(f"  {done:,} of {self._total:,}  {rate}".rstrip())

    def figures(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Name, figure and remark, one row each."""
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="left", style="bold")
        table.add_column(justify="right")
        table.add_column(justify="left", style="dim", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)
