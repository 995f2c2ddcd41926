"""``streamq demo``: the command alone; what it does is in ``demo_run``."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    *,
    files: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Take only so many files, spread over all.")
    ] = None,
) -> None:
    """Try StreamQ: real work, and a worker killed in the middle of it.

    Starts a server of its own with a data directory under the temporary directory, and two worker
    processes. Each .py file of Python's standard library is a task: read, hash, count lines and tokens.
    Some are delayed, some fail at first. Half-way one worker is killed with SIGKILL. At the end every
    result is compared with a direct computation. Exit status 1 if a task was lost.
    """
    from streamq.cli.demo_run import run
    from streamq.cli.reporting import FAILED, reporting

    with reporting():
        raise typer.Exit(0 if run(files) else FAILED)
