"""The command line: which commands there are. Each lives in a file of its own."""

from __future__ import annotations

import typer

import streamq
from streamq.cli.demo import demo
from streamq.cli.worker import worker

app = typer.Typer(
    name="streamq",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # the shape of an option's callback
    if wanted:
        typer.echo(f"streamq {streamq.__version__}")
        raise typer.Exit


@app.callback()
def streamq_command(
    *,
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """A distributed task queue for Python on Redis Streams."""


app.command()(worker)
app.command()(demo)


def main() -> None:
    """Run the command that the process was started with. Exits: 0 done, 1 failed, 2 used wrongly."""
    app()
