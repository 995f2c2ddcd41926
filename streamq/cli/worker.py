"""``streamq worker``: runs an app's tasks, in this process or in several children of it.

Owns options, signals and exit codes. In one process: SIGTERM and SIGINT stop the worker, a second one
hurries it, SIGUSR1 and SIGTSTP make it quiet. With several, this process is the supervisor: it passes
the signals on. A child ends by itself when its supervisor is gone: it holds the reading end of a pipe
whose other end nobody but the supervisor has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from streamq.worker.config import WorkerConfig

_MAX_PROCESSES = 1_000
_OPTION_OF = {
    "queues": "--queue",
    "concurrency": "--concurrency",
    "grace": "--grace",
    "crash_limit": "--crash-limit",
    "worker_id": "--id",
}


def worker(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="Where the app is, such as shop.tasks:app.")
    ],
    *,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            "--queue",
            "-q",
            metavar="NAME[=WEIGHT]",
            help="A queue to work on; may be repeated. Without any: 'default'.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", metavar="N", help="Tasks at once, in each process.")
    ] = 100,
    processes: Annotated[int, typer.Option("--processes", "-p", metavar="N", help="Worker processes.")] = 1,
    strict: Annotated[
        bool, typer.Option("--strict", help="Empty the queues in the order given, instead of by weight.")
    ] = False,
    lease: Annotated[
        float,
        typer.Option(metavar="S", help="A worker that does not answer for so long loses its tasks."),
    ] = 10.0,
    grace: Annotated[
        float,
        typer.Option(metavar="S", help="How long running tasks may go on after SIGTERM or SIGINT."),
    ] = 20.0,
    crash_limit: Annotated[
        int,
        typer.Option(metavar="N", help="Crashes of its worker that a task survives; one more archives it."),
    ] = 3,
    name: Annotated[
        str | None,
        typer.Option("--id", metavar="NAME", help="How the worker's id begins; made at random unless given."),
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning, error or critical.")
    ] = "info",
    supervised: Annotated[
        str | None, typer.Option(metavar="ID", hidden=True, help="The worker's id; set by the supervisor.")
    ] = None,
) -> None:
    """Run the tasks of an app.

    SIGTERM or SIGINT stops: running tasks may end within the grace period, the others are given back. A
    second one does not wait. SIGUSR1 or SIGTSTP: take no more tasks, go on with those that run.
    """
    from streamq.cli.reporting import log_to_stderr, parse_log_level, reporting
    from streamq.cli.target import load_app
    from streamq.errors import OptionError, UsageError

    with reporting():
        level = parse_log_level(log_level)
        settings: dict[str, Any] = {
            "queues": parse_queues(queue or ["default"]),
            "concurrency": concurrency,
            "strict": strict,
            "lease_ms": _lease_ms(lease),
            "grace_s": grace,
            "crash_limit": crash_limit,
            "worker_id": supervised or _new_id(name),
        }
        if not 1 <= processes <= _MAX_PROCESSES:
            raise UsageError("--processes", f"must be from 1 to {_MAX_PROCESSES}")
        app = load_app(target)
        log_to_stderr(level)
        try:
            config = app.worker(**settings).config  # Checked; the real one is made where it runs.
        except OptionError as error:
            raise UsageError(_option_of(error.field), error.problem) from None
        if processes == 1:
            from streamq.cli.working import work

            code = work(app, settings, supervised=supervised is not None)
        else:
            from streamq.cli.supervising import supervise

            words = child_words(target, config, log_level)
            code = supervise(app, config, words, processes, new_id=lambda: _new_id(name))
        raise typer.Exit(code)


def parse_queues(words: list[str]) -> dict[str, int]:
    """``["mail=6", "default"]`` as queue to weight, in the order given. Raises UsageError."""
    from streamq.errors import UsageError

    queues: dict[str, int] = {}
    for word in words:
        name, equals, weight = word.rpartition("=") if "=" in word else (word, "", "1")
        if equals and not (weight.isascii() and weight.isdigit()):
            raise UsageError(f"--queue {word}", "the weight must be a whole number, such as mail=6")
        if name in queues:
            raise UsageError(f"--queue {word}", "the queue is given twice")
        queues[name] = int(weight)
    return queues


def _lease_ms(seconds: float) -> int:
    from streamq.errors import UsageError

    if not 0.3 <= seconds <= 86_400:
        raise UsageError("--lease", "must be from 0.3 seconds to a day")
    return round(seconds * 1000)


def _option_of(field: str) -> str:
    """How the user wrote the setting: ``queues[mail]`` is ``--queue mail``."""
    name, _, item = field.rstrip("]").partition("[")
    return f"{_OPTION_OF.get(name, name)} {item}".rstrip()


def _new_id(name: str | None) -> str:
    """A new id each time: one that was used before may still have commands on their way."""
    from secrets import token_hex

    from streamq.worker.worker import new_worker_id

    return new_worker_id() if name is None else f"{name}-{token_hex(3)}"


def child_words(target: str, config: WorkerConfig, log_level: str) -> list[str]:
    """The command line of a child, but for its id."""
    words = [target]
    for queue, weight in config.queues.items():
        words += ["--queue", f"{queue}={weight}"]
    words += ["--concurrency", str(config.concurrency)]
    words += ["--lease", str(config.lease_ms / 1000), "--grace", str(config.grace_s)]
    words += ["--crash-limit", str(config.crash_limit), "--log-level", log_level]
    return [*words, "--strict"] if config.strict else words
