"""The demo on a few files: it ends well, says so, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamq.broker.embedded import find_program
from streamq.errors import AddressError
from tests.e2e.processes import environment

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def run_demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        find_program()
    except AddressError as error:
        pytest.skip(str(error))
    variables = environment(TMPDIR=str(folder), COLUMNS="100")
    command = [sys.executable, "-m", "streamq", "demo", *words]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=120, check=False, cwd=folder
    )


def test_the_demo_kills_a_worker_and_loses_nothing(short_tmp: Path) -> None:
    ran = run_demo(short_tmp, "--files", "80")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = dict(re.findall(r"^(\w[\w/ ]*?) {2,}([\d.,]+)", ran.stdout, re.MULTILINE))
    assert figures["tasks"] == "80"
    assert figures["retried"] == "4"
    assert (figures["wrong"], figures["lost"]) == ("0", "0")
    assert "kill -9 of worker" in ran.stdout
    assert "\x1b" not in ran.stdout  # plain lines, where there is no terminal
    assert not list(short_tmp.glob("streamq-demo-*"))


def test_a_count_of_files_that_makes_no_sense_is_refused(short_tmp: Path) -> None:
    ran = run_demo(short_tmp, "--files", "0")

    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
