"""Every Redis key of StreamQ, built here and nowhere else.

All keys of one queue share the hash tag ``{queue}``, so that its scripts work in Redis Cluster.
Names stay short: with every delivered entry the key, the group and the consumer are copied into
the append-only file and to the replicas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from streamq.model.lanes import LANES, Lane
from streamq.model.names import check_key_name

GROUP = b"w"
"""The one consumer group of every lane."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that belong to no queue, and the way to those that do."""

    namespace: str | None = None
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        if self.namespace is not None:
            check_key_name("namespace", self.namespace)
        object.__setattr__(self, "prefix", f"sq:{self.namespace}" if self.namespace else "sq")

    @property
    def queues(self) -> bytes:
        """Set: the names of all queues."""
        return f"{self.prefix}:queues".encode()

    @property
    def workers(self) -> bytes:
        """Sorted set: worker id by the server time at which its heartbeat expires."""
        return f"{self.prefix}:workers".encode()

    @property
    def serving(self) -> bytes:
        """Sorted set: ``q`` + queue and ``w`` + worker id, of workers that fetch, by when that expires."""
        return f"{self.prefix}:serving".encode()

    def worker(self, worker_id: str) -> bytes:
        """String with a TTL: what a worker says of itself."""
        return f"{self.prefix}:worker:{worker_id}".encode()

    @property
    def orders(self) -> bytes:
        """Hash: worker id, or ``*`` for all -> what it is told to do, and when it was told."""
        return f"{self.prefix}:orders".encode()

    @property
    def hints(self) -> str:
        """Channel: what every worker should look at now. Only a hint."""
        return f"{self.prefix}:hints"

    def semaphore(self, name: str) -> bytes:
        """Sorted set: token of a holder by the time in ms at which its lease ends. Has a slot of its own."""
        return f"{self.prefix}:{{sem:{check_key_name('semaphore', name)}}}".encode()

    def queue(self, name: str) -> QueueKeys:
        """The keys of one queue."""
        return queue_keys(self.prefix, name)


@dataclass(frozen=True, slots=True, eq=False)
class QueueKeys:
    """The keys of one queue. Compared by identity: it is a dictionary key on hot paths."""

    name: str
    base: str
    lanes: dict[Lane, bytes]
    """Streams: entries with the fields ``id``, ``m`` (message) and, after a recovery or release,
    ``l`` (lane letter) and ``c`` (crashes)."""
    index: bytes
    """Hash: task id -> lane letter + entry id, for tasks in a lane."""
    parked: bytes
    """Hash: task id -> Parked, for tasks in no lane."""
    scheduled: bytes
    retry: bytes
    completed: bytes
    archived: bytes
    """Sorted sets: task id by due, expiry or archive time in ms."""
    aggregating: bytes
    """Sorted set in the order of its names: ``<task type> LF <group> NUL <arrival in us> NUL <task id>``."""
    groups: bytes
    """Sorted set: ``<task type> LF <group>`` by the time in ms at which it becomes a batch."""
    grouped: bytes
    """Hash: task id -> arrival in us (0: scheduled), rule and group; or ``=`` and the batch it went into."""
    unique: bytes
    """Hash: dedup key -> mode letter, end of its window in ms, and the id of the task whose lock it is."""
    owners: bytes
    """Hash: task id -> the dedup keys that it holds."""
    cancels: bytes
    """Hash: lane letter and entry id of an active task -> the outcome with which it is to be cancelled."""
    progress: bytes
    """Hash: task id -> what its handler last said of how far it is."""
    rates: bytes
    """Hash: ``q`` or producer id -> when its enqueue rate is used up, in us."""
    limiters: bytes
    """Sorted set: name of a limiter by the time in ms at which its keys are gone by themselves."""
    cron: bytes
    """Hash: cron entry id -> digest of its schedule, and its definition."""
    cron_due: bytes
    """Sorted set: cron entry id, space and digest of its schedule by the next tick in ms."""
    ticks: bytes
    """List: the last ticks that fired or were skipped, the newest first."""
    audited: bytes
    """String with a TTL: the worker that audited the queue last."""
    config: bytes
    """Hash: created, limits, paused; while paused ``last:<lane letter>``, the id its group had got to."""
    producers: bytes
    """Hash: producer id -> last sequence, when, first task id, reply."""
    stats: bytes
    """Hash: counters over all time."""
    hints: str
    """Channel: what workers should look at now. Only a hint; a lost one delays, never loses."""

    def stats_of(self, day: str) -> bytes:
        """Hash: the counters of one UTC day."""
        return f"{self.base}:stats:{day}".encode()

    def limiter(self, name: str) -> bytes:
        """What one limit of running tasks has counted: sorted set of tokens, number, or list of times."""
        return f"{self.base}:limit:{name}".encode()

    def turn(self, name: str) -> bytes:
        """Who waits for it: sorted set of task ids by when they last asked in ms, or the last turn in us."""
        return f"{self.base}:turn:{name}".encode()

    def done(self, task_id: str) -> bytes:
        """Channel: told once when the task is completed or archived."""
        return f"{self.base}:done:{task_id}".encode()

    @property
    def every(self) -> tuple[bytes, ...]:
        """All keys of the queue except those of single days and single limiters."""
        return (*self.lanes.values(), *(getattr(self, name) for name in _SINGLE))


_SINGLE = (
    "index",
    "parked",
    "scheduled",
    "retry",
    "completed",
    "archived",
    "aggregating",
    "groups",
    "grouped",
    "unique",
    "owners",
    "cancels",
    "progress",
    "rates",
    "limiters",
    "cron",
    "cron_due",
    "ticks",
    "audited",
    "config",
    "producers",
    "stats",
)
"""The keys of which a queue has one each, by the last part of their name."""


@lru_cache(maxsize=1024)
def queue_keys(prefix: str, name: str) -> QueueKeys:
    """The keys of the queue ``name`` under ``prefix``. Raises OptionError for a bad name."""
    base = f"{prefix}:{{{check_key_name('queue', name)}}}"

    def key(last: str) -> bytes:
        return f"{base}:{last}".encode()

    return QueueKeys(
        name=name,
        base=base,
        lanes={lane: key(lane.name.lower()) for lane in LANES},
        **{single: key(single) for single in _SINGLE},
        hints=f"{base}:hints",
    )
