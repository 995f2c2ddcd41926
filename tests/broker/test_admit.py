"""Admit: may these tasks start now, by all of their limits? Counted for all limits, or for none."""

from __future__ import annotations

from typing import Any

import pytest

from streamq.broker.limiting import LONGEST_WAIT_MS, Ask, Rule, admit, token
from streamq.errors import OutOfMemory, ServerError
from streamq.model.lanes import Lane
from streamq.model.run_limits import Concurrency, RunLimit, SlidingWindow, TokenBucket
from tests.broker.stage import Stage

WAITS = "until others end"
HOUR_US = 3_600_000_000


def rule(limit: RunLimit, name: str = "x") -> Rule:
    return Rule.of(name, limit)


def ask(stage: Stage, *tokens: bytes | str, by: Rule | list[Rule]) -> list[Any]:
    """Ask for tasks under these tokens, all by the same rules. Answers 0, ms to wait, or WAITS."""
    rules = by if isinstance(by, list) else [by]
    asks = [Ask(one.encode() if isinstance(one, str) else one, b"id", rules) for one in tokens]
    return [wait if wait >= 0 else WAITS for wait in stage.run(admit(stage.queue, asks)).waits_ms]


def running(stage: Stage, *ids: str, lane: Lane = Lane.NORMAL) -> list[bytes]:
    """Tokens of tasks that a worker runs."""
    return [token(entry) for entry in stage.started(*ids, lane=lane)]


def unseen(stage: Stage, name: str = "x") -> None:
    """Let all tokens be due to be looked after."""
    key = stage.queue.limiter(name)
    for member in stage.redis.zrange(key, 0, -1):
        stage.redis.zadd(key, {member: 0})


# Concurrency


def test_no_more_start_than_may_run_at_once(stage: Stage) -> None:
    """I10: also of those that ask in one call."""
    two = rule(Concurrency(2))
    assert ask(stage, *running(stage, "a", "b", "c"), by=two) == [0, 0, WAITS]
    assert ask(stage, *running(stage, "d"), by=two) == [WAITS]


def test_a_token_of_a_task_that_ended_is_taken_over(stage: Stage) -> None:
    """Whoever settled it forgot to give the token back, or died before."""
    [one] = stage.started("a")
    [other] = running(stage, "b")
    single = rule(Concurrency(1))
    assert ask(stage, token(one), by=single) == [0]
    unseen(stage)
    assert ask(stage, other, by=single) == [WAITS]
    stage.complete(one)
    unseen(stage)
    assert ask(stage, other, by=single) == [0]


@pytest.mark.parametrize("lane", [Lane.HIGH, Lane.NORMAL, Lane.LOW])
def test_the_dead_workers_token_comes_back_when_its_task_is_recovered(stage: Stage, lane: Lane) -> None:
    """I10: until then it counts, since nobody knows whether the task still runs; its new entry asks anew."""
    single = rule(Concurrency(1))
    [entry] = stage.started("a", lane=lane)
    assert ask(stage, token(entry), by=single) == [0]
    stage.let_idle(entry)
    unseen(stage)
    assert ask(stage, *running(stage, "b"), by=single) == [WAITS]
    stage.recover(lane, lease_ms=1000)
    [again] = stage.fetch(lanes=[Lane.FRONT])
    unseen(stage)
    assert ask(stage, token(again), by=single) == [0]


def test_tokens_are_looked_after_a_page_at_a_time(stage: Stage) -> None:
    """Those that were not seen alive for longest come first, so each of many is looked at some day."""
    many = rule(Concurrency(120))
    entries = stage.started(*(f"t{place}" for place in range(120)))
    tokens = [token(entry) for entry in entries]
    assert set(ask(stage, *tokens[:100], by=many) + ask(stage, *tokens[100:], by=many)) == {0}
    key: Any = stage.queue.limiter("x")
    unseen(stage)
    [late] = running(stage, "late")
    for left in (70, 20, 0):
        assert ask(stage, late, by=many) == [WAITS]
        assert stage.redis.zcount(key, 0, 0) == left
    unseen(stage)
    last = stage.redis.zrange(key, -1, -1)[0]
    stage.complete(*(entry for entry in entries if token(entry) == last))
    assert [ask(stage, late, by=many) for _ in range(3)] == [[WAITS], [WAITS], [0]]


def test_a_token_seen_alive_a_moment_ago_is_not_looked_at_again(stage: Stage) -> None:
    """So that a crowd of waiting tasks does not look after the same tokens over and over."""
    [entry] = stage.started("a")
    single = rule(Concurrency(1))
    assert ask(stage, token(entry), by=single) == [0]
    stage.complete(entry)
    assert ask(stage, *running(stage, "b"), by=single) == [WAITS]


def test_a_token_of_a_lane_without_group_is_dead(stage: Stage) -> None:
    """Someone deleted the lane; nothing of it can be running under that entry."""
    single = rule(Concurrency(1))
    stage.redis.zadd(stage.queue.limiter("x"), {b"l1-1": 0})
    assert ask(stage, *running(stage, "a"), by=single) == [0]


def test_places_that_were_found_free_are_told(stage: Stage) -> None:
    """So that as many of those that wait are roused: nobody gave these tokens back."""
    two, other = rule(Concurrency(2)), rule(Concurrency(5), "y")
    entries = stage.started("a", "b")
    assert ask(stage, *map(token, entries), by=two) == [0, 0]
    stage.complete(*entries)
    unseen(stage)
    [late] = running(stage, "late")
    admission = stage.run(admit(stage.queue, [Ask(late, b"late", [other, two])]))
    assert admission == ([0], [("x", b""), ("x", b"")])
    assert stage.run(admit(stage.queue, [Ask(late, b"late", [other, two])])).freed == []


def test_who_waits_is_noted_until_it_may_start(stage: Stage) -> None:
    """By when it last asked; no longer when it waits for another limit by now."""
    single, window = rule(Concurrency(1)), rule(SlidingWindow(1, per=60), "w")
    turn = stage.queue.turn("x")

    def admitted(name: bytes, by: list[Rule]) -> bool:
        return stage.run(admit(stage.queue, [Ask(name, name, by)])).waits_ms == [0]

    assert admitted(b"n1-1", [single])
    assert not admitted(b"n2-1", [single])
    assert not admitted(b"n3-1", [single])
    assert set(stage.redis.zrange(turn, 0, -1)) == {b"n2-1", b"n3-1"}
    stage.redis.zrem(stage.queue.limiter("x"), b"n1-1")
    assert admitted(b"n2-1", [single])
    assert stage.redis.zrange(turn, 0, -1) == [b"n3-1"]
    stage.redis.zrem(stage.queue.limiter("x"), b"n2-1")
    assert admitted(b"n4-1", [window])
    assert not admitted(b"n3-1", [single, window])
    assert not stage.redis.exists(turn)


def test_a_token_that_makes_no_sense_is_dead(stage: Stage) -> None:
    """It must not hold a place for ever."""
    single = rule(Concurrency(1))
    for odd in (b"?1-1", b"", b"nine"):
        stage.redis.zadd(stage.queue.limiter("x"), {odd: 0})
        assert ask(stage, *running(stage, f"a{odd!r}"), by=single) == [0]
        stage.redis.delete(stage.queue.limiter("x"))


def test_a_crowd_that_waits_for_others_asks_one_after_the_other(stage: Stage) -> None:
    """By itself at most 200 times a second for each that may run at once, however many wait."""
    for limit, last_ms in ((1, 500), (10, 50)):
        limiting = Rule.of(f"l{limit}", Concurrency(limit))
        assert set(ask(stage, *(f"n{limit}-{at}" for at in range(limit)), by=limiting)) == {0}
        waiting = [Ask(b"n100-%d" % at, b"t%d" % at, [limiting]) for at in range(100)]
        turns = [-wait for wait in stage.run(admit(stage.queue, waiting)).waits_ms]
        assert turns == sorted(turns)
        assert (turns[0], turns[-1]) == (last_ms // 100 or 1, last_ms)


# Token bucket


def test_a_bucket_lets_a_burst_through_and_then_one_per_token(stage: Stage) -> None:
    """The wait is that until the next token, and each who waits is given a turn of its own."""
    bucket = rule(TokenBucket(rate=1, per=10, burst=3))
    answers = ask(stage, *"abcdef", by=bucket)
    assert answers[:3] == [0, 0, 0]
    for turn, answer in enumerate(answers[3:], start=1):
        assert turn * 10_000 - 1_000 <= answer <= turn * 10_000


def test_turns_are_kept_between_calls(stage: Stage) -> None:
    """Tasks that wait do not all come back for the same token."""
    bucket = rule(TokenBucket(rate=1, per=10))
    waits = [ask(stage, one, by=bucket)[0] for one in "abcd"]
    assert waits[0] == 0
    assert [round(wait, -4) for wait in waits[1:]] == [10_000, 20_000, 30_000]


def test_a_turn_is_never_further_away_than_the_longest_wait(stage: Stage) -> None:
    """Those before may not need theirs: they may be deleted, or wait for another limit."""
    bucket = rule(TokenBucket(rate=1, per=LONGEST_WAIT_MS / 1000))
    answers = ask(stage, *"abcd", by=bucket)
    assert answers[0] == 0
    assert LONGEST_WAIT_MS - 1_000 <= answers[1] <= LONGEST_WAIT_MS
    assert answers[2:] == [LONGEST_WAIT_MS, LONGEST_WAIT_MS]


def test_tokens_come_back_with_time(stage: Stage) -> None:
    """By Redis's clock: 20 ms after it was used up there is one again, and no second one at the same time."""
    bucket = rule(TokenBucket(rate=50))
    assert ask(stage, "a", by=bucket) == [0]
    before = stage.now_ms()
    stage.until(lambda: ask(stage, "b", by=bucket) == [0])
    assert stage.now_ms() - before >= 18


def test_a_bucket_forgets_itself_when_it_is_full_again(stage: Stage) -> None:
    """An idle limiter leaves no key behind."""
    assert ask(stage, "a", by=rule(TokenBucket(rate=1000))) == [0]
    stage.until(lambda: not stage.redis.exists(stage.queue.limiter("x")))
    assert ask(stage, "b", by=rule(Concurrency(1), "other")) == [0]
    assert stage.redis.zrange(stage.queue.limiters, 0, -1) == [b"other"]


# Sliding window


def test_a_window_lets_so_many_start_and_the_next_when_the_first_leaves_it(stage: Stage) -> None:
    window = rule(SlidingWindow(3, per=60))
    answers = ask(stage, *"abcde", by=window)
    assert answers[:3] == [0, 0, 0]
    assert 59_000 <= answers[3] <= 60_000
    assert 79_000 <= answers[4] <= 80_000


def test_a_window_is_exact(stage: Stage) -> None:
    """I10: what counts is every stretch of that length, not stretches that begin at fixed times."""
    key, us = stage.queue.limiter("x"), stage.now_ms() * 1000
    # Two long ago, one just inside of the hour.
    stage.redis.rpush(key, us - 2 * HOUR_US, us - HOUR_US - 1, us - HOUR_US + 60_000_000)
    window = rule(SlidingWindow(3, per=3600))
    answers = ask(stage, *"abc", by=window)
    assert answers[:2] == [0, 0]
    assert 58_000 <= answers[2] <= 60_000


def test_a_window_remembers_no_more_than_lies_in_it(stage: Stage) -> None:
    key, us = stage.queue.limiter("x"), stage.now_ms() * 1000
    stage.redis.rpush(key, *range(us - 2 * HOUR_US, us - 2 * HOUR_US + 50))
    window = rule(SlidingWindow(100, per=3600))
    assert set(ask(stage, *(str(place) for place in range(60)), by=window)) == {0}
    assert stage.redis.llen(key) == 60


def test_a_window_made_smaller_counts_what_started_before(stage: Stage) -> None:
    assert ask(stage, *"abcd", by=rule(SlidingWindow(4, per=60))) == [0, 0, 0, 0]
    [answer] = ask(stage, "e", by=rule(SlidingWindow(2, per=60)))
    assert answer > 59_000
    assert ask(stage, "f", by=rule(SlidingWindow(5, per=60))) == [0]


def test_an_idle_window_is_gone_after_its_time(stage: Stage) -> None:
    assert ask(stage, "a", by=rule(SlidingWindow(1, per=0.01))) == [0]
    stage.until(lambda: not stage.redis.exists(stage.queue.limiter("x")))


# Several limits


def test_what_one_limit_refuses_is_counted_by_none(stage: Stage) -> None:
    """In whatever order they stand."""
    [entry, other] = running(stage, "a", "b")
    single, window = rule(Concurrency(1), "c"), rule(SlidingWindow(2, per=60), "w")
    assert ask(stage, entry, by=[window, single]) == [0]
    assert ask(stage, other, by=[window, single]) == [WAITS]
    assert ask(stage, other, by=[single, window]) == [WAITS]
    assert stage.redis.llen(stage.queue.limiter("w")) == 1
    bucket = rule(TokenBucket(rate=1, per=60), "b")
    assert ask(stage, "x", by=bucket) == [0]
    [answer] = ask(stage, "y", by=[rule(Concurrency(5), "d"), bucket])
    assert answer > 0
    assert not stage.redis.exists(stage.queue.limiter("d"))


def test_a_task_waits_for_the_slowest_of_its_limits(stage: Stage) -> None:
    slow, slower = rule(SlidingWindow(1, per=30), "s"), rule(TokenBucket(rate=1, per=90), "b")
    assert ask(stage, "a", by=[slow, slower]) == [0]
    [answer] = ask(stage, "b", by=[slow, slower])
    assert 89_000 <= answer <= 90_000


def test_a_task_that_waits_for_a_rate_and_for_others_waits_for_the_rate(stage: Stage) -> None:
    """That one is known."""
    both = [rule(Concurrency(1), "c"), rule(TokenBucket(rate=1, per=60), "b")]
    one, other = running(stage, "a", "b")
    assert ask(stage, one, by=both) == [0]
    [wait] = ask(stage, other, by=both)
    assert wait != WAITS
    assert wait > 50_000


def test_tasks_of_one_call_have_each_their_own_limits(stage: Stage) -> None:
    first, second = rule(Concurrency(1), "1"), rule(Concurrency(1), "2")
    asks = [
        Ask(b"na", b"a", [first]),
        Ask(b"nb", b"b", [second]),
        Ask(b"nc", b"c", [second, first]),
    ]
    assert stage.run(admit(stage.queue, asks)).waits_ms == [0, 0, -5]


def test_a_queue_counts_for_itself(stage: Stage) -> None:
    single = rule(Concurrency(1))
    assert ask(stage, "na", by=single) == [0]
    assert ask(stage.beside("other"), "na", by=single) == [0]


# What is left behind


def test_every_key_of_a_limiter_is_registered_and_expires(stage: Stage) -> None:
    """So that a removed queue leaves none, and one that is used no more vanishes."""
    limits: list[RunLimit] = [Concurrency(1), TokenBucket(rate=1, per=60), SlidingWindow(1, per=60)]
    limiters = [rule(limit, f"l{place}") for place, limit in enumerate(limits)]
    assert ask(stage, "a", by=limiters) == [0]
    assert ask(stage, "b", by=limiters) != [0]
    names = [name.decode() for name in stage.redis.zrange(stage.queue.limiters, 0, -1)]
    assert sorted(names) == ["l0", "l1", "l2"]
    kept = {key for name in names for key in (stage.queue.limiter(name), stage.queue.turn(name))}
    found = {key for key in stage.all_keys() if b":limit:" in key or b":turn:" in key}
    assert found <= kept
    # The turn of who waits for others is over in a moment.
    assert len(found - {stage.queue.turn("l0")}) == 5
    scores = dict(stage.redis.zrange(stage.queue.limiters, 0, -1, withscores=True))
    for name in names:
        for key in (stage.queue.limiter(name), stage.queue.turn(name)):
            left_ms = stage.redis.pttl(key)
            assert left_ms != -1
            if left_ms > 0:
                assert scores[name.encode()] - stage.now_ms() >= left_ms - 50


def test_a_limiter_that_only_refuses_is_registered_too(stage: Stage) -> None:
    """Its places are counted by a worker; who waits for one is kept in Redis."""
    assert ask(stage, "a", by=Rule.full("l@w")) == [WAITS]
    assert stage.redis.zrange(stage.queue.limiters, 0, -1) == [b"l@w"]


def test_turns_that_last_longer_than_what_was_counted_keep_their_limiter_registered(stage: Stage) -> None:
    bucket = rule(TokenBucket(rate=1, per=1))
    ask(stage, *[f"n1-{number}" for number in range(20)], by=bucket)
    [(_, gone_ms)] = stage.redis.zrange(stage.queue.limiters, 0, -1, withscores=True)
    assert gone_ms - stage.now_ms() >= stage.redis.pttl(stage.queue.turn("x")) - 50 > 10_000


# When Redis is full


@pytest.mark.parametrize("limit", [Concurrency(1), TokenBucket(rate=1, per=60), SlidingWindow(1, per=60)])
def test_tasks_may_start_when_memory_is_full(full: Stage, limit: RunLimit) -> None:
    """Only tasks that run make room again."""
    [entry] = running(full, "a")
    full.redis.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemory):
        full.enqueue("b")
    assert ask(full, entry, by=rule(limit)) == [0]
    full.redis.config_set("maxmemory", 0)


def test_a_counter_of_another_type_refuses_rather_than_let_all_through(stage: Stage) -> None:
    stage.redis.set(stage.queue.limiter("x"), "odd")
    with pytest.raises(ServerError):
        ask(stage, "na", by=rule(Concurrency(1)))


def test_a_lane_of_another_type_does_not_make_tokens_look_dead(stage: Stage) -> None:
    """Nobody knows whether their tasks run: none is let through."""
    stage.consistent = False
    single = rule(Concurrency(1))
    assert ask(stage, *running(stage, "a"), by=single) == [0]
    unseen(stage)
    stage.redis.set(stage.queue.lanes[Lane.NORMAL], "odd")
    with pytest.raises(ServerError):
        ask(stage, "h1-1", by=single)
    assert stage.redis.zcard(stage.queue.limiter("x")) == 1
