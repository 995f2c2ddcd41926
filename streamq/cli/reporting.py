"""How the command line says what went wrong: one line on stderr, and an exit code; and how it logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from streamq.errors import StreamQError, UsageError

USED_WRONGLY = 2
FAILED = 1
INTERRUPTED = 130

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_ALIASES = {"warn": "warning", "fatal": "critical"}


@contextmanager
def reporting() -> Iterator[None]:
    """Turn typed errors into one line and an exit code. What is no StreamQError is a bug, and shows."""
    try:
        yield
    except StreamQError as error:
        say(f"error: {error}")
        raise typer.Exit(USED_WRONGLY if isinstance(error, UsageError) else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def say(text: str) -> None:
    """One line on stderr, with the program's name."""
    sys.stderr.write(f"streamq: {text}\n")
    sys.stderr.flush()


def parse_log_level(text: str) -> int:
    """The level of that name, in any case. Raises UsageError."""
    name = text.strip().lower()
    name = _ALIASES.get(name, name)
    if name not in LOG_LEVELS:
        raise UsageError("--log-level", f"{text!r} is none of {', '.join(LOG_LEVELS)}")
    return int(getattr(logging, name.upper()))


def log_to_stderr(level: int) -> None:
    """Show log records; an app that has set up logging itself is left alone."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(process)d %(name)s  %(message)s", stream=sys.stderr
    )


def flush_everything() -> None:
    """Before os._exit, which writes nothing out by itself."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
