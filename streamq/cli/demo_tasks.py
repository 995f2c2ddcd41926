"""The demo's app and tasks: real work on real files, some of it late and some of it failing at first."""

from __future__ import annotations

import hashlib
import io
import os
import sysconfig
import time
import tokenize
from pathlib import Path

from streamq.app import StreamQ
from streamq.model.retry import Fixed, Retry
from streamq.worker.context import current_task

URL_VARIABLE = "STREAMQ_DEMO_URL"
"""How the worker processes learn where the demo's server is."""
QUEUE = "files"

Summary = list[str | int]
"""Of one file: sha256, lines, tokens."""
Answer = list[Summary | int]
"""What a task returns: the summary, and which attempt came to it after how many crashes."""

app = StreamQ(os.environ.get(URL_VARIABLE, "embedded://demo"), namespace="demo")


class FirstAttemptFails(Exception):
    """What a task raises that is to be retried."""


@app.task(queue=QUEUE, timeout=60, retention=600)
def summarise(path: str) -> Answer:
    """Read a file, hash it, count its lines and tokens. Runs in a thread."""
    return _answer(path)


@app.task(queue=QUEUE, timeout=60, retention=600, retry=Retry(max_retries=3, delay=Fixed(0.5)))
def summarise_at_second_try(path: str) -> Answer:
    """The same, after a first attempt that fails."""
    if current_task().attempt == 1:
        raise FirstAttemptFails("on purpose")
    return _answer(path)


@app.task(queue=QUEUE, retention=600)
async def pick_up() -> float:
    """When it was started."""
    return time.time()


def _answer(path: str) -> Answer:
    task = current_task()
    return [summary_of(path), task.attempt, task.crashes]


def summary_of(path: str) -> Summary:
    """The demo's work. Tokens are -1 for what is no Python; a file that is gone has an empty hash."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return ["", 0, 0]
    lines = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    return [hashlib.sha256(content).hexdigest(), lines, _count_tokens(content)]


def _count_tokens(content: bytes) -> int:
    try:
        return sum(1 for _ in tokenize.tokenize(io.BytesIO(content).readline))
    except Exception:  # noqa: BLE001  # the library's tests have files that are broken in every way
        return -1


def library_files() -> list[str]:
    """Every .py file of the running Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages"}
    return sorted(
        str(path) for path in root.rglob("*.py") if foreign.isdisjoint(path.relative_to(root).parts)
    )
