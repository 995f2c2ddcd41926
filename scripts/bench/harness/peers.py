"""Who is measured: one directory under ``peers/`` each, described by its ``peer.toml``.

title = "arq"
language = "python"                       # or "go"
packages = ["arq", "uvloop"]              # what pip installs; the first one's version is shown
workloads = ["enqueue-one", ...]          # what it can do; the rest shows as "-"
[pace]                                    # tasks a second, roughly: only sizes the workloads
one = 2600
bulk = 4100
drain = 1100
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent
CHECKOUT = BENCH.parent.parent
_PEERS = BENCH / "peers"

# StreamQ first, then the system it is measured against, then the field; the floor last.
ORDER = ("streamq", "asynq", "huey", "dramatiq", "taskiq", "saq", "arq", "streaq", "docket", "celery", "raw")


@dataclass(frozen=True)
class Peer:
    """One system under measurement, as its ``peer.toml`` tells it."""

    name: str
    title: str
    language: str
    packages: tuple[str, ...]
    workloads: frozenset[str]
    pace: dict[str, float]

    @property
    def directory(self) -> Path:
        """Where its adapter lies."""
        return _PEERS / self.name


def load_peers(names: Sequence[str]) -> list[Peer]:
    """The named peers in the usual order; all of them when ``names`` is empty."""
    unknown = set(names) - set(ORDER)
    if unknown:
        raise SystemExit(f"unknown peer {', '.join(sorted(unknown))}; known: {', '.join(ORDER)}")
    return [_load(name) for name in ORDER if not names or name in names]


def _load(name: str) -> Peer:
    with (_PEERS / name / "peer.toml").open("rb") as file:
        told: dict[str, Any] = tomllib.load(file)
    return Peer(
        name=name,
        title=told["title"],
        language=told["language"],
        packages=tuple(told.get("packages", ())),
        workloads=frozenset(told["workloads"]),
        pace=told["pace"],
    )
