"""The app whose handlers the tests of isolation run. Child processes import it, so it stands in a module.

Its address does not matter: the tests make workers and clients of their own from its definitions.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from streamq import (
    INJECTED,
    Depends,
    Drop,
    Isolation,
    Release,
    Retry,
    RetryAfter,
    SkipRetry,
    StreamQ,
    TaskCall,
    TaskContext,
    current_task,
)
from streamq.model.groups import GroupRule, Member

MIB = 1 << 20
NO_RETRY = Retry(max_retries=0)

entered: list[int] = []
note: contextvars.ContextVar[str] = contextvars.ContextVar("note", default="")


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, Any]]:
    """Yields what handlers can see."""
    entered.append(os.getpid())
    yield {"entered": len(entered), "pid": os.getpid()}


app = StreamQ(lifespan=lifespan)


@app.task(name="add", isolate=True, retention=60)
async def add(one: int, other: int) -> int:
    await asyncio.sleep(0)
    return one + other


@app.task(name="where", isolate=True, retention=60)
def where() -> dict[str, Any]:
    """In which process, thread and state it runs."""
    main = threading.current_thread() is threading.main_thread()
    return {"pid": os.getpid(), "parent": os.getppid(), "main": main, "state": current_task().state}


@app.task(name="about", isolate=True, retention=60, timeout=60)
async def about() -> dict[str, Any]:
    """What the handler sees of its task."""
    task = current_task()
    assert task.deadline is not None
    return {
        "id": task.id,
        "type": task.type,
        "queue": task.queue,
        "headers": dict(task.headers),
        "attempt": task.attempt,
        "retried": task.retried,
        "crashes": task.crashes,
        "max_retries": task.max_retries,
        "deadline": task.deadline.timestamp(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
    }


@app.task(name="once", isolate=Isolation(runs=1), retention=60)
def once() -> int:
    return os.getpid()


@app.task(name="fail", isolate=True, retry=NO_RETRY)
def fail(kind: str) -> None:
    if kind == "exit":
        sys.exit(3)
    if kind == "cancel":
        raise asyncio.CancelledError
    raise KeyError(kind)


def is_failure(error: BaseException) -> bool:
    return not isinstance(error, KeyError)


@app.task(name="picky", isolate=True, retry=NO_RETRY, is_failure=is_failure)
async def picky() -> None:
    raise KeyError("busy")


def broken(error: BaseException) -> bool:
    raise LookupError("no answer")


@app.task(name="broken", isolate=True, retry=NO_RETRY, is_failure=broken)
def broken_predicate() -> None:
    raise KeyError("lost")


async def get_pid(context: TaskContext) -> AsyncIterator[int]:
    assert context.state["pid"] == os.getpid()
    try:
        yield os.getpid()
    except BaseException as error:
        print(f"{context.type} left after {type(error).__name__}", flush=True)  # noqa: T201  # its output is the test
        raise
    print(f"{context.type} left well", flush=True)  # noqa: T201


def get_both(pid: Annotated[int, Depends(get_pid)]) -> list[int]:
    return [pid, os.getpid()]


@app.task(name="wants:*", isolate=True, retention=60, retry=NO_RETRY)
def wants(
    fail: str = "", *, both: Annotated[list[int], Depends(get_both)] = INJECTED
) -> tuple[list[int], int, str]:
    """Has its dependencies made where it runs."""
    if fail:
        raise ValueError(fail)
    return both, os.getpid(), current_task().type


@app.task(name="steer", isolate=True, retry=Retry(max_retries=5, delay=3600))
async def steer(way: str) -> None:
    if way == "drop":
        raise Drop
    if way == "release":
        raise Release
    if way == "later":
        raise RetryAfter(7200, "not yet")
    if way == "skip":
        raise SkipRetry("never")
    raise ValueError("wrapped") from SkipRetry()


@app.task(name="crash", isolate=True, retry=NO_RETRY)
def crash(how: str) -> None:
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(1)
    elif how.startswith("sleep "):
        subprocess.Popen(how.split())
        os._exit(1)
    elif how == "sigkill":
        os.kill(os.getpid(), 9)


@app.task(name="hog", isolate=Isolation(memory=512 * MIB), retry=NO_RETRY)
def hog(mib: int) -> None:
    """Takes so much memory."""
    taken = bytearray(mib * MIB)
    taken[-1] = 1


@app.task(name="cramped", isolate=Isolation(memory=16 * MIB), retry=NO_RETRY)
def cramped() -> None:
    """Never starts: the child itself takes more."""


@app.task(name="spin", isolate=Isolation(cpu=1), retry=NO_RETRY)
async def spin() -> None:
    while True:
        pass


@app.task(name="open-many", isolate=Isolation(files=64), retry=NO_RETRY)
def open_many() -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(Path(os.devnull).open())


@app.task(name="limits", isolate=True, retention=60)
def limits() -> list[list[int]]:
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE)
    return [list(resource.getrlimit(kind)) for kind in kinds]


@app.task(name="wait", isolate=True, retry=NO_RETRY)
def wait(folder: str, seconds: float = 600.0) -> None:
    """Starts a process of its own, leaves both ids behind, and hangs."""
    sleeper = subprocess.Popen(["sleep", "600"])
    path = Path(folder, current_task().id)
    path.with_suffix(".new").write_text(json.dumps([os.getpid(), sleeper.pid]))
    path.with_suffix(".new").rename(path)
    time.sleep(seconds)
    sleeper.kill()


@app.task(name="hold-gil", isolate=True, retention=60)
def hold_gil(seconds: float) -> int:
    """Lets no other thread of its process run."""
    return int(ctypes.PyDLL(None).usleep(int(seconds * 1e6)))


@app.task(name="odd-result", isolate=True)
def odd_result() -> object:
    """Returns what cannot be stored."""
    return object()


@app.task(name="shout", isolate=True, retention=60)
def shout(word: str) -> None:
    print(f"out {word}", flush=True)  # noqa: T201
    logging.getLogger("shop").warning("log %s", word)


@app.task(name="speak", isolate=True)
def speak(count: int) -> None:
    """Says a lot, and then hangs."""
    for number in range(1, count + 1):
        current_task().progress(number / count, f"{number} of {count}")
    time.sleep(600)


@app.task(name="second", retention=60)
async def second() -> int:
    return os.getpid()


def total(_group: str, members: list[Member]) -> TaskCall[Any]:
    return TaskCall("total", (sum(member.args[0] for member in members),))


@app.task(name="total", isolate=True, aggregate=total, group_rule=GroupRule(grace=0.05), retention=60)
async def total_of(number: int) -> list[Any]:
    return [number, current_task().group, os.getpid()]
