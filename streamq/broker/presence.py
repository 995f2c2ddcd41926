"""Commands by which workers make themselves known, and others see them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from streamq.broker.command import Command, Word
from streamq.broker.keys import Keys
from streamq.codec import decode_result, encode_result
from streamq.errors import MessageError
from streamq.model.info import WorkerInfo

FETCHES = "running"
"""The status of a worker that takes tasks."""


def server_time() -> Command[int]:
    """Redis's wall clock in ms."""
    return Command(None, (), ("TIME",), lambda reply: int(reply[0]) * 1000 + int(reply[1]) // 1000)


def announce(keys: Keys, worker: WorkerInfo, now_ms: int, ttl_ms: int) -> list[Command[Any]]:
    """Publish a heartbeat that expires by itself. ``now_ms`` is Redis's time."""
    key, until_ms = keys.worker(worker.id), now_ms + ttl_ms
    commands: list[Command[Any]] = [
        Command(None, (key,), ("SET", key, _pack(worker), "PX", ttl_ms), bool),
        Command(None, (keys.workers,), ("ZADD", keys.workers, until_ms, worker.id), int),
    ]
    if worker.status == FETCHES:
        members = _members(worker.id, worker.queues)
        words: tuple[Word, ...] = tuple(word for member in members for word in (until_ms, member))
        commands.append(Command(None, (keys.serving,), ("ZADD", keys.serving, "GT", *words), int))
    return commands


def leave(keys: Keys, worker_id: str, queues: Iterable[str] = ()) -> list[Command[Any]]:
    """Take the heartbeat back. Others that serve the same queues say so again with their next one."""
    key, members = keys.worker(worker_id), _members(worker_id, queues)
    return [
        Command(None, (key,), ("DEL", key), int),
        Command(None, (keys.workers,), ("ZREM", keys.workers, worker_id), int),
        Command(None, (keys.serving,), ("ZREM", keys.serving, *members), int),
    ]


class Serving(NamedTuple):
    """What is served, and by whom; a quiet worker serves nothing."""

    queues: frozenset[str]
    workers: frozenset[str]


def serving(keys: Keys, now_ms: int) -> Command[Serving]:
    """The queues from which live workers fetch, and these workers. ``now_ms`` is Redis's time."""
    words = ("ZRANGEBYSCORE", keys.serving, now_ms, "+inf")
    return Command(None, (keys.serving,), words, _parse_serving)


def _parse_serving(reply: Any) -> Serving:
    members = [member.decode("utf-8", "replace") for member in reply]
    return Serving(
        queues=frozenset(member[1:] for member in members if member[:1] == "q"),
        workers=frozenset(member[1:] for member in members if member[:1] == "w"),
    )


def _members(worker_id: str, queues: Iterable[str]) -> list[str]:
    return [f"w{worker_id}", *(f"q{queue}" for queue in queues)]


def alive(keys: Keys, now_ms: int) -> Command[list[str]]:
    """Ids of the workers whose heartbeat has not expired. ``now_ms`` is Redis's time."""
    words = ("ZRANGEBYSCORE", keys.workers, now_ms, "+inf")
    return Command(None, (keys.workers,), words, lambda reply: [item.decode() for item in reply])


def forget_expired(keys: Keys, now_ms: int) -> list[Command[int]]:
    """Clean away workers whose heartbeat expired, and what they served."""
    return [
        Command(None, (key,), ("ZREMRANGEBYSCORE", key, "-inf", now_ms), int)
        for key in (keys.workers, keys.serving)
    ]


def look_at(keys: Keys, worker_ids: Sequence[str]) -> list[Command[WorkerInfo | None]]:
    """What each worker says of itself; None for one whose heartbeat expired. One command each."""
    return [Command(None, (key,), ("GET", key), _unpack) for key in map(keys.worker, worker_ids)]


def _pack(worker: WorkerInfo) -> bytes:
    return encode_result(
        {
            "id": worker.id,
            "host": worker.host,
            "pid": worker.pid,
            "queues": dict(worker.queues),
            "concurrency": worker.concurrency,
            "active": worker.active,
            "status": worker.status,
            "started_ms": int(worker.started_at.timestamp() * 1000),
        }
    )


def _unpack(reply: Any) -> WorkerInfo | None:
    if reply is None:
        return None
    said = decode_result(reply)
    try:
        started_ms = said.pop("started_ms")
        known = {
            name: said[name] for name in ("id", "host", "pid", "queues", "concurrency", "active", "status")
        }
        return WorkerInfo(**known, started_at=datetime.fromtimestamp(started_ms / 1000, UTC))
    except (AttributeError, KeyError, TypeError) as error:
        raise MessageError(f"not a worker's heartbeat ({type(error).__name__})") from None
