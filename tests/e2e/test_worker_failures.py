"""A worker that cannot work: which exit code its parent sees, and how much it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import environment

pytestmark = pytest.mark.processes

BROKEN_LIFESPAN = """
from contextlib import asynccontextmanager
from streamq import StreamQ

@asynccontextmanager
async def lifespan():
    raise LookupError("no such database")
    yield

app = StreamQ({url!r}, namespace={namespace!r}, lifespan=lifespan)
app.task(name="t")(print)
"""
NO_CERTIFICATE = """
from streamq import StreamQ
app = StreamQ("rediss://:hush@localhost:1/0?ssl_ca_certs=/nowhere/ca.pem")
app.task(name="t")(print)
"""


def run_worker(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "shop.py").write_text(text)
    command = [sys.executable, "-m", "streamq", "worker", "shop:app"]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_an_error_that_ends_the_worker_ends_the_process_as_failed(
    url: str, namespace: str, tmp_path: Path
) -> None:
    """With its traceback in the log: it is the app's code that has to be mended."""
    ran = run_worker(tmp_path, BROKEN_LIFESPAN.format(url=url, namespace=namespace))

    assert ran.returncode == 1
    assert "LookupError: no such database" in ran.stderr


def test_settings_that_turn_out_wrong_when_connecting_are_told_in_a_line(tmp_path: Path) -> None:
    ran = run_worker(tmp_path, NO_CERTIFICATE)

    assert ran.returncode == 2
    assert "streamq: error: ssl_ca_certs: " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "hush" not in ran.stderr
