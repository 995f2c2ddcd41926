"""What a type checker tells a user: right code passes, wrong arguments and options are found."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builds import lacking

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]

pytestmark = pytest.mark.slow

PREAMBLE = """
from __future__ import annotations
from datetime import datetime, timedelta, UTC
from typing import Any
from streamq import Retry, StreamQ, TaskHandle

app = StreamQ("redis://localhost")

@app.task(queue="mail", retention=60)
async def send(to: str, subject: str, copies: int = 0) -> str:
    return to

@app.task()
def add(a: int, b: int) -> int:
    return a + b

async def use() -> None:
    with app.sync() as sync:
"""

# A statement, and the code of the error that mypy must find in it.
WRONG = (
    ("await send.enqueue(1, subject='x')", "arg-type"),
    ("await send.enqueue('a')", "call-arg"),
    ("await send.enqueue('a', 'b', copies='many')", "arg-type"),
    ("await send.enqueue('a', subjct='b')", "call-arg"),
    ("await send.enqueue('a', 'b', 0, 'too many')", "call-arg"),
    ("await send.enqueue('a', 'b', delay=5)", "call-arg"),
    ("send.call('a', 2)", "arg-type"),
    ("await send.options(delay=5).enqueue('a')", "call-arg"),
    ("send.options(dely=5)", "call-arg"),
    ("send.options(delay='soon')", "arg-type"),
    ("send.options(at='tomorrow')", "arg-type"),
    ("send.options(priority='urgent')", "arg-type"),
    ("send.options(on_conflict='ignore')", "arg-type"),
    ("send.options(retry=1.5)", "arg-type"),
    ("send.options(headers={'k': 1})", "dict-item"),
    ("send.options(queue=None)", "arg-type"),
    ("app.task(delay=5)", "call-arg"),
    ("app.task(quue='x')", "call-arg"),
    ("StreamQ('redis://localhost', defaults={'task_id': 'x'})", "arg-type"),
    ("await app.enqueue('t', ['no map'])", "call-overload"),
    ("await app.enqueue('t', {}, quue='x')", "call-overload"),
    ("await app.enqueue(send.call('a', 'b'), dely=5)", "call-overload"),
    ("await app.enqueue(send)", "call-overload"),
    ("await app.enqueue_many([send])", "arg-type"),
    ("n: int = await (await send.enqueue('a', 'b')).result()", "assignment"),
    ("h: TaskHandle[int] = await send.enqueue('a', 'b')", "assignment"),
    ("k: int = sync.enqueue(send.call('a', 'b')).result()", "assignment"),
    ("sync.enqueue(add.call('1', 2))", "arg-type"),
    ("sync.enqueue('t', {}, priority='urgent')", "call-overload"),
    ("m: str = add(1, 2)", "assignment"),
    ("add(1, '2')", "arg-type"),
    ("o: int = await send('a', 'b')", "assignment"),
    ("(await send.enqueue('a', 'b')).id = 5", "assignment"),
    ("Retry('3')", "arg-type"),
)
RIGHT = (
    "await send.enqueue('a', subject='b', copies=1)",
    "p: str = await (await send.enqueue('a', 'b')).result(timeout=timedelta(seconds=5))",
    "q: int = sync.enqueue(add.call(1, b=2), queue='x').result()",
    "await app.enqueue('t', {'x': 1}, delay=5, retry=Retry(1))",
)


def mypy(file: Path, cache: Path) -> str:
    """What mypy --strict says of the file, in the settings of a user's project."""
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(cache)]
    words += [
        "--follow-imports=silent",
        "--hide-error-context",
        "--no-error-summary",
        "--show-error-codes",
        str(file),
    ]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs share what mypy has learnt of StreamQ."""
    if importlib.util.find_spec("mypy") is None:
        lacking("mypy", "pip install 'streamq[dev]'")
    return tmp_path_factory.mktemp("mypy")


def test_real_user_code_is_accepted(cache: Path) -> None:
    assert mypy(HERE / "api.py", cache) == ""


def test_wrong_arguments_and_options_are_found_and_right_ones_are_not(cache: Path, tmp_path: Path) -> None:
    """Line by line: the code that is expected, in the line where the mistake is, and nothing else."""
    file = tmp_path / "wrong.py"
    statements = [statement for statement, _ in WRONG] + list(RIGHT)
    file.write_text(PREAMBLE + "".join(f"        {statement}\n" for statement in statements))
    first = PREAMBLE.count("\n") + 1
    found: dict[int, set[str]] = {}
    for line, code in re.findall(r"wrong\.py:(\d+): error: .*\[([\w-]+)\]$", mypy(file, cache), re.MULTILINE):
        found.setdefault(int(line) - first, set()).add(code)
    expected = {place: {code} for place, (_, code) in enumerate(WRONG)}
    named = {statements[place]: codes for place, codes in found.items()}
    assert named == {statements[place]: codes for place, codes in expected.items()}
