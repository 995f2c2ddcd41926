"""Auditor: a worker repairs by itself what somebody broke by hand, and says so loudly, once."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from streamq import StreamQ
from streamq.errors import ServerRefused
from streamq.inspector import Inspector
from streamq.model.lanes import Lane
from streamq.model.parked import Reason
from streamq.worker import auditor
from tests.servers import Server
from tests.support import eventually, keys_of, make_worker, running


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor, "_CALM_S", 0.0)


async def test_a_task_that_nobody_would_have_found_runs_again(
    app: StreamQ, server: Server, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: handed out, then acknowledged by hand; and a body that lost its place is kept in the archive."""
    ran: list[int] = []

    @app.task(name="t")
    async def task(number: int) -> None:
        ran.append(number)

    await task.enqueue(1)
    lonely = await task.options(delay=3600).enqueue(2)
    keys = keys_of(app)
    redis: Any = server.client()
    lane = keys.lanes[Lane.NORMAL]
    redis.xgroup_create(lane, "w", "0")
    [[_, [[entry, _]]]] = redis.xreadgroup("w", "somebody", {lane: ">"}, count=1)
    redis.xack(lane, "w", entry)
    redis.zrem(keys.scheduled, lonely.id)
    monkeypatch.setattr(auditor, "_PERIOD_S", 0.05)
    async with running(app):
        await eventually(lambda: ran == [1])

        async def is_kept() -> bool:
            return (await inspector.queue("default")).archived == 1

        await eventually(is_kept)
    assert (await inspector.task("default", lonely.id)).reason is Reason.ORPHANED
    counters = await inspector.counters("default")
    assert (counters["repaired"], counters["quarantined"]) == (1, 1)


async def test_of_two_workers_one_audits_and_says_it_once(
    app: StreamQ, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """B3: loudly, with what was found; and not again when nothing is."""
    await app.enqueue("t", {})
    redis: Any = server.client()
    redis.hset(keys_of(app).index, "odd", "n1-1")
    one, other = make_worker(app), make_worker(app)
    with caplog.at_level(logging.ERROR, "streamq.auditor"):
        assert await one.auditor.run_once() == 1
        redis.hset(keys_of(app).index, "odd", "n1-1")
        assert await other.auditor.run_once() == 0
        redis.delete(keys_of(app).audited)
        assert await other.auditor.run_once() == 1
        redis.delete(keys_of(app).audited)
        assert await one.auditor.run_once() == 0
    told = [record.getMessage() for record in caplog.records if record.name == "streamq.auditor"]
    assert [line.split("queue=")[1] for line in told] == ["default vanished=1 repaired=0 quarantined=0"] * 2
    for worker in (one, other):
        await worker._control.aclose()


async def test_a_queue_that_cannot_be_audited_does_not_keep_the_others_waiting(
    app: StreamQ, server: Server, inspector: Inspector
) -> None:
    """B3: a key of the wrong type is told by name, and ends no worker."""
    redis: Any = server.client()
    redis.set(keys_of(app, "broken").index, "something else")
    redis.hset(keys_of(app, "good").index, "odd", "n1-1")
    worker = make_worker(app, queues={"broken": 1, "good": 1})
    with pytest.raises(ServerRefused, match="queue broken: Redis: WRONGTYPE"):
        await worker.auditor.run_once()
    assert not redis.exists(keys_of(app, "good").index)
    await worker._control.aclose()


async def test_an_adopted_queue_is_audited_too(app: StreamQ, server: Server) -> None:
    """B3, B38"""
    await app.enqueue("t", {}, queue="theirs")
    redis: Any = server.client()
    redis.hset(keys_of(app, "theirs").index, "odd", "n1-1")
    async with running(app, queues={"mine": 1}, care_s=0.1) as worker:
        await eventually(lambda: worker.caretaker.adopted)
        assert await worker.auditor.run_once() == 1
