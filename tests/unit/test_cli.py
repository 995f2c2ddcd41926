"""The command line: what it refuses, in one line and with which exit code, and what it says of itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import streamq
from streamq.cli.main import app
from streamq.cli.reporting import parse_log_level
from streamq.cli.worker import child_words, parse_queues
from streamq.errors import UsageError
from streamq.worker.config import WorkerConfig

MODULES = {
    "shop/__init__.py": "",
    "shop/tasks.py": "from streamq import StreamQ\napp = StreamQ()\nother = 3\n",
    "shop/broken.py": "raise KeyError('left')\n",
    "shop/needy.py": "import not_installed_anywhere\n",
    "shop/wrong.py": "from streamq import StreamQ\napp = StreamQ('redd://:secret@host')\n",
    "shop/leaving.py": "raise SystemExit(0)\n",
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory with modules of all kinds, as the current one."""
    (tmp_path / "shop").mkdir()
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


REFUSED = [
    ("shop.tasks", 2, "module:attribute, such as shop.tasks:app"),
    ("shop/tasks.py:app", 2, "the module's name with dots"),
    ("shop.taks:app", 2, "no module 'taks' in package shop; did you mean 'tasks'?"),
    ("shopp.tasks:app", 2, "did you mean 'shop'?"),
    ("shop.tasks:ap", 2, "has no 'ap'; did you mean 'app'?"),
    ("shop.tasks:zebra", 2, "has no 'zebra'; its apps: app"),
    ("shop.tasks:other", 2, "is a int, not a StreamQ app; its apps: app"),
    ("shop.broken:app", 1, "cannot import shop.broken: KeyError: 'left'"),
    ("shop.needy:app", 1, "No module named 'not_installed_anywhere'"),
    ("shop.leaving:app", 1, "it called sys.exit"),
    ("shop.wrong:app", 2, "redd:// is unknown"),
    ("shop.tasks:app --queue mail=many", 2, "--queue mail=many: the weight must be a whole number"),
    ("shop.tasks:app --queue mail=0", 2, "--queue mail: the weight must be"),
    ("shop.tasks:app --queue a --queue a=2", 2, "given twice"),
    ("shop.tasks:app --queue {a}", 2, "--queue: must not contain"),
    ("shop.tasks:app --concurrency 0", 2, "--concurrency: must be"),
    ("shop.tasks:app --processes 0", 2, "--processes: must be"),
    ("shop.tasks:app --lease 0.1", 2, "--lease: must be"),
    ("shop.tasks:app --lease nan", 2, "--lease: must be"),
    ("shop.tasks:app --grace -1", 2, "--grace: must be"),
    ("shop.tasks:app --crash-limit -1", 2, "--crash-limit: must be"),
    ("shop.tasks:app --id a{b", 2, "--id: must not contain"),
    ("shop.tasks:app --log-level loud", 2, "'loud' is none of"),
    ("shop.tasks:app --quue a", 2, "--queue"),
]


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("words,code,text", REFUSED, ids=[words for words, _, _ in REFUSED])
def test_what_makes_no_sense_is_refused_in_a_line(words: str, code: int, text: str) -> None:
    """A137: never a traceback, never a password."""
    ran = CliRunner().invoke(app, ["worker", *words.split()])

    assert ran.exit_code == code, ran.output
    assert text in ran.stderr
    assert "Traceback" not in ran.output
    assert "secret" not in ran.output


def test_log_levels_are_known_by_name_in_any_case() -> None:
    """A131."""
    assert parse_log_level("INFO") == parse_log_level(" info ") == logging.INFO
    assert parse_log_level("Warn") == parse_log_level("warning") == logging.WARNING
    with pytest.raises(UsageError, match="none of"):
        parse_log_level("verbose")


def test_queues_keep_their_order_and_weigh_one_unless_said() -> None:
    assert list(parse_queues(["b=6", "a", "c=3"]).items()) == [("b", 6), ("a", 1), ("c", 3)]


def test_a_child_is_started_with_what_its_supervisor_was_given() -> None:
    config = WorkerConfig(
        queues={"b": 6, "a": 1}, strict=True, concurrency=7, lease_ms=1500, grace_s=2.5, crash_limit=1
    )
    words = " ".join(child_words("shop.tasks:app", config, "debug"))
    assert words == (
        "shop.tasks:app --queue b=6 --queue a=1 --concurrency 7 --lease 1.5 --grace 2.5"
        " --crash-limit 1 --log-level debug --strict"
    )


def test_help_and_version_tell_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], ["worker", "--help"], ["demo", "--help"]):
        ran = CliRunner().invoke(app, words)
        assert ran.exit_code == 0
        assert max(map(len, ran.output.splitlines())) <= 80
    assert CliRunner().invoke(app, ["--version"]).output == f"streamq {streamq.__version__}\n"
    assert "--supervised" not in CliRunner().invoke(app, ["worker", "--help"]).output
