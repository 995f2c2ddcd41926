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
from typing import Annotated
from streamq import INJECTED, Depends, GroupRule, Member, Retry, RetryAfter, StreamQ, TaskCall, TaskHandle
from streamq import current_task

app = StreamQ("redis://localhost")

@app.task(queue="mail", retention=60)
async def send(to: str, subject: str, copies: int = 0) -> str:
    return to

@app.task()
def add(a: int, b: int) -> int:
    return a + b

def get_number() -> int:
    return 1

@app.task(name="email:*")
async def mail(to: str, number: Annotated[int, Depends(get_number)] = INJECTED) -> str:
    return to * number

@app.batch_task(name="batch")
async def batch(members: list[Member]) -> int:
    return len(members)

def no_aggregate(members: list[Member]) -> None: ...
def not_async(context: object, call_next: object) -> None: ...
def no_manager(call: TaskCall[Any]) -> TaskCall[Any]:
    return call

async def use() -> None:
    with app.sync() as sync:
"""

WRONG = (
    "await send.enqueue(1, subject='x')",
    "await send.enqueue('a')",
    "await send.enqueue('a', 'b', copies='many')",
    "await send.enqueue('a', subjct='b')",
    "await send.enqueue('a', 'b', 0, 'too many')",
    "await send.enqueue('a', 'b', delay=5)",
    "send.call('a', 2)",
    "await send.options(delay=5).enqueue('a')",
    "send.options(dely=5)",
    "send.options(delay='soon')",
    "send.options(at='tomorrow')",
    "send.options(priority='urgent')",
    "send.options(on_conflict='ignore')",
    "send.options(retry=1.5)",
    "send.options(headers={'k': 1})",
    "send.options(queue=None)",
    "app.task(delay=5)",
    "app.task(quue='x')",
    "StreamQ('redis://localhost', defaults={'task_id': 'x'})",
    "await app.enqueue('t', ['no map'])",
    "await app.enqueue('t', {}, quue='x')",
    "await app.enqueue(send.call('a', 'b'), dely=5)",
    "await app.enqueue(send)",
    "await app.enqueue_many([send])",
    "n: int = await (await send.enqueue('a', 'b')).result()",
    "h: TaskHandle[int] = await send.enqueue('a', 'b')",
    "k: int = sync.enqueue(send.call('a', 'b')).result()",
    "sync.enqueue(add.call('1', 2))",
    "sync.enqueue('t', {}, priority='urgent')",
    "m: str = add(1, 2)",
    "add(1, '2')",
    "o: int = await send('a', 'b')",
    "(await send.enqueue('a', 'b')).id = 5",
    "Retry('3')",
    "await mail.named('email:x').enqueue()",
    "await mail.named('email:x').enqueue(1)",
    "mail.named(5)",
    "RetryAfter('soon')",
    "await send.in_group('g').enqueue('a')",
    "send.in_group(7)",
    "send.options(group=7)",
    "send.options(group_rule=5)",
    "app.task(group='g')",
    "app.task(aggregate=no_aggregate)",
    "app.batch_task(get_number)",
    "w: str = await (await batch.in_group('g').enqueue(1)).result()",
    "GroupRule(max_size='5')",
    "Depends('get_number')",
    "app.override(get_number, 5)",
    "app.middleware(not_async)",
    "app.enqueue_middleware(no_manager)",
    "app.task(on_success=5)",
    "app.task(on_archive=no_manager)",
    "StreamQ(is_failure=5)",
    "r: str = current_task().state_as(int)",
    "call = send.call('a', 'b').with_options(dely=5)",
)
# Anything else, an unknown name for example, would be a mistake in this test.
ABOUT_TYPES = {"arg-type", "assignment", "call-arg", "call-overload", "dict-item", "type-var"}

RIGHT = (
    "await send.enqueue('a', subject='b', copies=1)",
    "p: str = await (await send.enqueue('a', 'b')).result(timeout=timedelta(seconds=5))",
    "q: int = sync.enqueue(add.call(1, b=2), queue='x').result()",
    "await app.enqueue('t', {'x': 1}, delay=5, retry=Retry(1))",
    "t: str = await (await mail.named('email:x').enqueue('a')).result()",
    "u: str = await mail('a', 5)",
    "v: int = current_task().state_as(int)",
    "x: int = await (await batch.in_group('g').enqueue(1, two=2)).result()",
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
    """Line by line: an error in each line with a mistake, about its types, and none in the others."""
    file = tmp_path / "wrong.py"
    statements = [*WRONG, *RIGHT]
    file.write_text(PREAMBLE + "".join(f"        {statement}\n" for statement in statements))
    first = PREAMBLE.count("\n") + 1
    errors = re.findall(r"wrong\.py:(\d+): error: .*\[([\w-]+)\]$", mypy(file, cache), re.MULTILINE)
    assert {code for _, code in errors} <= ABOUT_TYPES
    found = {statements[int(line) - first] for line, _ in errors}
    assert found == set(WRONG)
