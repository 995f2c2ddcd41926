"""Commands of the limits of running tasks: ask whether tasks may start, give tokens back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamq.broker.command import Command, Word
from streamq.broker.keys import QueueKeys
from streamq.broker.scripts import script
from streamq.broker.working import Entry
from streamq.model.durations import duration_ms
from streamq.model.lanes import Lane
from streamq.model.run_limits import Concurrency, RunLimit, SlidingWindow, TokenBucket

MAX_ADMIT_TASKS = 100
"""Tasks that one call asks for: about 1 ms of Redis's time per limit that each of them has."""

MAX_GIVEN_BACK = 250
"""Tokens of one give_back call."""

LONGEST_WAIT_MS = 300_000
"""What a task is told to wait at most. No turn further off is promised: those before may not need theirs."""


class Rule(NamedTuple):
    """One limiter in Redis, and the limit that it is held to."""

    name: str
    kind: str
    first: int | float
    second: int

    @classmethod
    def full(cls, name: str) -> Rule:
        """One that lets nothing through: for tasks that wait for a place that Redis does not count."""
        return cls(name, "c", 0, 0)

    @classmethod
    def of(cls, name: str, limit: RunLimit) -> Rule:
        """The limiter of that name for this limit."""
        match limit:
            case Concurrency():
                return cls(name, "c", limit.limit, 0)
            case TokenBucket():
                us_per_token = duration_ms("per", limit.per) * 1000 / limit.rate
                return cls(name, "b", round(us_per_token, 3), limit.burst)
            case SlidingWindow():
                return cls(name, "w", limit.limit, duration_ms("per", limit.per) * 1000)
        raise TypeError(f"{type(limit).__name__} is no limit")


@dataclass(frozen=True, slots=True)
class Ask:
    """One task that wants to start, and every rule that must let it."""

    token: bytes
    task_id: bytes
    rules: Sequence[Rule]


class Admission(NamedTuple):
    """What one admit call answers."""

    waits_ms: list[int]
    """Per task: 0 when it may start, else how many ms to wait. Below 0: it waits for another task to end, and
    is roused then; by itself it asks no sooner."""
    freed: list[tuple[str, bytes]]
    """Places found free, because their tasks are not active any more: for give_back, to rouse as many."""


def token(entry: Entry) -> bytes:
    """The name of a task's place among those that run: it counts for as long as its entry is pending."""
    return entry.lane.encode() + entry.entry_id


def admit(queue: QueueKeys, asks: Sequence[Ask]) -> Command[Admission]:
    """Ask for several tasks."""
    places: dict[Rule, int] = {}
    tasks: list[Word] = []
    for ask in asks:
        tasks += (ask.token, ask.task_id, len(ask.rules))
        tasks += (places.setdefault(rule, len(places) + 1) for rule in ask.rules)
    keys = [queue.lanes[lane] for lane in (Lane.FRONT, Lane.HIGH, Lane.NORMAL, Lane.LOW)]
    keys.append(queue.limiters)
    for rule in places:
        keys += limiter_keys(queue, rule.name)
    rules: list[Word] = [str(word) for rule in places for word in rule]

    def parse(reply: list[int]) -> Admission:
        freed = zip(places, reply[len(asks) :], strict=True)
        places_free = [(rule.name, b"") for rule, count in freed for _ in range(count)]
        return Admission(reply[: len(asks)], places_free)

    return Command(script("admit"), tuple(keys), (LONGEST_WAIT_MS, len(places), *rules, *tasks), parse)


class GivenBack(NamedTuple):
    """What one give_back call did."""

    roused: int
    """Tasks that waited and are ready now."""
    waiting: int
    """Tasks that may still wait for the same limiters; one may be counted twice."""


def give_back(queue: QueueKeys, tokens: Iterable[tuple[str, bytes]]) -> Command[GivenBack]:
    """Give tokens back: pairs of the limiter's name and the token; empty for a place that is free already.

    At most ``MAX_GIVEN_BACK``.
    """
    pairs = list(tokens)
    lanes = [queue.lanes[lane] for lane in (Lane.HIGH, Lane.NORMAL, Lane.LOW)]
    keys = (
        *(*lanes, queue.index, queue.parked, queue.retry, queue.limiters),
        *(key for name, _ in pairs for key in limiter_keys(queue, name)),
    )
    return Command(script("give_back"), keys, [word for pair in pairs for word in pair], _parse_given)


def _parse_given(reply: Any) -> GivenBack:
    return GivenBack(*reply)


def limiter_keys(queue: QueueKeys, name: str) -> tuple[bytes, bytes]:
    """What a limiter counted, and who waits for it."""
    return queue.limiter(name), queue.turn(name)


def limiter_names(queue: QueueKeys, start: int, stop: int) -> Command[list[str]]:
    """The names of limiters that have keys, from place ``start`` to ``stop``."""

    def parse(reply: Any) -> list[str]:
        return [name.decode() for name in reply]

    return Command(None, (queue.limiters,), ("ZRANGE", queue.limiters, start, stop), parse)
