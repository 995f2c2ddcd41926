"""Tidy: what stood beside a task goes when the task has ended, and not before."""

from __future__ import annotations

from typing import Any

import pytest

from streamq.broker import working
from streamq.broker.grouping import flush_group
from streamq.broker.producing import GroupRule
from streamq.broker.working import Entry
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.locks import KEY, enqueue, holder, nothing_left, tidy, window_end
from tests.broker.stage import LONG_MS, Stage


def running(stage: Stage, id_: str = "a", **options: Any) -> Entry:
    enqueue(stage, id_, **options)
    [entry] = stage.fetch()
    return entry


def test_locks_of_tasks_that_have_ended_go(stage: Stage) -> None:
    """A33, A34, B36: completed, kept after completion and archived alike."""
    for end in (stage.complete, stage.retain, stage.archive):
        end(running(stage, end.__name__))
        assert tidy(stage, end.__name__) == (1, 0, 0)
        assert nothing_left(stage)
    assert stage.find("retain").state is State.COMPLETED


def test_locks_of_tasks_that_live_stay(stage: Stage) -> None:
    """In whatever state: ready, active, scheduled, to be tried again, in a group."""
    enqueue(stage, "retry", key="1")
    stage.retry(*stage.fetch())
    enqueue(stage, "active", key="2")
    stage.fetch()
    enqueue(stage, "ready", key="3")
    enqueue(stage, "scheduled", key="4", delay_ms=LONG_MS)
    enqueue(stage, "member", key="5", group=GroupRule("t", "g", LONG_MS))
    before = stage.dump()
    assert tidy(stage, "retry", "active", "ready", "scheduled", "member") == (0, 0, 0)
    assert stage.dump() == before


def test_an_archived_task_keeps_the_lock_that_it_was_asked_to_keep(stage: Stage) -> None:
    stage.archive(running(stage, mode="D"))
    assert tidy(stage, "a").freed == 0
    assert holder(stage) == "a"
    stage.delete("a")
    assert nothing_left(stage)


def test_a_window_stays_until_its_end(stage: Stage) -> None:
    stage.complete(running(stage, mode="w", window_ms=LONG_MS))
    assert tidy(stage, "a").freed == 0
    assert window_end(stage) > stage.now_ms()
    stage.redis.hset(stage.queue.unique, KEY, f"w{stage.now_ms() - 1} a")
    assert tidy(stage, "a").freed == 1
    assert nothing_left(stage)


def test_a_lock_that_went_to_another_task_stays_with_it(stage: Stage) -> None:
    """A35."""
    entry = running(stage, mode="s")
    enqueue(stage, "b", mode="s")
    stage.redis.hset(stage.queue.owners, "a", KEY)
    stage.complete(entry)
    assert tidy(stage, "a").freed == 0
    assert holder(stage) == "b"
    assert stage.redis.hkeys(stage.queue.owners) == [b"b"]


def test_who_waits_behind_a_lock_is_ready_when_the_running_one_has_ended(stage: Stage) -> None:
    """In its own lane, with its own message, once."""
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k", lane=Lane.LOW)
    assert tidy(stage, "a", "b") == (0, 0, 0), "it still runs"
    stage.complete(entry)
    assert tidy(stage, "a") == (0, 1, 0)
    assert tidy(stage, "a", "b") == (0, 0, 0)
    assert stage.entries(Lane.LOW) == [{b"id": b"b", b"m": b"m-b"}]
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}
    assert holder(stage) == "b"


def test_who_waits_behind_a_lock_is_found_by_its_own_id_too(stage: Stage) -> None:
    """The safety net: the janitor goes through the owners, and the ended one is no longer among them."""
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k")
    stage.complete(entry)
    stage.redis.hdel(stage.queue.owners, "a")
    assert tidy(stage, "b") == (0, 1, 0)
    assert stage.ids(Lane.NORMAL) == ["b"]


@pytest.mark.parametrize("mode", ["d", "D", "w"])
def test_who_waits_behind_a_lock_of_another_mode_is_ready_as_well(stage: Stage, mode: str) -> None:
    """A33: a deploy has made keep_last of it while the older task ran."""
    entry = running(stage, mode=mode, window_ms=LONG_MS if mode == "w" else 0)
    assert enqueue(stage, "b", mode="k") == [b"scheduled"]
    stage.complete(entry)
    assert tidy(stage, "a") == (0, 1, 0)
    assert stage.ids(Lane.NORMAL) == ["b"]
    assert holder(stage) == "b"


def test_who_waits_behind_a_lock_runs_when_the_other_one_is_deleted(stage: Stage) -> None:
    """Its worker died, it was given back, and nobody wants it any more."""
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k")
    enqueue(stage, "later", mode="k", key="other", delay_ms=LONG_MS)
    stage.release(entry)
    assert stage.delete("a") == b"ok"
    assert holder(stage) == "b"
    assert sorted(stage.redis.hkeys(stage.queue.unique)) == [KEY.encode(), b"other"]
    assert stage.forward().moved == 1
    assert stage.ids(Lane.NORMAL) == ["b"]


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a")], ids=" ".join)
@pytest.mark.parametrize("end", ["complete", "release"])
def test_a_lock_that_changes_hands_in_a_call_is_kept_by_it(
    stage: Stage, ids: tuple[str, ...], end: str
) -> None:
    """The sweep brings the one that ended and the one that waited together, in any order."""
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k")
    getattr(stage, end)(entry)
    assert tidy(stage, *ids).woken == 1
    assert holder(stage) == "b"
    assert stage.redis.hgetall(stage.queue.owners) == {b"b": KEY.encode()}
    [newest] = stage.fetch()
    assert enqueue(stage, "c", mode="k") == [b"scheduled"], "one runs, one waits"
    stage.complete(newest)
    assert tidy(stage, "b").woken == 1


def test_who_waits_behind_a_lock_is_not_due_before_its_time(stage: Stage) -> None:
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k", delay_ms=LONG_MS)
    stage.complete(entry)
    with stage.hearing(stage.queue.hints) as said:
        assert tidy(stage, "a").woken == 1
    assert said == [b"due"]
    assert 0 < stage.members(stage.queue.scheduled)["b"] - stage.now_ms() <= LONG_MS


def test_the_newest_wins_over_one_that_is_to_be_tried_again(stage: Stage) -> None:
    """Whether it failed, was given back or lost its worker: the older arguments do not run again."""
    for step, again in enumerate(("retry", "release", "recover")):
        entry = running(stage, f"a{step}", mode="k", key=again)
        enqueue(stage, f"b{step}", mode="k", key=again)
        stage.redis.hset(stage.queue.progress, f"a{step}", "half")
        if again == "recover":
            stage.let_idle(entry)
            stage.recover(entry.lane, lease_ms=1)
        else:
            getattr(stage, again)(entry)
        assert tidy(stage, f"a{step}") == (0, 1, 1)
        assert stage.find(f"a{step}").state is None
        [newest] = stage.fetch()
        stage.complete(newest)
        assert tidy(stage, f"b{step}").freed == 1
    assert nothing_left(stage)
    assert stage.redis.exists(stage.queue.progress) == 0


def test_one_that_runs_again_already_is_let_run(stage: Stage) -> None:
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k")
    stage.release(entry)
    stage.fetch()
    assert tidy(stage, "a") == (0, 0, 0)
    assert stage.find("b").state is State.SCHEDULED


def test_a_deleted_one_leaves_nothing_that_waits_for_it(stage: Stage) -> None:
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k")
    stage.delete("b")
    stage.complete(entry)
    assert tidy(stage, "a", "b") == (1, 0, 0)
    assert nothing_left(stage)


def test_one_whose_body_was_lost_leaves_nothing_that_waits_for_it(stage: Stage) -> None:
    """Deleted by hand: there is nothing that could be woken."""
    entry = running(stage, mode="k")
    enqueue(stage, "b", mode="k")
    stage.redis.hdel(stage.queue.parked, "b")
    stage.redis.zrem(stage.queue.scheduled, "b")
    tidy(stage, "b")
    assert stage.redis.hkeys(stage.queue.unique) == [KEY.encode()]
    stage.redis.hset(stage.queue.unique, f"+{KEY}", "k0 b")
    stage.complete(entry)
    assert tidy(stage, "a") == (1, 0, 0)
    assert nothing_left(stage)


def test_a_task_whose_entry_was_deleted_by_hand_is_over(stage: Stage) -> None:
    """Its record in the index, which the audit drops, is no life."""
    stage.consistent = False
    running(stage)
    stage.redis.delete(stage.queue.lanes[Lane.NORMAL])
    assert tidy(stage, "a").freed == 1
    assert nothing_left(stage)


def test_progress_goes_when_its_task_is_done_and_stays_with_one_that_failed(stage: Stage) -> None:
    gone, kept, again, failed = stage.started("gone", "kept", "again", "failed")
    for id_ in ("gone", "kept", "again", "failed"):
        stage.redis.hset(stage.queue.progress, id_, "x")
    stage.complete(gone)
    stage.retain(kept)
    stage.retry(again)
    stage.archive(failed)
    tidy(stage, "gone", "kept", "again", "failed")
    assert sorted(stage.redis.hkeys(stage.queue.progress)) == [b"again", b"failed"]


def test_places_in_a_batch_last_as_long_as_the_batch(stage: Stage) -> None:
    """Also while it waits to be tried again; the locks of its members stand so long, too (A38)."""
    enqueue(stage, "member", group=GroupRule("t", "g", LONG_MS))
    stage.redis.delete(stage.queue.aggregating, stage.queue.groups, stage.queue.parked)
    stage.redis.hset(stage.queue.grouped, "member", "=batch")
    [entry] = stage.started("batch")
    assert tidy(stage, "batch", "member") == (0, 0, 0)
    stage.retry(entry, delay_ms=0)
    assert tidy(stage, "batch", "member") == (0, 0, 0)
    stage.until(lambda: stage.forward().moved)
    stage.complete(*stage.fetch())
    assert tidy(stage, "batch", "member") == (1, 0, 0)
    assert nothing_left(stage)
    assert stage.redis.exists(stage.queue.grouped) == 0


@pytest.mark.parametrize("end, mode, freed", [("archive", "D", 0), ("archive", "d", 1), ("retain", "D", 1)])
def test_members_are_as_finished_as_their_batch(stage: Stage, end: str, mode: str, freed: int) -> None:
    """A38: what is kept of the batch is theirs; so is a lock that outlasts archiving."""
    enqueue(stage, "member", mode=mode, group=GroupRule("t", "g", 1))
    stage.until(lambda: stage.run(flush_group(stage.queue, ["batch"])).batches)
    getattr(stage, end)(*stage.fetch())
    assert tidy(stage, "batch", "member").freed == freed
    assert stage.find("member").state is (State.ARCHIVED if end == "archive" else State.COMPLETED)


def test_marks_go_with_their_entries(stage: Stage) -> None:
    ended, runs = stage.started("ended", "runs")
    marks = [entry.lane.encode() + entry.entry_id for entry in (ended, runs)]
    for mark in marks:
        stage.redis.hset(stage.queue.cancels, mark, "archive")
    stage.complete(ended)
    tidy(stage, marks=(marks[0], marks[1]))
    assert stage.redis.hkeys(stage.queue.cancels) == [marks[1]]


def test_it_comes_after_what_it_tidies_up_behind_also_when_a_script_had_to_be_loaded(full: Stage) -> None:
    """One write carries both. If the settling script is missing it is called again, and so is this."""
    entry = running(full)
    assert tidy(full, "a").freed == 0
    ids = ([entry.entry_id], [entry.task_id])
    settle = working.complete(full.queue, Lane.NORMAL, "20260101", *ids)
    assert full.runner.run_all([settle, working.tidy(full.queue, [b"a"])]) == [[b"ok"], (1, 0, 0)]
    assert nothing_left(full)


@pytest.mark.parametrize("ids", [(), ("never",)])
def test_what_nobody_knows_is_no_trouble(stage: Stage, ids: tuple[str, ...]) -> None:
    assert tidy(stage, *ids) == (0, 0, 0)
    assert stage.all_keys() == []


def test_it_passes_when_memory_is_full(full: Stage) -> None:
    """Who waits can be woken only so, and room is made only by running tasks."""
    entry = running(full, mode="k")
    enqueue(full, "b", mode="k")
    full.complete(entry)
    full.redis.config_set("maxmemory", 1)
    assert tidy(full, "a").woken == 1
    full.redis.config_set("maxmemory", 0)
    assert full.ids(Lane.NORMAL) == ["b"]


def test_a_whole_batch_of_locks_is_freed_with_few_commands(stage: Stage) -> None:
    """What does not depend on the other is gathered: one command a task remains, to see that it is gone."""
    ids = [f"t{i}" for i in range(100)]
    for id_ in ids:
        enqueue(stage, id_, key=id_)
    stage.complete(*stage.fetch())
    stage.redis.config_resetstat()
    assert tidy(stage, *ids).freed == 100
    stats = {name: row["calls"] for name, row in stage.redis.info("commandstats").items()}
    assert stats["cmdstat_hmget"] == 4
    assert stats["cmdstat_hdel"] == 3
    assert sum(stats.values()) < 120
