"""Pause and resume: a flag of the queue that workers hear of at once."""

from __future__ import annotations

from streamq.broker import inspecting
from tests.broker.stage import Stage


def test_a_queue_is_paused_once_and_resumed_once(stage: Stage) -> None:
    """A49: the second time it says that nothing changed."""
    assert stage.resume() == b"already"
    assert stage.pause() == b"ok"
    assert stage.pause() == b"already"
    assert stage.run(inspecting.is_paused(stage.queue))
    assert stage.resume() == b"ok"
    assert stage.resume() == b"already"
    assert not stage.run(inspecting.is_paused(stage.queue))


def test_a_pause_belongs_to_one_queue(stage: Stage) -> None:
    """A47: others go on; A48: each may be paused."""
    other = stage.beside("other")
    stage.pause()
    assert not stage.run(inspecting.is_paused(other.queue))
    assert other.pause() == b"ok"
    other.resume()
    assert stage.run(inspecting.is_paused(stage.queue))


def test_workers_are_told_only_of_changes(stage: Stage) -> None:
    with stage.hearing(stage.queue.hints) as said:
        for step in (stage.pause, stage.pause, stage.resume, stage.resume):
            step()
    assert said == [b"pause", b"resume"]


def test_producers_go_on_while_a_queue_is_paused(stage: Stage) -> None:
    """A47: a pause holds delivery, not intake; and removing nothing of the queue's other settings."""
    stage.pause()
    assert stage.enqueue("a") == [b"ready"]
    assert not stage.run(inspecting.is_paused(stage.beside("other").queue))
    assert stage.run(inspecting.is_paused(stage.queue))
