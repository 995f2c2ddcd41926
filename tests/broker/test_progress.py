"""Progress: what handlers say of how far they are, from whoever holds the task and nobody else."""

from __future__ import annotations

from streamq.broker import working
from streamq.broker.working import Entry, Said
from streamq.model.lanes import Lane
from streamq.model.progress import packed
from streamq.model.states import State
from tests.broker.stage import Stage


def say(stage: Stage, *entries: Entry, consumer: str = "w1", said: bytes = b"0.5 half") -> list[bytes]:
    return stage.run(working.progress(stage.queue, consumer, [Said(entry, said) for entry in entries]))


def test_what_a_running_task_says_is_found_with_it(stage: Stage) -> None:
    """By the server's clock."""
    high, low = [*stage.started("high", lane=Lane.HIGH), *stage.started("low", lane=Lane.LOW)]
    before = stage.now_ms()
    assert say(stage, high, low, said=packed(0.25, "a quarter")) == [b"ok", b"ok"]
    after = stage.now_ms()
    for id_ in ("high", "low"):
        found = stage.find(id_)
        assert found.state is State.ACTIVE
        assert found.progress is not None
        assert (found.progress.fraction, found.progress.text) == (0.25, "a quarter")
        assert before <= found.progress.at.timestamp() * 1000 <= after


def test_the_newest_word_counts(stage: Stage) -> None:
    [entry] = stage.started("a")
    say(stage, entry, said=packed(0.9, ""))
    say(stage, entry, said=packed(None, "again from the start"))
    found = stage.find("a").progress
    assert found is not None
    assert (found.fraction, found.text) == (None, "again from the start")


def test_words_that_come_late_are_refused_and_create_nothing(stage: Stage) -> None:
    """B17: settled, given back, recovered by another, deleted since: the word of who had it is not heard."""
    done, released, recovered, deleted = stage.started("done", "released", "recovered", "deleted")
    stage.complete(done)
    stage.release(released)
    stage.let_idle(recovered)
    stage.recover(lease_ms=1000)
    stage.release(deleted)
    stage.delete("deleted")
    before = stage.dump()
    assert say(stage, done, released, recovered, deleted) == [b"lost"] * 4
    assert stage.dump() == before


def test_words_for_a_removed_queue_create_nothing(stage: Stage) -> None:
    """B17, B18: not even a key."""
    [entry] = stage.started("a")
    stage.redis.delete(*stage.queue.every)
    assert say(stage, entry) == [b"lost"]
    assert not stage.redis.exists(*stage.queue.every)


def test_a_worker_is_not_heard_on_tasks_of_another(stage: Stage) -> None:
    [entry] = stage.started("a", consumer="w1")
    assert say(stage, entry, consumer="w2") == [b"lost"]
    assert say(stage, entry, consumer="w1") == [b"ok"]


def test_one_that_is_lost_does_not_keep_the_others_waiting(stage: Stage) -> None:
    gone, there = stage.started("gone", "there")
    stage.complete(gone)
    assert say(stage, gone, there) == [b"lost", b"ok"]
    assert stage.redis.hkeys(stage.queue.progress) == [b"there"]


def test_it_stays_while_the_task_waits_to_be_tried_again(stage: Stage) -> None:
    [entry] = stage.started("a")
    say(stage, entry)
    stage.retry(entry)
    found = stage.find("a")
    assert found.state is State.RETRY
    assert found.progress is not None


def test_what_others_wrote_there_is_no_progress_of_a_task(stage: Stage) -> None:
    stage.started("a")
    stage.redis.hset(stage.queue.progress, "a", b"\xff\xfe")
    assert stage.find("a").progress is None
