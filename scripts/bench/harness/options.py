"""The command line of ``scripts/bench/compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Measure StreamQ beside its peers in one run, on one Redis started for it on a free loopback port.
Environments are made under .bench/ at the first run.
Compare ratios within a run, not absolute figures between runs.
"""

_QUICK_SECONDS, _QUICK_REPEAT, _QUICK_IDLE_S = 0.5, 1, 3.0
_FULL_SECONDS, _FULL_REPEAT, _FULL_IDLE_S = 3.0, 3, 10.0


class Options(argparse.Namespace):
    """What was asked for, with defaults filled in."""

    peers: list[str]
    baseline: str | None
    workloads: list[str]
    persistences: list[str]
    quick: bool
    seconds: float
    repeat: int
    tasks: int | None
    limit: float
    idle_window_s: float
    python: str | None
    json: Path | None


def parse(words: list[str] | None = None) -> Options:
    """Read the command line; exits with a message when it makes no sense."""
    options = _parser().parse_args(words, namespace=Options())
    options.seconds = options.seconds or (_QUICK_SECONDS if options.quick else _FULL_SECONDS)
    options.repeat = options.repeat or (_QUICK_REPEAT if options.quick else _FULL_REPEAT)
    options.idle_window_s = _QUICK_IDLE_S if options.quick else _FULL_IDLE_S
    options.persistences = _persistences(options)
    return options


def _persistences(options: Options) -> list[str]:
    asked = options.persistence or ("none" if options.quick else "both")
    return ["none", "aof"] if asked == "both" else [asked]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=_names, default=[], metavar="a,b", help="only these (default: all)")
    add("--baseline", metavar="REV", help="also StreamQ as it was at this revision of git")
    add("--workloads", type=_names, default=[], metavar="a,b", help="only these (default: all)")
    add(
        "--quick",
        action="store_true",
        help="small workloads, one repeat, no append-only file: a look, not a result",
    )
    add("--json", type=Path, metavar="FILE", help="write every figure there; scripts/bench/report reads it")
    persistence = parser.add_mutually_exclusive_group()
    for word, value, meaning in (
        ("--aof", "aof", "only with an append-only file, fsync every second"),
        ("--no-aof", "none", "only without persistence"),
        (
            "--both",
            "both",
            "without, then the throughput workloads again with it (the default unless --quick)",
        ),
    ):
        persistence.add_argument(word, dest="persistence", action="store_const", const=value, help=meaning)
    add("--repeat", type=_positive, metavar="N", help=f"repeats, medians are shown (default {_FULL_REPEAT})")
    add(
        "--seconds", type=float, help=f"about how long a throughput workload runs (default {_FULL_SECONDS:g})"
    )
    add("--tasks", type=_positive, metavar="N", help="tasks per workload, instead of sizing by --seconds")
    add(
        "--limit",
        type=float,
        default=120.0,
        metavar="S",
        help="give up on a measurement after this (default 120)",
    )
    add(
        "--python",
        metavar="PATH",
        help="interpreter of the Python environments (default: newest of 3.11 to 3.13)",
    )
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.replace(" ", "").split(",") if name]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
