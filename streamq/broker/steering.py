"""Commands by which an operator steers queues: pause, resume, remove."""

from __future__ import annotations

from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.scripts import script


def pause(queue: QueueKeys) -> Command[bytes]:
    """Hand nothing out. Answers ok or already."""
    return Command(script("pause"), _pause_keys(queue), ("pause", queue.hints), bytes)


def resume(queue: QueueKeys) -> Command[bytes]:
    """Hand out again. Answers ok or already."""
    return Command(script("pause"), _pause_keys(queue), ("resume", queue.hints), bytes)


def unlink(keys: tuple[bytes, ...]) -> Command[int]:
    """Delete keys of one queue; Redis frees their memory in the background."""
    return Command(None, keys, ("UNLINK", *keys), int)


def unregister(registry: bytes, queue: str) -> Command[int]:
    """Take the queue out of the registry."""
    return Command(None, (registry,), ("SREM", registry, queue), int)


def _pause_keys(queue: QueueKeys) -> tuple[bytes, ...]:
    return (queue.config, *queue.lanes.values())
