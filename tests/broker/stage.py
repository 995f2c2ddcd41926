"""A queue played by hand: each step is a Command, sent as clients and workers send it.

Owns the shortest way to bring tasks into any state, and two looks at what is stored: ``dump`` (to show
that a call changed nothing) and ``check`` (each task is in exactly one place).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import redis

from streamq.broker import inspecting, moving, producing, steering, working
from streamq.broker.address import Address
from streamq.broker.command import Command, Word
from streamq.broker.inspecting import Found
from streamq.broker.keys import GROUP, Keys, QueueKeys
from streamq.broker.producing import OWN_ID, how
from streamq.broker.sync_runner import SyncRunner
from streamq.broker.working import Entry, Recovered, Settle
from streamq.clock import utc_day, wall_ms
from streamq.model.cancelling import Cancel, CancelOutcome
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Parked, Reason
from tests.servers import Server

T = TypeVar("T")
EnqueueWords = tuple[bytes, str, bytes]
"""How, task id, message."""

DAY = utc_day(wall_ms())
LONG_MS = 3_600_000
WAIT_S = 10.0


class Stage:
    """One queue on one server. ``consistent`` is set to False by tests that break it on purpose."""

    def __init__(self, server: Server, namespace: str, queue: str = "default") -> None:
        self.server = server
        self.keys = Keys(namespace)
        self.queue: QueueKeys = self.keys.queue(queue)
        self.runner = SyncRunner(Address.parse(server.unix_url))
        self.redis: Any = server.client()  # its types know no bytes keys, and guess at replies
        self.consistent = True
        self._sequence = 0

    def close(self) -> None:
        self.runner.close()

    def run(self, command: Command[T]) -> T:
        return self.runner.run(command)

    def beside(self, queue: str) -> Stage:
        """Another queue of the same namespace; it shares the connection."""
        other = Stage.__new__(Stage)
        other.__dict__.update(self.__dict__, queue=self.keys.queue(queue), _sequence=0)
        return other

    # Steps

    def enqueue(
        self,
        *ids: str,
        lane: Lane = Lane.NORMAL,
        delay_ms: int | None = None,
        at_ms: int | None = None,
        conflict: str = OWN_ID,
        message: bytes | None = None,
    ) -> list[bytes]:
        """One enqueue call; the message of each task is ``m-<id>`` unless given. Answers its words."""
        first = how(lane, conflict, delay_ms, at_ms)
        tasks = [(first, id_, message or f"m-{id_}".encode()) for id_ in ids]
        return list(self.send(self.next_sequence(), *tasks).words)

    def send(self, sequence: int, *tasks: EnqueueWords, producer: str = "p") -> producing.Enqueued:
        words = [word for task in tasks for word in task]
        return self.run(producing.enqueue(self.queue, producer, sequence, words))

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def fetch(self, consumer: str = "w1", count: int = 100, lanes: Iterable[Lane] = LANES) -> list[Entry]:
        """Deliver up to ``count`` entries of each lane to ``consumer``, front first."""
        keys = [(lane, self.queue.lanes[lane]) for lane in lanes]
        for _, key in keys:
            with suppress(redis.ResponseError):  # it is there already
                self.redis.xgroup_create(key, GROUP, "0", mkstream=True)
        return [entry for page in self.run(working.read(keys, consumer, count)) for entry in page]

    def started(self, *ids: str, consumer: str = "w1", lane: Lane = Lane.NORMAL) -> list[Entry]:
        """Tasks that were enqueued just now and are active."""
        assert set(self.enqueue(*ids, lane=lane)) == {b"ready"}
        entries = self.fetch(consumer, len(ids), [lane])
        assert [entry.task_id.decode() for entry in entries] == list(ids)
        return entries

    def complete(self, *entries: Entry) -> list[bytes]:
        ids = [entry.entry_id for entry in entries]
        tasks = [entry.task_id for entry in entries]
        return self.run(working.complete(self.queue, entries[0].lane, DAY, ids, tasks))

    def retain(self, *entries: Entry, retention_ms: int = LONG_MS, message: bytes = b"done") -> list[bytes]:
        tasks = [
            Settle((entry.entry_id, entry.task_id, retention_ms, parked(entry, message))) for entry in entries
        ]
        return self.run(working.retain(self.queue, entries[0].lane, DAY, tasks))

    def retry(
        self, *entries: Entry, delay_ms: int = LONG_MS, failed: int = 1, message: bytes = b"again"
    ) -> list[bytes]:
        tasks = [
            Settle((entry.entry_id, entry.task_id, delay_ms, failed, parked(entry, message)))
            for entry in entries
        ]
        return self.run(working.retry(self.queue, entries[0].lane, DAY, tasks))

    def settle_retry(self, entry: Entry, delay_ms: int, value: bytes) -> None:
        """With a parked value of one's own."""
        task = Settle((entry.entry_id, entry.task_id, delay_ms, 0, value))
        assert self.run(working.retry(self.queue, entry.lane, DAY, [task])) == [b"ok"]

    def archive(
        self,
        *entries: Entry,
        size: int = 1_000_000,
        age_ms: int = LONG_MS,
        message: bytes = b"dead",
        reason: Reason = Reason.FAILED,
    ) -> list[bytes]:
        tasks = [Settle((entry.entry_id, entry.task_id, parked(entry, message, reason))) for entry in entries]
        return self.run(working.archive(self.queue, entries[0].lane, DAY, tasks, size, age_ms))

    def release(self, *entries: Entry) -> list[bytes]:
        return self.run(working.release(self.queue, entries[0].lane, [entry.entry_id for entry in entries]))

    def recover(
        self,
        lane: Lane = Lane.NORMAL,
        *,
        lease_ms: int = LONG_MS,
        crash_limit: int = 3,
        backoff_ms: int = 1000,
        dead: str = "",
        cursor: bytes = b"0-0",
    ) -> Recovered:
        return self.run(
            working.recover(
                self.queue, lane, DAY, "rescuer",
                lease_ms=lease_ms, crash_limit=crash_limit, backoff_ms=backoff_ms, dead=dead, cursor=cursor,
            )
        )  # fmt: skip

    def forward(self) -> moving.Forwarded:
        return self.run(moving.forward(self.queue))

    def purge(self, archive_age_ms: int = LONG_MS, archive_size: int = 1_000_000) -> moving.Purged:
        return self.run(moving.purge(self.queue, archive_age_ms, archive_size))

    def cancel(self, task_id: str, outcome: CancelOutcome = "archive", delay_ms: int = 0) -> bytes:
        mark = Cancel(outcome, delay_ms).pack()
        return self.run(steering.cancel(self.queue, task_id, mark, DAY))

    def discard(self, *entries: Entry, reason: Reason = Reason.EXPIRED) -> list[bytes]:
        tasks = [Settle((entry.entry_id, entry.task_id, reason.value)) for entry in entries]
        return self.run(working.discard(self.queue, entries[0].lane, DAY, tasks))

    def delete(self, task_id: str) -> bytes:
        return self.run(moving.delete(self.queue, task_id))

    def find(self, task_id: str) -> Found:
        return self.run(inspecting.find(self.queue, task_id))

    def pause(self) -> bytes:
        return self.run(steering.pause(self.queue))

    def resume(self) -> bytes:
        return self.run(steering.resume(self.queue))

    # Time

    def now_ms(self) -> int:
        """Redis's clock."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def let_idle(self, *entries: Entry, ms: int = 60_000, consumer: str = "w1") -> None:
        """Make entries as idle as if their worker had been silent for ``ms``."""
        lane = self.queue.lanes[entries[0].lane]
        ids = [entry.entry_id for entry in entries]
        words: tuple[Word, ...] = ("XCLAIM", lane, GROUP, consumer, 0, *ids, "IDLE", ms, "JUSTID")
        assert self.run(Command(None, (lane,), words, list)) == ids

    def until(self, done: Callable[[], object]) -> None:
        """Wait until ``done`` answers something true."""
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline, "not within the time limit"
            time.sleep(0.005)

    # Looking

    @contextmanager
    def hearing(self, *channels: str) -> Iterator[list[bytes]]:
        """What is published on the channels during the block; complete when the block is left."""
        said: list[bytes] = []
        with self.redis.pubsub() as pubsub:
            pubsub.subscribe(*channels)
            for _ in channels:
                pubsub.get_message(timeout=WAIT_S)
            yield said
            self.redis.publish(channels[-1], b"end")
            self.until(lambda: _heard(pubsub, said))

    def entries(self, lane: Lane) -> list[dict[bytes, bytes]]:
        """The fields of every entry of a lane, delivered or not, in order."""
        rows: Any = self.redis.xrange(self.queue.lanes[lane])
        return [fields for _, fields in rows]

    def ids(self, lane: Lane) -> list[str]:
        return [fields[b"id"].decode() for fields in self.entries(lane)]

    def members(self, zset: bytes) -> dict[str, int]:
        """Task id -> time in ms, in order."""
        rows: Any = self.redis.zrange(zset, 0, -1, withscores=True)
        return {name.decode(): int(score) for name, score in rows}

    def body(self, task_id: str) -> Parked | None:
        value: Any = self.redis.hget(self.queue.parked, task_id)
        return None if value is None else Parked.unpack(value)

    def counters(self, key: bytes | None = None) -> dict[str, int]:
        return self.run(inspecting.counters(self.queue.stats if key is None else key))

    def active(self, lane: Lane = Lane.NORMAL) -> list[bytes]:
        """Entry ids that workers hold."""
        return [row.entry_id for row in self.run(inspecting.pending(self.queue, lane, 10_000))]

    def all_keys(self) -> list[bytes]:
        """Every key of the namespace."""
        return sorted(self.redis.scan_iter(f"{self.keys.prefix}:*", count=1000))

    def dump(self) -> dict[bytes, Any]:
        """Everything stored, to be compared."""
        return {key: self.redis.dump(key) for key in self.all_keys()}

    def check(self) -> None:
        """Each task is in exactly one place, with its body; no body or index entry is left over."""
        queue, places = self.queue, {}
        for lane, key in queue.lanes.items():
            rows: Any = self.redis.xrange(key)
            for entry_id, fields in rows:
                assert fields[b"id"] not in places, f"{fields[b'id']!r} is in the lanes twice"
                places[fields[b"id"]] = lane.encode() + entry_id
        assert places == self.redis.hgetall(queue.index), "the index does not match the lanes"
        waiting = [
            name
            for zset in (queue.scheduled, queue.retry, queue.completed, queue.archived)
            for name in self.members(zset)
        ]
        grouped: Any = self.redis.hgetall(queue.grouped)
        members = [name for name, place in grouped.items() if not place.startswith((b"=", b"0 "))]
        names: Any = self.redis.zrange(queue.aggregating, 0, -1)
        assert sorted(members) == sorted(name.split(b"\0")[2] for name in names), "members without a group"
        listed: Any = self.redis.zrange(queue.groups, 0, -1)
        assert {name.split(b"\0")[0] for name in names} == set(listed), "groups without members"
        waiting += [name.decode() for name in members]
        bodies: Any = self.redis.hkeys(queue.parked)
        assert sorted(waiting) == sorted(body.decode() for body in bodies), "bodies do not match the sets"
        assert not {name.encode() for name in waiting} & places.keys(), "a task is in two states"


def _heard(pubsub: Any, said: list[bytes]) -> bool:
    message = pubsub.get_message(timeout=1)
    if message is None or message["data"] == b"end":
        return message is not None
    said.append(message["data"])
    return False


def parked(entry: Entry, message: bytes, reason: Reason | None = None) -> bytes:
    return Parked(entry.home, entry.crashes, message, reason).pack()
