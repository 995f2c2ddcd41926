"""Who is measured: one directory under ``peers/`` each, described by its ``peer.toml``.

title = "arq"
language = "python"                       # or "go"
adapter = "arq"                           # the peer whose adapter it uses; its own unless given
packages = ["arq", "uvloop"]              # what pip installs; the first one's version is shown
workloads = ["enqueue-one", ...]          # what it can do; the rest shows as "-"
[pace]                                    # tasks a second, roughly: only sizes the workloads
one = 2600
bulk = 4100
drain = 1100
[variables]                               # of the environment of its adapter
NAME = "value"
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent
CHECKOUT = BENCH.parent.parent
_PEERS = BENCH / "peers"

# StreamQ first, then the system it is measured against, then the field; the floor last.
ORDER = (
    "streamq", "streamq-unique", "baseline", "asynq",
    "huey", "dramatiq", "taskiq", "saq", "arq", "streaq", "docket", "celery", "raw",
)  # fmt: skip
BASELINE = "baseline"
"""StreamQ of another revision, measured only when asked for."""
VARIANTS = frozenset({"streamq-unique", BASELINE})
"""Left out unless named: StreamQ beside itself."""


@dataclass(frozen=True)
class Peer:
    """One system under measurement, as its ``peer.toml`` tells it."""

    name: str
    title: str
    language: str
    adapter: str
    packages: tuple[str, ...]
    workloads: frozenset[str]
    pace: dict[str, float]
    variables: dict[str, str]
    checkout: Path = CHECKOUT
    """Where ``CHECKOUT`` among its packages is."""

    @property
    def directory(self) -> Path:
        """Where its adapter lies."""
        return _PEERS / self.adapter

    def at(self, checkout: Path, revision: str) -> Peer:
        """The same system as it was in another checkout."""
        title = f"{self.title} {revision}"
        return replace(self, name=BASELINE, adapter=self.name, title=title, checkout=checkout)


def load_peers(names: Sequence[str]) -> list[Peer]:
    """The named peers in the usual order; when ``names`` is empty, all but variants of StreamQ itself."""
    known = [name for name in ORDER if name != BASELINE]
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"unknown peer {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return [_load(name) for name in known if name in (names or set(known) - VARIANTS)]


def _load(name: str) -> Peer:
    with (_PEERS / name / "peer.toml").open("rb") as file:
        told: dict[str, Any] = tomllib.load(file)
    return Peer(
        name=name,
        title=told["title"],
        language=told["language"],
        adapter=told.get("adapter", name),
        packages=tuple(told.get("packages", ())),
        workloads=frozenset(told["workloads"]),
        pace=told["pace"],
        variables=told.get("variables", {}),
    )
