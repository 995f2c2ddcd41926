"""Cancel: in every state, with each outcome; where a worker runs the task, by a mark that is final."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamq.broker import working
from streamq.broker.producing import GroupRule, how
from streamq.broker.working import Entry
from streamq.model.cancelling import CancelOutcome
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Reason
from streamq.model.states import State
from tests.broker.locks import KEY, enqueue, nothing_left
from tests.broker.stage import DAY, LONG_MS, Stage

GROUP = GroupRule("t", "g", LONG_MS)


def join(stage: Stage, *ids: str, lane: Lane = Lane.NORMAL) -> None:
    words = [(how(lane, group=GROUP), id_, f"m-{id_}".encode()) for id_ in ids]
    assert set(stage.send(stage.next_sequence(), *words).words) == {b"aggregating"}


def ready(stage: Stage) -> None:
    stage.enqueue("a", lane=Lane.LOW)


def scheduled(stage: Stage) -> None:
    stage.enqueue("a", lane=Lane.LOW, delay_ms=LONG_MS)


def retried(stage: Stage) -> None:
    stage.retry(*stage.started("a", lane=Lane.LOW))


def aggregating(stage: Stage) -> None:
    join(stage, "a", lane=Lane.LOW)


WAITING = [ready, scheduled, retried, aggregating]
Bring = Callable[[Stage], None]


def marks(stage: Stage) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = stage.redis.hgetall(stage.queue.cancels)
    return found


# Where it waits


@pytest.mark.parametrize("bring", WAITING)
def test_a_waiting_task_is_archived_with_its_bytes_and_the_reason(stage: Stage, bring: Bring) -> None:
    """B10: at once, whoever waits for it is told, and nothing of where it waited is left."""
    bring(stage)
    with stage.hearing(stage.queue.done("a").decode()) as said:
        assert stage.cancel("a") == b"ok"
    assert said == [b"archived"]
    found = stage.find("a")
    assert found.state is State.ARCHIVED
    assert found.parked is not None
    assert (found.parked.reason, found.parked.lane) == (Reason.CANCELLED, Lane.LOW)
    assert found.message_bytes == (b"again" if bring is retried else b"m-a")
    assert stage.fetch() == []
    assert nothing_left(stage)
    counters = stage.counters()
    assert (counters["cancelled"], counters["archived"]) == (1, 1)


@pytest.mark.parametrize("bring", WAITING)
def test_a_waiting_task_is_deleted_without_a_trace(stage: Stage, bring: Bring) -> None:
    """B10: nor of what an earlier attempt of it said."""
    bring(stage)
    stage.redis.hset(stage.queue.progress, "a", "half")
    with stage.hearing(stage.queue.done("a").decode()) as said:
        assert stage.cancel("a", "delete") == b"ok"
    assert said == [b"deleted"]
    assert stage.find("a").state is None
    queue = stage.queue
    assert stage.redis.exists(queue.index, queue.parked, queue.archived, queue.progress) == 0
    assert nothing_left(stage)
    assert stage.counters()["cancelled"] == 1


@pytest.mark.parametrize("bring", [ready, scheduled, retried])
@pytest.mark.parametrize("delay_ms", [0, LONG_MS])
def test_a_waiting_task_is_put_off_where_a_retry_is_asked_for(
    stage: Stage, bring: Bring, delay_ms: int
) -> None:
    """B10: it is due after the delay, counted by Redis's clock, and nothing is spent."""
    bring(stage)
    before = stage.now_ms()
    with stage.hearing(stage.queue.hints) as said:
        assert stage.cancel("a", "retry", delay_ms) == b"ok"
    assert said == [b"due"]
    assert stage.counters()["cancelled"] == 1
    due = {**stage.members(stage.queue.retry), **stage.members(stage.queue.scheduled)}["a"]
    assert before + delay_ms <= due <= stage.now_ms() + delay_ms
    stage.check()
    if not delay_ms:
        assert stage.forward().moved == 1
        assert stage.ids(Lane.LOW) == ["a"]


def test_a_member_of_a_group_that_is_put_off_joins_again_later(stage: Stage) -> None:
    """B10: it does not run alone."""
    aggregating(stage)
    assert stage.cancel("a", "retry", LONG_MS) == b"ok"
    assert stage.find("a").state is State.SCHEDULED
    assert stage.redis.hget(stage.queue.grouped, "a").startswith(b"0 ")
    assert stage.redis.exists(stage.queue.aggregating, stage.queue.groups) == 0


def test_the_other_members_of_its_group_stay(stage: Stage) -> None:
    join(stage, "a", "b")
    assert stage.cancel("a") == b"ok"
    assert stage.redis.zcard(stage.queue.aggregating) == stage.redis.zcard(stage.queue.groups) == 1
    assert stage.redis.hkeys(stage.queue.grouped) == [b"b"]


def test_a_task_whose_worker_crashed_is_ready_and_keeps_its_count(stage: Stage) -> None:
    """It lies in front; its home and its crashes go into the archive with it."""
    [entry] = stage.started("a", lane=Lane.HIGH)
    stage.let_idle(entry)
    stage.recover(Lane.HIGH, lease_ms=1_000)
    assert stage.cancel("a") == b"ok"
    body = stage.body("a")
    assert body is not None
    assert (body.lane, body.crashes) == (Lane.HIGH, 1)


def test_a_task_of_a_lane_that_nobody_has_read_is_ready(stage: Stage) -> None:
    stage.enqueue("a")
    assert stage.cancel("a", "delete") == b"ok"
    assert stage.entries(Lane.NORMAL) == []


# Where there is nothing to cancel


def test_a_finished_task_is_not_cancelled(stage: Stage) -> None:
    """But an archived one may be deleted."""
    kept, dead = stage.started("kept", "dead")
    stage.retain(kept)
    stage.archive(dead)
    before = stage.dump()
    outcomes: tuple[CancelOutcome, ...] = ("archive", "delete", "retry")
    assert [stage.cancel("kept", outcome) for outcome in outcomes] == [b"finished"] * 3
    assert stage.cancel("dead") == stage.cancel("dead", "retry") == b"finished"
    assert stage.dump() == before
    assert stage.cancel("dead", "delete") == b"ok"
    assert stage.find("dead").state is None


def test_a_task_that_does_not_exist_is_not_cancelled(stage: Stage) -> None:
    before = stage.dump()
    assert stage.cancel("nobody") == stage.cancel("nobody", "retry") == b"missing"
    assert stage.dump() == before


def test_a_task_whose_entry_or_place_is_gone_is_missing(stage: Stage) -> None:
    """Whoever took it away by hand has ended it; the audit deals with what is left."""
    stage.consistent = False
    stage.enqueue("a")
    stage.redis.delete(stage.queue.lanes[Lane.NORMAL])
    stage.redis.hset(stage.queue.parked, "b", "n0:m")
    before = stage.dump()
    for outcome in ("archive", "delete", "retry"):
        assert stage.cancel("a", outcome) == stage.cancel("b", outcome) == b"missing"
    assert stage.dump() == before


@pytest.mark.parametrize(
    "where, answer", [("active", b"batch:b"), ("retry", b"batch:b"), ("done", b"missing")]
)
def test_a_member_of_a_batch_is_not_cancelled_alone(stage: Stage, where: str, answer: bytes) -> None:
    """The answer names the batch, while that one lives."""
    batch = stage.started("b")
    stage.redis.hset(stage.queue.grouped, "a", "=b")
    if where == "retry":
        stage.retry(*batch)
    elif where == "done":
        stage.complete(*batch)
    before = stage.dump()
    assert stage.cancel("a") == answer
    assert stage.dump() == before


def test_a_member_of_a_batch_that_is_over_is_finished(stage: Stage) -> None:
    stage.archive(*stage.started("b"))
    stage.redis.hset(stage.queue.grouped, "a", "=b")
    assert stage.cancel("a") == b"finished"


# Locks


@pytest.mark.parametrize("mode", ["s", "d", "w", "b", "k"])
@pytest.mark.parametrize("outcome", ["archive", "delete"])
@pytest.mark.parametrize("delay_ms", [None, LONG_MS])
def test_the_lock_of_a_cancelled_task_is_free_at_once(
    stage: Stage, mode: str, outcome: CancelOutcome, delay_ms: int | None
) -> None:
    """A30: also a window, which would outlast the task if it had run."""
    enqueue(stage, "a", mode=mode, window_ms=LONG_MS, delay_ms=delay_ms)
    assert stage.cancel("a", outcome) == b"ok"
    assert nothing_left(stage)
    assert enqueue(stage, "b", mode=mode, window_ms=LONG_MS) == [b"ready"]


def test_a_lock_that_archiving_keeps_is_kept(stage: Stage) -> None:
    enqueue(stage, "a", mode="D")
    assert stage.cancel("a") == b"ok"
    assert enqueue(stage, "b", mode="D") == [b"duplicate:a"]
    assert stage.cancel("a", "delete") == b"ok"
    assert enqueue(stage, "b", mode="D") == [b"ready"]


def test_a_retry_keeps_the_lock(stage: Stage) -> None:
    enqueue(stage, "a", mode="d")
    assert stage.cancel("a", "retry", LONG_MS) == b"ok"
    assert enqueue(stage, "b", mode="d") == [b"duplicate:a"]


def test_a_retry_of_an_active_task_keeps_its_window(stage: Stage) -> None:
    """It is not over: its lock lasts as long as it was asked to."""
    enqueue(stage, "a", mode="w", window_ms=LONG_MS)
    [entry] = stage.fetch()
    assert stage.cancel("a", "retry") == b"asked"
    stage.complete(entry)
    assert enqueue(stage, "b", mode="w", window_ms=LONG_MS) == [b"duplicate:a"]


def test_a_cancelled_task_does_not_free_the_lock_of_another(stage: Stage) -> None:
    """A35: its record of the lock is an old one."""
    enqueue(stage, "a")
    stage.enqueue("b")
    stage.redis.hset(stage.queue.owners, "b", KEY)
    assert stage.cancel("b", "delete") == b"ok"
    assert enqueue(stage, "c") == [b"duplicate:a"]


@pytest.mark.parametrize("outcome", ["archive", "delete"])
def test_the_window_of_an_active_task_ends_with_it_once_it_is_cancelled(
    stage: Stage, outcome: CancelOutcome
) -> None:
    enqueue(stage, "a", mode="w", window_ms=LONG_MS)
    [entry] = stage.fetch()
    assert stage.cancel("a", outcome) == b"asked"
    assert enqueue(stage, "b", mode="w", window_ms=LONG_MS) == [b"duplicate:a"]
    if outcome == "archive":
        stage.archive(entry, reason=Reason.CANCELLED)
    else:
        stage.discard(entry, reason=Reason.CANCELLED)
    assert enqueue(stage, "b", mode="w", window_ms=LONG_MS) == [b"ready"]


def test_who_waited_behind_a_cancelled_task_has_its_lock_and_is_due(stage: Stage) -> None:
    """A keep-last lock whose running task was given back."""
    enqueue(stage, "a", mode="k")
    [entry] = stage.fetch()
    enqueue(stage, "b", mode="k")
    stage.release(entry)
    with stage.hearing(stage.queue.hints) as said:
        assert stage.cancel("a", "delete") == b"ok"
    assert said == [b"due"]
    assert stage.forward().moved == 1
    assert stage.find("b").state is State.READY
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}
    assert stage.redis.hkeys(stage.queue.unique) == [KEY.encode()]


def test_who_waits_behind_a_running_task_is_put_off_no_earlier(stage: Stage) -> None:
    """At most one runs: it stays behind the running one; cancelled, it leaves that one its lock."""
    enqueue(stage, "a", mode="k")
    stage.fetch()
    enqueue(stage, "b", mode="k")
    due = stage.members(stage.queue.scheduled)
    assert stage.cancel("b", "retry") == b"ok"
    assert stage.members(stage.queue.scheduled) == due
    assert stage.cancel("b", "delete") == b"ok"
    assert stage.redis.hgetall(stage.queue.owners) == {b"a": KEY.encode()}
    assert stage.redis.hkeys(stage.queue.unique) == [KEY.encode()]


# Where a worker runs it


@pytest.mark.parametrize("outcome, mark", [("archive", b"a0"), ("delete", b"d0"), ("retry", b"r1500")])
def test_an_active_task_gets_a_mark_and_its_worker_a_hint(
    stage: Stage, outcome: CancelOutcome, mark: bytes
) -> None:
    """A123: the hint names the entry; the mark says what becomes of the task. Nothing else is touched."""
    [entry] = stage.started("a", lane=Lane.HIGH)
    before = stage.dump()
    with stage.hearing(stage.queue.hints) as said:
        assert stage.cancel("a", outcome, 1_500 if outcome == "retry" else 0) == b"asked"
    assert said == [b"cancel h" + entry.entry_id]
    assert marks(stage) == {b"h" + entry.entry_id: mark}
    assert stage.run(working.marks(stage.queue, Lane.HIGH, [b"1-1", entry.entry_id])) == {
        entry.entry_id: mark
    }
    after = stage.dump()
    assert {key: after[key] for key in before} == before


def test_the_last_cancel_of_an_active_task_wins(stage: Stage) -> None:
    stage.started("a")
    assert stage.cancel("a", "retry", 5) == stage.cancel("a", "delete") == b"asked"
    assert list(marks(stage).values()) == [b"d0"]


Settle = Callable[[Stage, Entry], list[bytes]]
FAILURES: list[Settle] = [
    lambda stage, entry: stage.retry(entry),
    lambda stage, entry: stage.archive(entry),
    lambda stage, entry: stage.release(entry),
]


@pytest.mark.parametrize("settle", FAILURES, ids=["retry", "archive", "release"])
@pytest.mark.parametrize("outcome, mark", [("archive", b"a0"), ("delete", b"d0"), ("retry", b"r0")])
def test_a_worker_that_does_not_know_of_the_cancel_is_told_when_it_settles(
    stage: Stage, settle: Settle, outcome: CancelOutcome, mark: bytes
) -> None:
    """B10: the handler failed by itself, or was given back: nothing is done, the mark is the answer."""
    marked, other = stage.started("marked", "other")
    stage.cancel("marked", outcome)
    before = stage.dump()
    assert settle(stage, marked) == [b"cancelled:" + mark]
    assert stage.dump() == before
    assert settle(stage, other) == [b"ok"]


def test_what_the_mark_asks_for_takes_the_mark_away(stage: Stage) -> None:
    """B10: archived, deleted or to be retried, each as settled by the worker."""
    archived, deleted, again = stage.started("archived", "deleted", "again")
    for name, outcome in (("archived", "archive"), ("deleted", "delete"), ("again", "retry")):
        stage.cancel(name, outcome)  # type: ignore[arg-type]
    assert stage.archive(archived, reason=Reason.CANCELLED) == [b"ok"]
    assert stage.discard(deleted, reason=Reason.CANCELLED) == [b"ok"]
    words = (again.entry_id, again.task_id, 0, "c", b"n0:m")
    assert stage.run(working.retry(stage.queue, Lane.NORMAL, DAY, [working.Settle(words)])) == [b"ok"]
    assert marks(stage) == {}
    assert [stage.find(name).state for name in ("archived", "deleted", "again")] == [
        State.ARCHIVED, None, State.RETRY,
    ]  # fmt: skip
    counters = stage.counters()
    assert counters["cancelled"] == 3
    assert not {"processed", "failed"} & counters.keys()


@pytest.mark.parametrize("dead", ["", "w1"])
def test_recovery_carries_out_what_a_dead_worker_was_asked_for(stage: Stage, dead: str) -> None:
    """B10: the worker died before it could: no attempt follows unless a retry was asked for."""
    entries = stage.started("archived", "deleted", "again", "plain")
    for name, outcome in (("archived", "archive"), ("deleted", "delete"), ("again", "retry")):
        stage.cancel(name, outcome, LONG_MS if outcome == "retry" else 0)  # type: ignore[arg-type]
    stage.let_idle(*entries)
    ended = [stage.queue.done(name).decode() for name in ("deleted", "archived")]
    with stage.hearing(*ended, stage.queue.hints) as said:
        done = stage.recover(lease_ms=1_000, dead=dead)
        assert stage.recover(lease_ms=1_000, dead=dead).retry == 0
    assert sorted(said) == [b"archived", b"deleted", b"due"]
    assert (done.archived, done.deleted, done.retry, done.front) == (1, 1, 1, 1)
    assert stage.ids(Lane.FRONT) == ["plain"]
    body = stage.body("archived")
    assert body is not None
    assert body.reason is Reason.CANCELLED
    assert stage.members(stage.queue.retry)["again"] > stage.now_ms() + LONG_MS / 2
    assert stage.find("deleted").state is None
    assert marks(stage) == {}
    assert stage.counters()["cancelled"] == stage.counters(stage.queue.stats_of(DAY))["cancelled"] == 3


def test_a_mark_of_a_newer_version_archives(stage: Stage) -> None:
    """What is not understood loses nothing."""
    [entry] = stage.started("a")
    stage.redis.hset(stage.queue.cancels, b"n" + entry.entry_id, b"?")
    stage.let_idle(entry)
    assert stage.recover(lease_ms=1_000).archived == 1


def test_a_mark_on_one_task_does_not_touch_the_next_ones(stage: Stage) -> None:
    """Ids of entries never come again, so a mark that outlived its task means nothing."""
    [entry] = stage.started("a")
    stage.cancel("a")
    stage.complete(entry)
    again = stage.started("a")
    assert stage.retry(*again) == [b"ok"]


# Discard


def test_a_discarded_task_is_gone_and_counted_for_its_reason(stage: Stage) -> None:
    """B23: no attempt is counted."""
    expired, cancelled = stage.started("expired", "cancelled")
    with stage.hearing(stage.queue.done("expired").decode()) as said:
        assert stage.discard(expired) == [b"ok"]
        assert stage.discard(cancelled, reason=Reason.CANCELLED) == [b"ok"]
    assert said == [b"deleted"]
    assert stage.discard(expired) == [b"lost"]
    assert stage.counters() == stage.counters(stage.queue.stats_of(DAY)) == {"expired": 1, "cancelled": 1}
    assert all(stage.entries(lane) == [] for lane in LANES)


def test_an_expired_task_that_is_archived_counts_as_expired(stage: Stage) -> None:
    """B23"""
    stage.archive(*stage.started("a"), reason=Reason.EXPIRED)
    assert stage.counters() == {"archived": 1, "expired": 1}


def test_a_task_can_be_cancelled_when_redis_is_full(full: Stage) -> None:
    """Then it may be wanted most."""
    [entry] = full.started("active")
    full.enqueue("ready")
    full.enqueue("scheduled", delay_ms=LONG_MS)
    full.redis.config_set("maxmemory", 1)
    assert full.cancel("active", "delete") == b"asked"
    assert full.cancel("ready", "delete") == full.cancel("scheduled") == b"ok"
    assert full.discard(entry, reason=Reason.CANCELLED) == [b"ok"]
    full.redis.config_set("maxmemory", 0)
    assert [full.find(name).state for name in ("active", "ready", "scheduled")] == [
        None, None, State.ARCHIVED,
    ]  # fmt: skip
