"""Random lives: whatever comes after whatever, every accepted task is in one place, and in the right one.

A machine plays steps of clients, workers, operators and crashes against one real Redis and a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from streamq.broker.command import Command
from streamq.broker.grouping import flush_group
from streamq.broker.keys import GROUP
from streamq.broker.producing import GroupRule, LockRule, how
from streamq.broker.working import Entry, parse_entries, read_own
from streamq.codec import decode_batch, decode_message
from streamq.model.cancelling import CancelOutcome
from streamq.model.info import Audit
from streamq.model.lanes import LANES, Lane
from tests.broker.driving import audit, sweep
from tests.broker.life import ACTIVE, ARCHIVED, COMPLETED, ENDED, LIVES, WAITS, Life
from tests.broker.stage import LONG_MS, Stage
from tests.servers import Server

T = TypeVar("T")

NEVER = 9_007_199_254_740_991
CRASH_LIMIT = 2
USER_LANES = (Lane.HIGH, Lane.NORMAL, Lane.LOW)
WORKERS = ("w1", "w2")


class Numbers:
    """Choices of one step, taken from one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def pick(self, items: Sequence[T]) -> T:
        self.number, place = divmod(self.number, len(items))
        return items[place]

    def flag(self) -> bool:
        return self.pick((False, True))


class Machine:
    """One queue, fresh for each example, and the model of it."""

    def __init__(self, queue: Stage) -> None:
        self.queue = queue
        self.life = Life()
        self.held: dict[str, tuple[Entry, str]] = {}
        self.paused = False
        self.made = 0

    def fresh(self, kind: str) -> tuple[str, bytes]:
        """A new id, and a message that nothing else has."""
        self.made += 1
        return f"{kind}{self.made}", f"message {self.made}".encode()

    def send(self, first: bytes, id_: str, message: bytes) -> str:
        [word] = self.queue.send(self.queue.next_sequence(), (first, id_, message)).words
        return word.decode()

    # Clients

    def enqueue(self, choose: Numbers) -> None:
        lane, delayed = choose.pick(USER_LANES), choose.flag()
        id_, message = self.fresh("plain")
        word = self.send(how(lane, delay_ms=LONG_MS if delayed else None), id_, message)
        assert word == ("scheduled" if delayed else "ready")
        self.life.accept(id_, message)

    def enqueue_under_an_id(self, choose: Numbers) -> None:
        id_, conflict, delayed = choose.pick(("own1", "own2")), choose.pick("xrp"), choose.flag()
        _, message = self.fresh("own")
        first = how(Lane.NORMAL, conflict, LONG_MS if delayed else None)
        expected = self.life.enqueue(id_, message, conflict, "scheduled" if delayed else "ready")
        assert self.send(first, id_, message) == expected

    def enqueue_with_a_lock(self, choose: Numbers) -> None:
        mode, clash, lane = choose.pick("kdsbk"), choose.pick("xrp"), choose.pick(USER_LANES)
        delayed = choose.flag() and choose.flag()
        id_, message = self.fresh(mode)
        first = how(lane, delay_ms=LONG_MS if delayed else None, lock=LockRule(mode, clash))
        expected = self.life.lock(mode, id_, message, clash, "scheduled" if delayed else "ready")
        assert self.send(first, f"{id_} {mode}", message) == expected

    def enqueue_into_a_group(self, choose: Numbers) -> None:
        group, locked, clash = choose.pick("gh"), choose.flag(), choose.pick("xrp")
        delayed = choose.flag() and choose.flag()
        id_, message = self.fresh("member")
        lock = LockRule("d", clash) if locked else None
        delay_ms = LONG_MS if delayed else None
        first = how(Lane.NORMAL, delay_ms=delay_ms, lock=lock, group=GroupRule("t", group, LONG_MS))
        expected = "scheduled" if delayed else "aggregating"
        if locked:
            expected = self.life.lock("d", id_, message, clash, expected)
        else:
            self.life.accept(id_, message)
        assert self.send(first, f"{id_} d" if locked else id_, message) == expected

    # Workers

    def fetch(self, choose: Numbers) -> None:
        self.fetch_by(choose.pick(WORKERS), choose.pick((1, 2, 4)))

    def fetch_by(self, consumer: str, count: int) -> None:
        entries = self.queue.fetch(consumer, count)
        assert not (self.paused and entries)
        for entry in entries:
            id_ = entry.task_id.decode()
            assert self.life.tasks[id_].state == WAITS
            assert self.seen(id_, entry.message) == self.life.tasks[id_].message
            self.life.move(id_, ACTIVE)
            self.held[id_] = (entry, consumer)

    def seen(self, id_: str, message: bytes) -> bytes:
        """The message; of a batch, as the model knows it: its members, each with its own."""
        if not id_.startswith("batch"):
            return message
        members = decode_batch(decode_message(message).payload)
        for member, body in members:
            assert self.life.tasks[member.decode()].message == body
        return b" ".join(member for member, _ in members)

    def settle(self, choose: Numbers) -> None:
        if self.held:
            ends = ("complete", "retry", "release", "complete", "archive", "retain")
            self.settle_one(choose.pick(list(self.held)), choose.pick(ends))
            if choose.flag():
                self.sweep()

    def settle_one(self, id_: str, end: str) -> None:
        entry, _ = self.held.pop(id_)
        steps: dict[str, tuple[Callable[[], list[bytes]], str]] = {
            "complete": (lambda: self.queue.complete(entry), ENDED),
            "retain": (lambda: self.queue.retain(entry), COMPLETED),
            "retry": (lambda: self.queue.retry(entry, message=entry.message), WAITS),
            "archive": (lambda: self.queue.archive(entry, message=entry.message), ARCHIVED),
            "release": (lambda: self.queue.release(entry), WAITS),
        }
        step, state = steps[end]
        assert step() == [b"ok"]
        assert step() == [b"lost"], "settling again changes nothing"
        self.life.move(id_, state)

    def die(self, choose: Numbers) -> None:
        """The worker's entries are recovered; what it would say later is refused."""
        consumer = choose.pick(WORKERS)
        mine = {id_: entry for id_, (entry, holder) in self.held.items() if holder == consumer}
        for lane in LANES:
            self.queue.recover(lane, dead=consumer, crash_limit=CRASH_LIMIT)
        for id_, entry in mine.items():
            assert self.queue.complete(entry) == [b"lost"]
            self.life.move(id_, ARCHIVED if entry.crashes + 1 > CRASH_LIMIT else WAITS)
            del self.held[id_]

    def forward(self, _: Numbers | None = None) -> None:
        """All that waits for a time is due now, and moves."""
        keys = self.queue.queue
        for zset in (keys.scheduled, keys.retry, keys.groups):
            rows: Any = self.queue.redis.zrangebyscore(zset, "-inf", NEVER - 1)
            if rows:
                self.queue.redis.zadd(zset, dict.fromkeys(rows, 1))
        assert self.queue.forward().orphans == 0

    def flush(self, _: Numbers | None = None) -> None:
        """Every group that is due becomes one batch of all its members."""
        before = self.places()
        due: Any = self.queue.redis.zrangebyscore(self.queue.queue.groups, "-inf", 1)
        batches = [self.fresh("batch")[0] for _ in range(3)]
        found = self.queue.run(flush_group(self.queue.queue, batches))
        assert (found.batches, found.orphans) == (len(due), 0)
        moved = 0
        for batch in batches[: found.batches]:
            entry = next(one for one in self.lanes() if one.task_id == batch.encode())
            members = [id_.decode() for id_, _ in decode_batch(decode_message(entry.message).payload)]
            assert all(before[id_] == "aggregating" for id_ in members)
            for id_ in members:
                self.life.tasks[id_].batch = batch
            self.life.accept(batch, " ".join(members).encode())
            moved += len(members)
        assert found.members == moved

    def sweep(self, _: Numbers | None = None) -> None:
        """Afterwards the locks that stand are those of living tasks."""
        sweep(self.queue)
        self.life.tidied()
        records: Any = self.queue.redis.hgetall(self.queue.queue.unique)
        locks = {key.decode(): record.decode().partition(" ")[2] for key, record in records.items()}
        assert locks == self.life.locks()

    # Operators

    def delete(self, choose: Numbers) -> None:
        id_ = choose.pick([*reversed(self.life.tasks), "nobody"])
        assert self.queue.delete(id_).decode() == self.life.delete(id_)
        self.sweep()

    def cancel(self, choose: Numbers) -> None:
        id_ = choose.pick([*reversed(self.life.tasks), "nobody"])
        outcome: CancelOutcome = choose.pick(("archive", "delete", "retry"))
        task = self.life.tasks.get(id_)
        if (task and task.batch) or self.life.state(id_) != ACTIVE:
            assert self.queue.cancel(id_, outcome).decode() == self.life.cancel(id_, outcome)
            self.sweep()

    def pause_or_resume(self, _: Numbers | None = None) -> None:
        assert (self.queue.resume() if self.paused else self.queue.pause()) == b"ok"
        self.paused = not self.paused

    def empty_the_archive(self, _: Numbers | None = None) -> None:
        self.queue.purge(archive_size=0)
        for id_ in self.life.in_state(ARCHIVED):
            self.life.move(id_, ENDED)

    # What always holds

    def lanes(self) -> list[Entry]:
        keys = self.queue.queue.lanes.items()
        commands = [
            Command(None, (key,), ("XRANGE", key, "-", "+"), partial(parse_entries, lane))
            for lane, key in keys
        ]
        return [entry for command in commands for entry in self.queue.run(command)]

    def places(self) -> dict[str, str]:
        """Task id -> where it is stored; only tasks that stand for themselves."""
        keys, redis = self.queue.queue, self.queue.redis
        found: dict[str, str] = {}
        pending = {
            (lane, entry_id)
            for lane, key in keys.lanes.items()
            if redis.exists(key) and redis.xinfo_groups(key)
            for entry_id in self.queue.active(lane)
        }
        for entry in self.lanes():
            found[entry.task_id.decode()] = "active" if (entry.lane, entry.entry_id) in pending else "ready"
        for name in ("scheduled", "retry", "completed", "archived"):
            found.update(dict.fromkeys(self.queue.members(getattr(keys, name)), name))
        for member in redis.zrange(keys.aggregating, 0, -1):
            found[member.split(b"\0")[2].decode()] = "aggregating"
        return found

    def every_task_is_where_it_must_be(self) -> None:
        self.queue.check()
        states = {"ready": WAITS, "scheduled": WAITS, "retry": WAITS, "aggregating": WAITS}
        found = {id_: states.get(place, place) for id_, place in self.places().items()}
        known = {id_: task.state for id_, task in self.life.tasks.items() if not task.batch}
        assert found == {id_: state for id_, state in known.items() if state != ENDED}

    def end(self) -> None:
        """Left alone, everything that lives runs to its end, and nothing is left beside it."""
        # It may sweep: what was settled last has not been tidied up behind.
        assert audit(self.queue).total == 0
        self.life.tidied()
        if self.paused:
            self.pause_or_resume()
        while self.life.in_state(*LIVES):
            self.forward()
            self.flush()
            self.fetch_by("w1", 100)
            assert self.held, "something lives, and nothing of it ever becomes ready"
            for id_ in list(self.held):
                self.settle_one(id_, "complete")
            self.sweep()
            self.every_task_is_where_it_must_be()
        keys = self.queue.queue
        beside = (keys.unique, keys.owners, keys.aggregating, keys.groups, keys.scheduled, keys.retry)
        assert self.queue.redis.exists(*beside) == 0
        assert audit(self.queue) == Audit()
        self.queue.redis.unlink(*keys.every)

    # What people with redis-cli do

    def spoil(self, choose: Numbers) -> None:
        """One thing done by hand to a random part of the data."""
        keys, redis = self.queue.queue, self.queue.redis
        lane = choose.pick(list(keys.lanes.values()))
        hashes = (keys.index, keys.parked, keys.grouped, keys.unique, keys.owners)
        zsets = (keys.scheduled, keys.retry, keys.archived, keys.aggregating, keys.groups)
        match choose.pick(("hdel", "zrem", "xdel", "xack", "delconsumer", "setid", "key", "copy")):
            case "hdel":
                hash_ = choose.pick(hashes)
                if fields := sorted(redis.hkeys(hash_)):
                    redis.hdel(hash_, choose.pick(fields))
            case "zrem":
                zset = choose.pick(zsets)
                if names := redis.zrange(zset, 0, -1):
                    redis.zrem(zset, choose.pick(names))
            case "xdel" | "xack" as verb:
                if rows := redis.xrange(lane):
                    entry = choose.pick(rows)[0]
                    redis.xdel(lane, entry) if verb == "xdel" else redis.xack(lane, GROUP, entry)
            case "delconsumer" if redis.exists(lane) and redis.xinfo_groups(lane):
                redis.xgroup_delconsumer(lane, GROUP, choose.pick(WORKERS))
            case "setid" if redis.exists(lane) and redis.xinfo_groups(lane) and not self.paused:
                redis.xgroup_setid(lane, GROUP, "$")
            case "key":
                redis.delete(choose.pick((*hashes, *zsets, lane)))
            case "copy":
                redis.xadd(lane, {"id": choose.pick([*self.life.tasks, "strange"]), "m": "by hand"})

    def end_without_the_model(self) -> None:
        """What is left after hands have been at it runs to its end, and nothing stays behind."""
        keys, redis = self.queue.queue, self.queue.redis
        if self.paused:
            self.queue.resume()
        for _ in range(20):
            self.forward()
            self.queue.run(flush_group(keys, [self.fresh("batch")[0] for _ in range(3)]))
            self.queue.fetch("w3")
            for lane in LANES:
                self.queue.recover(lane, dead="w1")
                self.queue.recover(lane, dead="w2")
                rows = self.queue.run(read_own(lane, keys.lanes[lane], "w3", b"0"))[0]
                if rows:
                    assert set(self.queue.complete(*rows)) == {b"ok"}
            sweep(self.queue)
        lives = (keys.scheduled, keys.retry, keys.aggregating, keys.groups, keys.index)
        assert redis.exists(*lives) == 0
        assert self.lanes() == []
        assert audit(self.queue).total == 0
        redis.unlink(*keys.every)


STEPS: dict[Callable[[Machine, Numbers], None], int] = {
    Machine.enqueue: 1,
    Machine.enqueue_under_an_id: 1,
    Machine.enqueue_with_a_lock: 6,
    Machine.enqueue_into_a_group: 3,
    Machine.fetch: 5,
    Machine.settle: 5,
    Machine.die: 2,
    Machine.forward: 3,
    Machine.flush: 2,
    Machine.sweep: 1,
    Machine.delete: 2,
    Machine.cancel: 3,
    Machine.pause_or_resume: 1,
    Machine.empty_the_archive: 1,
}
"""What may happen, and how often beside the others."""
EVENTS = st.tuples(
    st.sampled_from([step for step, times in STEPS.items() for _ in range(times)]), st.integers(0, 2**20)
)


@pytest.mark.slow
def test_every_accepted_task_is_always_in_one_place_and_runs_in_the_end(
    server: Server, namespace: str
) -> None:
    """B42, I5, B36: enqueue, locks, groups, cancel, pause, crashes, recovery, sweeps, in any order."""
    stage, lives = Stage(server, namespace), count()

    # Making a failing example smaller would take longer than a test may; it is shown as it is.
    @settings(
        max_examples=60,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(EVENTS, min_size=30, max_size=60))
    def live(events: list[tuple[Callable[[Machine, Numbers], None], int]]) -> None:
        machine = Machine(stage.beside(f"q{next(lives)}"))
        for step, number in events:
            step(machine, Numbers(number))
            machine.every_task_is_where_it_must_be()
        machine.end()

    try:
        live()
    finally:
        stage.close()


@pytest.mark.slow
def test_whatever_is_done_by_hand_one_audit_makes_the_queue_whole_again(
    server: Server, namespace: str
) -> None:
    """B3, B42: what is left of each task is in one place then, and everything that lives can run."""
    stage, lives = Stage(server, namespace), count()

    @settings(
        max_examples=60,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(EVENTS, min_size=15, max_size=30),
        st.lists(st.integers(0, 2**24), min_size=1, max_size=4),
    )
    def live(events: list[tuple[Callable[[Machine, Numbers], None], int]], hands: list[int]) -> None:
        machine = Machine(stage.beside(f"q{next(lives)}"))
        for step, number in events:
            step(machine, Numbers(number))
        for number in hands:
            machine.spoil(Numbers(number))
        audit(machine.queue)
        machine.queue.check()
        assert audit(machine.queue) == Audit()
        machine.end_without_the_model()

    try:
        live()
    finally:
        stage.close()
