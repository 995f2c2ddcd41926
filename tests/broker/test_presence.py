"""Presence: a worker's heartbeat is seen by others, expires by itself, and goes when the worker leaves."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streamq.broker import presence
from streamq.broker.address import Address
from streamq.errors import StoredDataError
from streamq.inspector import Inspector
from streamq.model.info import WorkerInfo
from tests.broker.stage import Stage

TTL_MS = 60_000
WORKER = WorkerInfo(
    id="w-1",
    host="host.example",
    pid=42,
    queues={"default": 3, "mail": 1},
    concurrency=10,
    active=4,
    status="running",
    started_at=datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
)


def announce(stage: Stage, worker: WorkerInfo, ttl_ms: int = TTL_MS) -> None:
    now_ms = stage.run(presence.server_time())
    for reply in stage.runner.run_all(presence.announce(stage.keys, worker, now_ms, ttl_ms)):
        assert not isinstance(reply, Exception)


def alive(stage: Stage) -> list[str]:
    return stage.run(presence.alive(stage.keys, stage.run(presence.server_time())))


def look_at(stage: Stage, *ids: str) -> list[WorkerInfo | None]:
    return stage.runner.run_all(presence.look_at(stage.keys, ids))


def test_every_field_comes_back(stage: Stage) -> None:
    """A79, A118: the status, queues and active count of each worker."""
    other = replace(WORKER, id="w-2", status="quiet", queues={}, active=0)
    announce(stage, WORKER)
    announce(stage, other)
    assert sorted(alive(stage)) == ["w-1", "w-2"]
    assert look_at(stage, "w-1", "w-2", "w-3") == [WORKER, other, None]


def test_a_new_announcement_replaces_the_old_one(stage: Stage) -> None:
    """A79."""
    announce(stage, WORKER)
    announce(stage, replace(WORKER, active=7))
    assert look_at(stage, *alive(stage)) == [replace(WORKER, active=7)]


def test_a_heartbeat_expires_by_itself(stage: Stage) -> None:
    """A79, A119: a worker that died is not listed, and what is left of it is cleaned away."""
    announce(stage, WORKER)
    announce(stage, replace(WORKER, id="w-2"), ttl_ms=30)
    assert 0 < stage.redis.pttl(stage.keys.worker("w-1")) <= TTL_MS
    stage.until(lambda: alive(stage) == ["w-1"])
    stage.until(lambda: look_at(stage, "w-2") == [None])
    assert stage.runner.run_all(presence.forget_expired(stage.keys, stage.now_ms())) == [1, 1]
    assert stage.redis.zrange(stage.keys.workers, 0, -1) == [b"w-1"]


def test_a_worker_that_leaves_disappears(stage: Stage) -> None:
    """A81: it and nobody else; leaving twice is harmless."""
    announce(stage, WORKER)
    announce(stage, replace(WORKER, id="w-2"))
    for _ in range(2):
        stage.runner.run_all(presence.leave(stage.keys, "w-1"))
    assert alive(stage) == ["w-2"]
    stage.runner.run_all(presence.leave(stage.keys, "w-2", WORKER.queues))
    assert stage.all_keys() == []


@pytest.mark.parametrize("value", [b"", b"garbage", b"\xa0", b"\x01", b"\xa1\x62id\x61x"])
def test_a_heartbeat_that_makes_no_sense_is_a_typed_error(stage: Stage, value: bytes) -> None:
    """B3: one bad heartbeat does not hide the others."""
    announce(stage, WORKER)
    stage.redis.set(stage.keys.worker("bad"), value)
    good, bad = stage.runner.run_all(presence.look_at(stage.keys, ["w-1", "bad"]))
    assert good == WORKER
    assert isinstance(bad, StoredDataError)


async def test_the_inspector_lists_the_workers_it_can_read(stage: Stage) -> None:
    """A118, A119, B3: neither an expired heartbeat nor a bad one is taken for a worker."""
    announce(stage, WORKER)
    for name in ("bad", "expired"):
        announce(stage, replace(WORKER, id=name))
    stage.redis.set(stage.keys.worker("bad"), b"garbage")
    stage.redis.delete(stage.keys.worker("expired"))
    async with Inspector(Address.parse(stage.server.unix_url), namespace=stage.keys.namespace) as inspector:
        assert await inspector.workers() == [WORKER]


def test_what_running_workers_serve_is_told_until_their_word_expires(stage: Stage) -> None:
    """B38: a quiet worker serves nothing; one that leaves takes its word back."""
    announce(stage, WORKER)
    announce(stage, replace(WORKER, id="w-2", status="quiet", queues={"quiet": 1}))
    announce(stage, replace(WORKER, id="w-3", queues={"w": 1, "q:q": 1}))
    announce(stage, replace(WORKER, id="w-4", queues={"brief": 1}), ttl_ms=30)

    def serving() -> presence.Serving:
        return stage.run(presence.serving(stage.keys, stage.now_ms()))

    stage.until(lambda: "brief" not in serving().queues)
    assert serving() == presence.Serving(
        frozenset({"default", "mail", "w", "q:q"}), frozenset({"w-1", "w-3"})
    )
    stage.runner.run_all(presence.leave(stage.keys, "w-3", ["w", "q:q"]))
    assert serving() == presence.Serving(frozenset({"default", "mail"}), frozenset({"w-1"}))


def test_the_servers_time_is_in_milliseconds(stage: Stage) -> None:
    before = stage.now_ms()
    assert before <= stage.run(presence.server_time()) <= stage.now_ms()
