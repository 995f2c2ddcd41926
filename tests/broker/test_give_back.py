"""Give back: tokens of tasks that ended let others start at once."""

from __future__ import annotations

from streamq.broker.limiting import Ask, Rule, admit, give_back, limiter_names
from streamq.model.run_limits import Concurrency
from tests.broker.stage import Stage

ONE = Rule.of("one", Concurrency(1))
TWO = Rule.of("two", Concurrency(2))


def ask(stage: Stage, token: bytes) -> int:
    return stage.run(admit(stage.queue, [Ask(token, (ONE, TWO))]))[0]


def test_a_token_that_was_given_back_can_be_taken_at_once(stage: Stage) -> None:
    assert ask(stage, b"n1-1") == 0
    assert ask(stage, b"n2-1") < 0
    assert stage.run(give_back(stage.queue, [("one", b"n1-1"), ("two", b"n1-1")])) == 2
    assert ask(stage, b"n2-1") == 0


def test_giving_back_twice_takes_nobody_elses(stage: Stage) -> None:
    """Safe to send again after a lost reply."""
    ask(stage, b"n1-1")
    pairs = [("one", b"n1-1"), ("two", b"n1-1")]
    stage.run(give_back(stage.queue, pairs))
    assert ask(stage, b"n2-1") == 0
    assert stage.run(give_back(stage.queue, pairs)) == 0
    assert ask(stage, b"n3-1") < 0


def test_the_last_token_takes_its_limiter_along(stage: Stage) -> None:
    """However many values a key takes on, only those in use are remembered."""
    ask(stage, b"n1-1")
    assert stage.run(limiter_names(stage.queue, 0, -1)) == ["one", "two"]
    stage.run(give_back(stage.queue, [("one", b"n1-1")]))
    assert stage.run(limiter_names(stage.queue, 0, -1)) == ["two"]
    stage.run(give_back(stage.queue, [("two", b"n1-1")]))
    assert not stage.all_keys()


def test_turns_are_owed_no_more_when_nobody_holds_a_token(stage: Stage) -> None:
    """So that a limiter which is not in use leaves nothing behind."""
    ask(stage, b"n1-1")
    stage.redis.set(stage.queue.turn("one"), 1)
    stage.run(give_back(stage.queue, [("one", b"n1-1"), ("two", b"n1-1")]))
    assert not stage.all_keys()
