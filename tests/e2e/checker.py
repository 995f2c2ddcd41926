"""Counts what went in and what came out, outside of Redis: Jepsen's "total queue" check.

Producers write down every attempt to enqueue and what came of it, handlers their start and end. A
record is one line and one ``write`` to a file opened for appending, so that kill -9 cannot tear it and
any number of processes may share the file. The verdict is taken after everything has been drained.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OUTCOMES = ("ok", "fail", "unknown")


class Record(NamedTuple):
    """One line. ``attempt`` and ``crashes`` are those of a start or an end; ``pid`` tells who wrote it."""

    kind: str
    task_id: str
    attempt: int
    crashes: int
    pid: int


class Journal:
    """The file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._pid = os.getpid()

    def close(self) -> None:
        os.close(self._file)

    def write(self, kind: str, *task_ids: str, attempt: int = 0, crashes: int = 0) -> None:
        """Add a record for each task, in one write."""
        lines = (f"{kind} {task_id} {attempt} {crashes} {self._pid}\n" for task_id in task_ids)
        os.write(self._file, "".join(lines).encode())

    def read(self) -> list[Record]:
        """Everything that was written so far, by whomever."""
        return [
            Record(kind, task_id, int(attempt), int(crashes), int(pid))
            for kind, task_id, attempt, crashes, pid in map(str.split, self.path.read_text().splitlines())
        ]

    def count(self, kind: str) -> int:
        """How many records of one kind there are; cheap enough to ask again and again."""
        return self.path.read_bytes().count(f"{kind} ".encode())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the records say once everything is drained."""

    lost: frozenset[str]
    """Acknowledged, and never ended."""
    unexpected: frozenset[str]
    """Started, although nobody tried to enqueue it."""
    recovered: frozenset[str]
    """Ended, although the producer could not know that it had been enqueued."""
    refused: frozenset[str]
    """Ended, although the producer was told that it was not enqueued."""
    duplicated: int
    """Ends beyond the first of each task."""
    most_attempts: int
    most_crashes: int

    def __str__(self) -> str:
        some = ", ".join(sorted(self.lost)[:5])
        return (
            f"lost={len(self.lost)} ({some}) unexpected={len(self.unexpected)} "
            f"recovered={len(self.recovered)} refused={len(self.refused)} duplicated={self.duplicated} "
            f"most_attempts={self.most_attempts} most_crashes={self.most_crashes}"
        )


def judge(records: list[Record]) -> Verdict:
    """Hold what came out against what went in."""

    def of(kind: str) -> frozenset[str]:
        return frozenset(record.task_id for record in records if record.kind == kind)

    ends = Counter(record.task_id for record in records if record.kind == "end")
    ended = frozenset(ends)
    return Verdict(
        lost=of("ok") - ended,
        unexpected=of("start") - of("attempt"),
        recovered=of("unknown") & ended,
        refused=of("fail") & ended,
        duplicated=sum(count - 1 for count in ends.values()),
        most_attempts=max((record.attempt for record in records), default=0),
        most_crashes=max((record.crashes for record in records), default=0),
    )
