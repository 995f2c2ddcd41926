"""Limits of a queue as the enqueue scripts hold them."""

from __future__ import annotations

from typing import Any

import pytest

from streamq.broker import inspecting, moving, producing, steering
from streamq.broker.producing import GroupRule, LockRule, how
from streamq.codec import MessageTemplate
from streamq.model.lanes import Lane
from streamq.model.queue_limits import NO_LIMITS, QueueLimits
from tests.broker import locks
from tests.broker.stage import LONG_MS, Stage


@pytest.fixture
def limited(stage: Stage) -> Stage:
    """A queue that has a limit which nothing reaches."""
    limit(stage, size=1_000_000)
    return stage


def limit(stage: Stage, **limits: Any) -> None:
    for command in steering.set_limits(stage.queue, QueueLimits(**limits)):
        stage.run(command)


def send(stage: Stage, *ids: str, producer: str = "p", message: bytes = b"m", **options: Any) -> list[bytes]:
    """One checked call."""
    tasks = [word for id_ in ids for word in (how(Lane.NORMAL, **options), id_, message)]
    command = producing.enqueue(stage.queue, producer, stage.next_sequence(), tasks, checked=True)
    return list(stage.run(command).words)


def test_the_quick_script_stores_nothing_and_says_why(limited: Stage) -> None:
    """The same call is then sent to the other one, under the same sequence."""
    before = limited.dump()
    answer = limited.send(1, (how(Lane.NORMAL), "a", b"m"))
    assert (answer.words, answer.limited) == ((), True)
    assert limited.dump() == before
    again = producing.enqueue(limited.queue, "p", 1, [how(Lane.NORMAL), "a", b"m"], checked=True)
    answer = limited.run(again)
    assert (answer.words, answer.limited, answer.new_queue) == ([b"ready"], True, True)
    assert limited.run(again).words == [b"ready"]
    assert limited.ids(Lane.NORMAL) == ["a"]


def test_a_call_that_was_answered_is_answered_again_though_limits_came_since(stage: Stage) -> None:
    """B5: a re-send adds nothing and is not refused."""
    task = (how(Lane.NORMAL), "a", b"m")
    stage.send(1, task)
    limit(stage, size=1)
    assert stage.send(1, task).words == [b"ready"]


def test_limits_that_were_taken_away_are_gone(limited: Stage) -> None:
    for command in steering.set_limits(limited.queue, NO_LIMITS):
        limited.run(command)
    assert limited.send(1, (how(Lane.NORMAL), "a", b"m")).words == [b"ready"]
    checked = producing.enqueue(limited.queue, "p", 2, [how(Lane.NORMAL), "b", b"m"], checked=True)
    assert not limited.run(checked).limited, "who asks the checking script hears it, too"


def test_a_full_queue_refuses_and_the_rest_of_the_call_is_as_it_was(stage: Stage) -> None:
    limit(stage, size=3)
    assert send(stage, "a", "b") == [b"ready"] * 2
    assert send(stage, "c", "d", "e") == [b"ready", b"full", b"full"]
    assert stage.ids(Lane.NORMAL) == ["a", "b", "c"]


def test_the_size_counts_what_is_not_finished(stage: Stage) -> None:
    """Ready, active, scheduled, to be tried again and in groups; not what is kept of finished tasks."""
    limit(stage, size=5)
    send(stage, "kept", "dead", "retry", "active")
    kept, dead, retry, _ = stage.fetch()
    send(stage, "scheduled", delay_ms=LONG_MS)
    assert send(stage, "x") == [b"full"]
    stage.retain(kept)
    stage.archive(dead)
    stage.retry(retry)
    assert send(stage, "member", group=GroupRule("t", "g", LONG_MS)) == [b"aggregating"]
    assert send(stage, "last", "x") == [b"ready", b"full"]


def test_a_task_that_takes_anothers_place_finds_room_in_a_full_queue(stage: Stage) -> None:
    limit(stage, size=1)
    first = how(Lane.NORMAL, lock=LockRule("b"), delay_ms=LONG_MS)
    replace = how(Lane.NORMAL, lock=LockRule("d", "p"))
    words = [
        stage.send(stage.next_sequence(), (one, f"{id_} K", b"m")).words
        for one, id_ in ((first, "a"), (first, "b"), (replace, "c"), (how(Lane.LOW, lock=LockRule("d")), "d"))
    ]
    assert words == [[b"scheduled"], [b"merged:a"], [b"ready"], [b"duplicate:c"]]
    assert locks.enqueue(stage, "e", key="other") == [b"full"]


def test_large_tasks_are_refused(stage: Stage) -> None:
    limit(stage, task_bytes=10)
    assert send(stage, "a", message=b"m" * 10) == [b"ready"]
    assert send(stage, "b", message=b"m" * 11) == [b"large"]


def message(task_type: str, **fields: Any) -> bytes:
    return MessageTemplate({"type": task_type, **fields}).encode(b"\x82\x80\xa0", 1)


@pytest.mark.parametrize(
    "task_type, allowed",
    [
        ("mail:send", True),
        ("mail:", True),
        ("mail", False),
        ("mails", False),
        ("report", True),
        ("reports", False),
        ("bericht:täglich", True),
        ("x" * 23, True),
        ("x" * 24, True),
        ("x" * 25, False),
        ("y" * 200, True),
        ("", False),
    ],
)
def test_types_are_names_and_beginnings(stage: Stage, task_type: str, allowed: bool) -> None:
    """Read from the message as the encoder writes it, whatever options follow."""
    limit(stage, types=["mail:*", "report", "bericht:täglich", "x" * 23, "x" * 24, "y" * 200])
    fields = {"max_retries": 3, "headers": {"t": "report"}, "lock": "d"}
    word = b"ready" if allowed else b"type"
    assert send(stage, "a", message=message(task_type)) == [word]
    assert send(stage, "b", message=message(task_type, **fields)) == [word]


def test_what_is_no_message_is_of_no_type(stage: Stage) -> None:
    limit(stage, types=["*x"])
    assert send(stage, "a", message=b"") == [b"type"]
    assert send(stage, "b", message=b"\xa1xx") == [b"type"]


def test_a_rate_lets_a_burst_in_and_says_when_the_next_may_come(stage: Stage) -> None:
    limit(stage, rate=(3, 3600))
    assert send(stage, "a", "b") == [b"ready"] * 2
    [last, late, later] = send(stage, "c", "d", "e")
    assert last == b"ready"
    for word in (late, later):
        name, wait = word.split(b":")
        assert name == b"rate"
        assert 1_100_000 < int(wait) <= 1_200_000, "one in twenty minutes"
    assert 0 < stage.redis.pttl(stage.queue.rates) <= 86_400_000, "it goes when it is unused"
    assert stage.ids(Lane.NORMAL) == ["a", "b", "c"]


def test_a_rate_recovers_step_by_step(stage: Stage) -> None:
    """By Redis's clock: what is used up is a moment, and time passes it."""
    limit(stage, rate=(2, 3600))
    send(stage, "a", "b")
    used = int(stage.redis.hget(stage.queue.rates, "q"))
    stage.redis.hset(stage.queue.rates, "q", used - 1_800_000_000)
    words = send(stage, "c", "d")
    assert words[0] == b"ready"
    assert words[1].startswith(b"rate:")


def test_each_producer_has_a_rate_of_its_own(stage: Stage) -> None:
    limit(stage, producer_rate=(1, 3600))
    assert send(stage, "a", producer="one") == [b"ready"]
    assert send(stage, "b", producer="one")[0].startswith(b"rate:")
    assert send(stage, "c", producer="two") == [b"ready"]


def test_what_is_refused_uses_nothing_up(stage: Stage) -> None:
    """Neither a duplicate, nor a task that another limit refuses."""
    limit(stage, rate=(2, 3600), producer_rate=(2, 3600), task_bytes=10)
    assert locks.enqueue(stage, "a", "b", "c", message=b"m") == [b"ready", b"duplicate:a", b"duplicate:a"]
    assert send(stage, "d", message=b"m" * 11) == [b"large"]
    assert send(stage, "e", message=b"m") == [b"ready"]
    assert send(stage, "f", message=b"m")[0].startswith(b"rate:")


def test_new_rates_begin_anew(stage: Stage) -> None:
    limit(stage, rate=(1, 3600))
    send(stage, "a")
    limit(stage, rate=(1, 60))
    assert send(stage, "b") == [b"ready"]


def test_rates_of_producers_that_are_forgotten_are_forgotten(stage: Stage) -> None:
    limit(stage, producer_rate=(1, 3600))
    send(stage, "a", producer="silent")
    stage.redis.hset(stage.queue.producers, "silent", "1 1000 a ready")
    send(stage, "b", producer="alive")
    assert stage.run(moving.forget_producers(stage.queue, LONG_MS)) == (b"0", 1)
    assert stage.redis.hkeys(stage.queue.rates) == [b"alive"]


def test_a_refused_task_leaves_nothing_behind(stage: Stage) -> None:
    """No lock, no id, no place in a group."""
    limit(stage, size=1)
    send(stage, "first")
    before = stage.dump()
    assert locks.enqueue(stage, "a") == [b"full"]
    assert send(stage, "b", conflict="x") == [b"full"]
    assert send(stage, "c", group=GroupRule("t", "g", LONG_MS)) == [b"full"]
    assert send(stage, "d", delay_ms=LONG_MS) == [b"full"]
    after = stage.dump()
    assert {key for key in after if after[key] != before.get(key)} == {stage.queue.producers}


def test_limits_are_read_back(limited: Stage) -> None:
    assert limited.run(inspecting.limits(limited.queue)) == QueueLimits(size=1_000_000)


def test_what_takes_the_place_of_another_task_is_held_to_all_limits_but_the_size(stage: Stage) -> None:
    """The queue does not grow by it, also not for the next one of the call."""
    limit(stage, size=2, task_bytes=9, rate=(4, 3600))
    first = how(Lane.NORMAL, lock=LockRule("b", "x", 0))
    tasks = [(first, f"t{number} k", b"m") for number in range(3)]
    answer = stage.send(stage.next_sequence(), *tasks, (first, "other k2", b"m"))
    assert answer.words == [b"ready", b"merged:t0", b"merged:t0", b"ready"]
    assert locks.enqueue(stage, "b", mode="b", key="k", message=b"m" * 10) == [b"large"]
    [word] = locks.enqueue(stage, "b", mode="b", key="k", message=b"newest")
    assert word.startswith(b"rate:")
    assert [entry.message for entry in stage.fetch()] == [b"m", b"m"]
