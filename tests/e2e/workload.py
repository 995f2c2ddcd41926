"""The app of these tests' workers. Server, namespace and journal come from the environment."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from streamq import Concurrency, Member, Retry, StreamQ, current_task
from tests.e2e.checker import Journal

URL, NAMESPACE, JOURNAL = "SQ_TEST_URL", "SQ_TEST_NAMESPACE", "SQ_TEST_JOURNAL"

app = StreamQ(os.environ.get(URL, "redis://localhost:6379/0"), namespace=os.environ.get(NAMESPACE))
journal = Journal(os.environ.get(JOURNAL, os.devnull))


def note(kind: str) -> None:
    task = current_task()
    journal.write(kind, task.id, attempt=task.attempt, crashes=task.crashes)


@app.task(name="work")
async def work(seconds: float = 0.0) -> None:
    note("start")
    if seconds:
        await asyncio.sleep(seconds)
    note("end")


@app.task(name="tick")
async def tick() -> None:
    """Notes the tick of the schedule that enqueued it, and its own id."""
    task = current_task()
    assert task.tick is not None
    journal.write("tick", f"{round(task.tick.timestamp() * 1000)}:{task.id}")


@app.task(name="block")
def block(seconds: float) -> None:
    """Sits in a thread, which nobody can cancel."""
    note("start")
    time.sleep(seconds)
    note("end")


@app.task(name="pair", limits=[Concurrency(2)])
async def pair(until: str) -> None:
    """At most two at once over all workers; ends when the file is there."""
    note("start")
    while not Path(until).exists():
        await asyncio.sleep(0.01)
    note("end")


@app.batch_task(name="gather")
async def gather(members: list[Member], seconds: float = 0.2) -> None:
    """Writes down in which batch each member is run."""
    task, ids = current_task(), [member.id for member in members]
    journal.write(f"in:{task.id}", *ids, attempt=task.attempt, crashes=task.crashes)
    await asyncio.sleep(seconds)
    journal.write("end", *ids, attempt=task.attempt, crashes=task.crashes)


@app.task(name="die", retry=Retry(max_retries=0))
async def die() -> None:
    """Takes its worker down with it, each time."""
    note("start")
    os._exit(13)


@app.task(name="enqueue-another")
async def enqueue_another() -> None:
    """Enqueues from within a handler."""
    note("start")
    task_id = f"{current_task().id}-second"
    journal.write("attempt", task_id)
    await work.options(task_id=task_id).enqueue()
    journal.write("ok", task_id)
    note("end")
