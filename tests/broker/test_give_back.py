"""Give back: tokens of tasks that ended; who waited for their places is ready again at once."""

from __future__ import annotations

from streamq.broker.limiting import Ask, GivenBack, Rule, admit, give_back, limiter_names, token
from streamq.broker.working import Entry
from streamq.model.lanes import Lane
from streamq.model.parked import Parked, Reason
from streamq.model.run_limits import Concurrency
from streamq.model.states import State
from tests.broker.stage import LONG_MS, Stage

ONE = Rule.of("one", Concurrency(1))
TWO = Rule.of("two", Concurrency(2))
NOBODY = GivenBack(0, 0)


def ask(stage: Stage, entry: Entry, *rules: Rule) -> bool:
    """Whether the task may start."""
    asks = [Ask(token(entry), entry.task_id, rules or (ONE, TWO))]
    return stage.run(admit(stage.queue, asks)).waits_ms == [0]


def give(stage: Stage, entry: Entry, *names: str) -> GivenBack:
    return stage.run(give_back(stage.queue, [(name, token(entry)) for name in names or ("one", "two")]))


def put_back(stage: Stage, entry: Entry, *, reason: Reason | None = Reason.LIMITED) -> None:
    """As the settler does it with a task that may not start."""
    value = Parked(entry.home, entry.crashes, b"m-" + entry.task_id, reason).pack()
    stage.settle_retry(entry, LONG_MS, value)


def test_a_token_that_was_given_back_can_be_taken_at_once(stage: Stage) -> None:
    one, other = stage.started("a", "b")
    assert ask(stage, one)
    assert not ask(stage, other, ONE)
    give(stage, one)
    assert ask(stage, other, ONE)


def test_a_limiter_is_forgotten_with_its_last_token(stage: Stage) -> None:
    """Not before: a queue that is removed takes the keys of those along that it knows."""
    one, other = stage.started("a", "b")
    assert ask(stage, one, TWO)
    assert ask(stage, other, TWO)
    give(stage, one, "two")
    assert stage.redis.zrange(stage.queue.limiters, 0, -1) == [b"two"]
    give(stage, other, "two")
    assert stage.redis.exists(stage.queue.limiters) == 0


def test_giving_back_twice_takes_nobody_elses(stage: Stage) -> None:
    """Safe to send again after a lost reply; and nobody is roused for a place that is not free."""
    one, other, third = stage.started("a", "b", "c")
    assert ask(stage, one, ONE)
    give(stage, one, "one")
    assert ask(stage, other, ONE)
    assert not ask(stage, third, ONE)
    put_back(stage, third)
    assert give(stage, one, "one") == NOBODY
    assert stage.find("c").state is State.RETRY


def test_who_waits_is_ready_at_once(stage: Stage) -> None:
    """In its own lane, with its message and its crashes, however long it would have waited."""
    [holder] = stage.started("a")
    waiting = stage.started("b", lane=Lane.HIGH)[0]._replace(crashes=2)
    assert ask(stage, holder, ONE)
    assert not ask(stage, waiting, ONE)
    put_back(stage, waiting)
    assert give(stage, holder, "one") == (1, 0)
    [again] = stage.fetch(lanes=[Lane.HIGH])
    assert (again.task_id, again.message, again.crashes, again.home) == (b"b", b"m-b", 2, Lane.HIGH)


def test_one_is_roused_for_each_place_and_first_the_one_that_asked_longest_ago(stage: Stage) -> None:
    holders, waiting = stage.started("a", "b"), stage.started("c", "d", "e", "f")
    assert all(ask(stage, holder, TWO) for holder in holders)
    for entry in waiting:
        assert not ask(stage, entry, TWO)
        put_back(stage, entry)
    turn = stage.queue.turn("two")
    for place, name in enumerate("ecfd"):
        stage.redis.zadd(turn, {name: stage.now_ms() - 1000 + place})
    pairs = [("two", token(holder)) for holder in holders]
    assert stage.run(give_back(stage.queue, pairs)).roused == 2
    assert stage.ids(Lane.NORMAL)[2:] == ["e", "c"]
    assert sorted(stage.members(stage.queue.retry)) == ["d", "f"]


def test_a_place_that_is_free_already_rouses_as_well(stage: Stage) -> None:
    """Its task was not active any more, or it is one that Redis does not count."""
    [waiting] = stage.started("a")
    assert not ask(stage, waiting, Rule.full("here@w1"))
    put_back(stage, waiting)
    assert stage.run(give_back(stage.queue, [("here@w1", b"")])) == (1, 0)
    assert stage.run(give_back(stage.queue, [("here@w1", b"")])) == NOBODY
    assert not stage.run(limiter_names(stage.queue, 0, -1))


def test_a_task_that_failed_waits_for_its_own_time(stage: Stage) -> None:
    """It was refused before, ran without being asked for, and has a delay of its policy now."""
    holder, failed = stage.started("a", "b")
    assert ask(stage, holder, ONE)
    assert not ask(stage, failed, ONE)
    put_back(stage, failed, reason=None)
    assert give(stage, holder, "one") == (0, 1)
    assert stage.find("b").state is State.RETRY


def test_a_task_that_is_just_being_put_back_is_passed_over_and_kept(stage: Stage) -> None:
    """The next one is roused; it has its turn when the next place is free."""
    holder, second, late, waiting = stage.started("a", "b", "c", "d")
    assert ask(stage, holder, TWO)
    assert ask(stage, second, TWO)
    assert not ask(stage, late, TWO)
    stage.redis.zadd(stage.queue.turn("two"), {"c": stage.now_ms() - 1000})
    assert not ask(stage, waiting, TWO)
    put_back(stage, waiting)
    assert give(stage, holder, "two") == (1, 1)
    assert stage.find("d").state is State.READY
    put_back(stage, late)
    assert give(stage, second, "two") == (1, 0)
    assert stage.find("c").state is State.READY


def test_a_task_that_waits_no_more_is_forgotten(stage: Stage) -> None:
    """It was deleted, or runs elsewhere; nobody took its name out."""
    [holder] = stage.started("a")
    assert ask(stage, holder, ONE)
    stage.redis.zadd(stage.queue.turn("one"), {"gone": stage.now_ms() - 60_000})
    assert give(stage, holder, "one") == NOBODY
    assert not stage.redis.exists(stage.queue.turn("one"))


def test_the_last_token_takes_its_limiter_along(stage: Stage) -> None:
    """However many values a key takes on, only those in use are remembered."""
    [entry] = stage.started("a")
    ask(stage, entry)
    assert stage.run(limiter_names(stage.queue, 0, -1)) == ["one", "two"]
    give(stage, entry, "one")
    assert stage.run(limiter_names(stage.queue, 0, -1)) == ["two"]
    give(stage, entry, "two")
    assert not [key for key in stage.all_keys() if b"limit" in key]


def test_who_waits_is_roused_when_memory_is_full(full: Stage) -> None:
    """Only tasks that run make room again."""
    holder, waiting = full.started("a", "b")
    assert ask(full, holder, ONE)
    assert not ask(full, waiting, ONE)
    put_back(full, waiting)
    full.redis.config_set("maxmemory", 1)
    assert give(full, holder, "one") == (1, 0)
    full.redis.config_set("maxmemory", 0)


def test_one_that_was_cancelled_to_be_retried_later_is_not_roused(stage: Stage) -> None:
    """Its time is what the cancel has said, whatever becomes free before."""
    one, other = stage.started("a", "b")
    assert ask(stage, one, ONE)
    assert not ask(stage, other, ONE)
    put_back(stage, other)
    assert stage.cancel("b", "retry", LONG_MS) == b"ok"
    assert give(stage, one, "one").roused == 0
    found = stage.find("b")
    assert found.state is State.RETRY
    assert found.parked == Parked(Lane.NORMAL, 0, b"m-b")
