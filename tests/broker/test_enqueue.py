"""Enqueue: new tasks become ready or scheduled, once per producer sequence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from streamq.broker import producing
from streamq.broker.producing import MAX_BATCH_TASKS, how
from streamq.errors import OutOfMemory, SequenceConflict
from streamq.model.lanes import Lane
from streamq.model.states import State
from tests.broker.stage import LONG_MS, Stage


def test_a_task_is_ready_at_once(stage: Stage) -> None:
    """A1: without a delay the task stands in its lane, indexed, and nowhere else."""
    assert stage.enqueue("a") == [b"ready"]
    assert stage.entries(Lane.NORMAL) == [{b"id": b"a", b"m": b"m-a"}]
    found = stage.find("a")
    assert found.state is State.READY
    assert found.message_bytes == b"m-a"
    assert stage.redis.hlen(stage.queue.parked) == 0


@pytest.mark.parametrize("lane", [Lane.HIGH, Lane.NORMAL, Lane.LOW])
def test_a_task_goes_to_the_lane_of_its_priority(stage: Stage, lane: Lane) -> None:
    stage.enqueue("a", lane=lane)
    assert {other: stage.ids(other) for other in Lane if stage.ids(other)} == {lane: ["a"]}


def test_tasks_of_a_call_keep_their_order(stage: Stage) -> None:
    """A39, A25: a lane is first in, first out, also within one call."""
    ids = [f"t{i}" for i in range(MAX_BATCH_TASKS)]
    assert stage.enqueue(*ids) == [b"ready"] * MAX_BATCH_TASKS
    stage.enqueue("last")
    assert stage.ids(Lane.NORMAL) == [*ids, "last"]


def test_each_task_of_a_call_has_its_own_answer(stage: Stage) -> None:
    """In the order of the call, again when it is sent again; workers hear of the earliest."""
    tasks = [
        (how(Lane.NORMAL, delay_ms=LONG_MS), "later", b"m"),
        (how(Lane.NORMAL), "now", b"m"),
        (how(Lane.NORMAL, delay_ms=1_000), "soon", b"m"),
        (how(Lane.NORMAL, delay_ms=2 * LONG_MS), "last", b"m"),
    ]
    with stage.hearing(stage.queue.hints) as said:
        answers = [list(stage.send(1, *tasks).words) for _ in range(2)]
    assert answers == [[b"scheduled", b"ready", b"scheduled", b"scheduled"]] * 2
    assert said == [b"due"]


def test_any_bytes_are_kept_as_they_are(stage: Stage) -> None:
    message = bytes(range(256)) * 5
    stage.enqueue("a", "ünïcode-ид", message=message)
    stage.enqueue("later", delay_ms=LONG_MS, message=message)
    assert [entry.message for entry in stage.fetch()] == [message] * 2
    body = stage.body("later")
    assert body is not None
    assert body.message == message


def test_a_moment_ahead_schedules_the_task(stage: Stage) -> None:
    """A2: due at the given time, in no lane."""
    at_ms = int((datetime.now(UTC) + timedelta(hours=2)).timestamp() * 1000)
    assert stage.enqueue("a", at_ms=at_ms, lane=Lane.LOW) == [b"scheduled"]
    assert stage.members(stage.queue.scheduled) == {"a": at_ms}
    assert stage.ids(Lane.LOW) == []
    body = stage.body("a")
    assert body is not None
    assert (body.lane, body.crashes, body.message) == (Lane.LOW, 0, b"m-a")


def test_a_delay_is_added_to_the_servers_clock(stage: Stage) -> None:
    """A3: never due early (B21), and the producer's own clock does not matter (B7)."""
    before = stage.now_ms()
    assert stage.enqueue("a", delay_ms=LONG_MS) == [b"scheduled"]
    after = stage.now_ms()
    assert before + LONG_MS <= stage.members(stage.queue.scheduled)["a"] <= after + LONG_MS


def test_no_delay_is_ready(stage: Stage) -> None:
    """A3: a delay of zero."""
    assert stage.enqueue("a", delay_ms=0) == [b"ready"]


@pytest.mark.parametrize("at_ms", [0, 1, 1_600_000_000_000])
def test_a_moment_that_has_passed_is_ready(stage: Stage, at_ms: int) -> None:
    """A4."""
    assert stage.enqueue("a", at_ms=at_ms) == [b"ready"]
    assert stage.redis.exists(stage.queue.scheduled) == 0


def test_an_id_of_ones_choice_is_the_tasks_id(stage: Stage) -> None:
    """A16."""
    assert stage.enqueue("custom_id", conflict="x") == [b"ready"]
    assert stage.fetch()[0].task_id == b"custom_id"


def test_an_id_that_is_taken_is_refused_and_the_first_task_is_untouched(stage: Stage) -> None:
    """A17, A18: in every state a task can have, and for a ready as for a scheduled newcomer."""
    stage.complete(*stage.started("finished"))
    stage.retain(*stage.started("completed"))
    stage.retry(*stage.started("retry"))
    stage.archive(*stage.started("archived"))
    stage.started("active")
    stage.enqueue("ready")
    stage.enqueue("scheduled", delay_ms=LONG_MS)
    taken = ["completed", "retry", "archived", "active", "ready", "scheduled"]
    before = {id_: stage.find(id_).message_bytes for id_ in taken}
    for delay_ms in (None, LONG_MS):
        words = stage.enqueue(*taken, conflict="x", delay_ms=delay_ms, message=b"another")
        assert words == [b"conflict"] * len(taken)
    assert {id_: stage.find(id_).message_bytes for id_ in taken} == before
    assert stage.enqueue("finished", conflict="x") == [b"ready"], "a task that is gone holds no id"


def test_two_tasks_of_one_call_cannot_share_an_id(stage: Stage) -> None:
    """A17: the first of them wins."""
    assert stage.enqueue("a", "a", conflict="x") == [b"ready", b"conflict"]
    assert stage.enqueue("b", "b", conflict="x", delay_ms=LONG_MS) == [b"scheduled", b"conflict"]


def test_a_conflict_leaves_the_rest_of_its_call_alone(stage: Stage) -> None:
    """A26: each task of a call has an answer of its own, at its own place."""
    stage.enqueue("taken")
    answer = stage.send(
        stage.next_sequence(),
        (how(Lane.HIGH), "one", b"m"),
        (how(Lane.NORMAL, "x"), "taken", b"m"),
        (how(Lane.LOW, "-", LONG_MS), "two", b"m"),
        (how(Lane.NORMAL, "r"), "taken", b"m"),
    )
    assert answer.words == [b"ready", b"conflict", b"scheduled", b"exists"]


def test_the_existing_task_is_returned_where_the_caller_asks_for_it(stage: Stage) -> None:
    stage.enqueue("a", delay_ms=LONG_MS)
    before = stage.members(stage.queue.scheduled)
    assert stage.enqueue("a", conflict="r", message=b"new") == [b"exists"]
    assert stage.members(stage.queue.scheduled) == before
    assert stage.enqueue("b", conflict="r") == [b"ready"]


def test_a_finished_task_is_replaced_with_everything_kept_of_it(stage: Stage) -> None:
    stage.retain(*stage.started("completed"))
    stage.archive(*stage.started("archived"))
    assert stage.enqueue("completed", conflict="p") == [b"ready"]
    assert stage.enqueue("archived", conflict="p", delay_ms=LONG_MS) == [b"scheduled"]
    assert stage.find("completed").state is State.READY
    assert stage.find("archived").message_bytes == b"m-archived"
    assert stage.members(stage.queue.completed) == stage.members(stage.queue.archived) == {}


def test_a_task_that_is_not_finished_is_never_replaced(stage: Stage) -> None:
    stage.started("active")
    stage.retry(*stage.started("retry"))
    stage.enqueue("ready")
    stage.enqueue("scheduled", delay_ms=LONG_MS)
    ids = ["active", "retry", "ready", "scheduled"]
    before = [stage.find(id_).message_bytes for id_ in ids]
    assert stage.enqueue(*ids, conflict="p", message=b"new") == [b"conflict"] * 4
    assert [stage.find(id_).message_bytes for id_ in ids] == before


def test_a_resend_gets_the_first_answer_and_adds_nothing(stage: Stage) -> None:
    """B5: the reply was lost, so the same call is sent again under the same sequence."""
    stage.enqueue("taken")
    tasks = [(how(Lane.NORMAL), "a", b"m"), (how(Lane.NORMAL, "x"), "taken", b"m")]
    sequence = stage.next_sequence()
    first = stage.send(sequence, *tasks)
    before = stage.dump()
    for _ in range(3):
        assert stage.send(sequence, *tasks).words == first.words == [b"ready", b"conflict"]
    assert stage.dump() == before


def test_a_resend_adds_nothing_even_when_its_tasks_have_run(stage: Stage) -> None:
    """B5: an answer that comes late must not run a task twice."""
    sequence = stage.next_sequence()
    task = (how(Lane.NORMAL), "a", b"m")
    stage.send(sequence, task)
    stage.complete(*stage.fetch())
    assert stage.send(sequence, task).words == [b"ready"]
    assert stage.ids(Lane.NORMAL) == []


def test_another_batch_under_a_known_sequence_is_an_error(stage: Stage) -> None:
    """A cloned machine or a fork shares the identity: never a silent drop."""
    stage.send(1, (how(Lane.NORMAL), "a", b"m"))
    stage.send(2, (how(Lane.NORMAL), "b", b"m"))
    before = stage.dump()
    for sequence in (1, 2):
        with pytest.raises(SequenceConflict, match="another batch"):
            stage.send(sequence, (how(Lane.NORMAL), "c", b"m"))
    assert stage.dump() == before


def test_producers_and_queues_have_sequences_of_their_own(stage: Stage) -> None:
    stage.send(7, (how(Lane.NORMAL), "a", b"m"))
    stage.send(1, (how(Lane.NORMAL), "b", b"m"), producer="other")
    stage.beside("elsewhere").send(1, (how(Lane.NORMAL), "c", b"m"))
    stage.send(9, (how(Lane.NORMAL), "d", b"m"))
    assert stage.ids(Lane.NORMAL) == ["a", "b", "d"]


def test_the_first_call_into_a_queue_says_that_it_is_new(stage: Stage) -> None:
    """A24, B19: also after somebody removed the queue, whatever clients remember."""
    task = (how(Lane.NORMAL), "a", b"m")
    assert stage.send(1, task).new_queue
    assert not stage.send(2, (how(Lane.NORMAL), "b", b"m")).new_queue
    assert not stage.send(1, (how(Lane.NORMAL), "c", b"m"), producer="other").new_queue
    stage.redis.delete(*stage.queue.every)
    assert stage.send(3, task).new_queue


def test_workers_are_told_when_a_task_becomes_the_next_to_be_due(stage: Stage) -> None:
    """Forwarders sleep until the next due time they know of; a later one is no news to them."""
    with stage.hearing(stage.queue.hints) as said:
        stage.enqueue("first", delay_ms=LONG_MS)
        stage.enqueue("later", delay_ms=2 * LONG_MS)
        stage.enqueue("sooner", delay_ms=LONG_MS // 2)
    assert said == [b"due", b"due"]


def test_out_of_memory_is_typed_and_nothing_was_written(full: Stage) -> None:
    """Back-pressure: no part of the call is left behind, so that it can be sent again."""
    full.enqueue("before")
    before = full.dump()
    full.redis.config_set("maxmemory", 1)
    tasks = [(how(Lane.NORMAL), f"t{i}", b"m" * 1000) for i in range(100)]
    for batch in (tasks, [(how(Lane.LOW, "x", LONG_MS), "later", b"m")]):
        with pytest.raises(OutOfMemory, match="maxmemory"):
            full.send(2, *batch)
        assert full.dump() == before
    full.redis.config_set("maxmemory", 0)
    assert len(full.send(2, *tasks).words) == 100


def test_a_flushed_script_cache_costs_nothing(full: Stage) -> None:
    """NOSCRIPT: the runner loads the script and asks again; nothing is stored twice."""
    full.enqueue("a")
    full.redis.script_flush()
    full.enqueue("b")
    full.redis.script_flush()
    full.complete(*full.fetch())
    assert full.ids(Lane.NORMAL) == []
    full.redis.script_flush()
    both = [
        producing.enqueue(full.queue, "p", sequence, [how(Lane.NORMAL), f"t{sequence}", b"m"])
        for sequence in (11, 12)
    ]
    assert [answer.words for answer in full.runner.run_all(both)] == [[b"ready"], [b"ready"]]
    assert full.ids(Lane.NORMAL) == ["t11", "t12"]


def test_registering_a_queue_twice_changes_nothing(stage: Stage) -> None:
    """A8: the name is listed once."""
    for _ in range(2):
        stage.run(producing.register(stage.keys.queues, "default"))
    assert stage.redis.smembers(stage.keys.queues) == {b"default"}


def test_queue_names_keep_their_case(stage: Stage) -> None:
    """A9."""
    other = stage.beside("Default")
    stage.enqueue("a")
    other.enqueue("b")
    assert (stage.ids(Lane.NORMAL), other.ids(Lane.NORMAL)) == (["a"], ["b"])
    other.check()
