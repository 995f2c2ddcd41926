"""Settle a batch without some of its members: those are archived by themselves, in the same step."""

from __future__ import annotations

from streamq.broker import working
from streamq.broker.working import Entry, Settle
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.broker.groups import batched
from tests.broker.stage import DAY, LONG_MS, Stage, parked


def settle(
    stage: Stage, entry: Entry, *aside: str, retention_ms: int = 0, reason: str = "undecodable"
) -> list[bytes]:
    value = parked(entry, b"done") if retention_ms else b""
    pairs = [(id_.encode(), f"n0!{reason}:m-{id_}".encode()) for id_ in aside]
    batch = Settle((entry.entry_id, entry.task_id, retention_ms, value))
    return stage.run(working.settle_batch(stage.queue, entry.lane, DAY, batch, pairs))


def test_the_members_set_aside_are_archived_and_the_others_are_done(stage: Stage) -> None:
    batched(stage, "a", "b", "c")
    [entry] = stage.fetch()
    assert settle(stage, entry, "b") == [b"ok"]
    assert stage.find("b").state is State.ARCHIVED
    body = stage.body("b")
    assert body is not None
    assert (body.reason, body.message) == (Reason.UNDECODABLE, b"m-b")
    for gone in ("batch", "a", "c"):
        assert stage.find(gone).state is None
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"processed": 1, "archived": 1}
    assert stage.enqueue("b", conflict="x") == [b"conflict"], "it is a task by itself"
    assert stage.delete("b") == b"ok"


def test_members_that_expired_are_counted_as_such(stage: Stage) -> None:
    """B23."""
    batched(stage, "a", "b")
    [entry] = stage.fetch()
    settle(stage, entry, "b", reason="expired")
    assert stage.counters() == {"processed": 1, "archived": 1, "expired": 1}


def test_a_batch_that_is_kept_keeps_its_result(stage: Stage) -> None:
    batched(stage, "a", "b")
    [entry] = stage.fetch()
    with stage.hearing(stage.queue.done("batch").decode(), stage.queue.done("b").decode()) as said:
        settle(stage, entry, "b", retention_ms=LONG_MS)
    assert sorted(said) == [b"archived", b"completed"]
    assert stage.find("a").state is State.COMPLETED
    assert stage.find("a").message_bytes == b"done"
    assert stage.find("b").state is State.ARCHIVED


def test_a_lost_lease_changes_nothing(stage: Stage) -> None:
    """B14: the worker that lost the batch sets nobody aside."""
    batched(stage, "a", "b")
    [entry] = stage.fetch("dead")
    stage.recover(entry.lane, dead="dead")
    before = stage.dump()
    assert settle(stage, entry, "b", retention_ms=LONG_MS) == [b"lost"]
    assert stage.dump() == before


def test_settling_twice_is_refused(stage: Stage) -> None:
    batched(stage, "a")
    [entry] = stage.fetch()
    settle(stage, entry, "a")
    before = stage.dump()
    assert settle(stage, entry, "a") == [b"lost"]
    assert stage.dump() == before


def test_it_passes_when_memory_is_full(full: Stage) -> None:
    batched(full, "a", "b")
    [entry] = full.fetch()
    full.redis.config_set("maxmemory", 1)
    assert settle(full, entry, "b", retention_ms=LONG_MS) == [b"ok"]
    full.redis.config_set("maxmemory", 0)
    assert full.find("b").state is State.ARCHIVED
