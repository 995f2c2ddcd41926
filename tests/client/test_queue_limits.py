"""Limits of a queue as producers meet them, with either client."""

from __future__ import annotations

from typing import Any

import pytest

from streamq import Inspector, QueueLimits, State, StreamQ
from streamq.errors import (
    BatchError,
    EnqueueRateExceeded,
    QueueError,
    QueueFull,
    QueueLimitReached,
    TaskTooLarge,
    TypeNotAllowed,
)
from streamq.model.queue_limits import NO_LIMITS
from tests.client.conftest import Producing, call
from tests.servers import Server

QUEUE = "default"


@pytest.mark.parametrize(
    "limits, error",
    [
        (QueueLimits(size=1), QueueFull),
        (QueueLimits(rate=(1, 3600)), EnqueueRateExceeded),
        (QueueLimits(producer_rate=(1, 3600)), EnqueueRateExceeded),
        (QueueLimits(task_bytes=60), TaskTooLarge),
        (QueueLimits(types=["t"]), TypeNotAllowed),
    ],
    ids=["size", "rate", "producer_rate", "task_bytes", "types"],
)
async def test_each_limit_has_an_error_of_its_own_and_one_parent(
    producing: Producing, inspector: Inspector, limits: QueueLimits, error: type[QueueLimitReached]
) -> None:
    """Limits hold at once, also for a client that was there before, and nothing of the task is stored."""
    await producing.enqueue("warm-up", queue="other")
    await inspector.set_limits(QUEUE, limits)
    assert (await producing.enqueue("t")).created
    with pytest.raises(error) as caught:
        await producing.enqueue("u", {"text": "x" * 100})
    assert isinstance(caught.value, QueueLimitReached)
    assert caught.value.queue == QUEUE
    assert (await inspector.queue(QUEUE)).size == 1


async def test_a_rate_says_how_long_to_wait(producing: Producing, inspector: Inspector) -> None:
    await inspector.set_limits(QUEUE, QueueLimits(rate=(1, 3600)))
    await producing.enqueue("t")
    with pytest.raises(EnqueueRateExceeded, match="try again in") as caught:
        await producing.enqueue("t")
    assert 3500 < caught.value.retry_after <= 3600


async def test_others_of_the_call_are_not_touched(producing: Producing, inspector: Inspector) -> None:
    """A26"""
    await inspector.set_limits(QUEUE, QueueLimits(size=2, types=["a*"]))
    calls = [call("a1"), call("b"), call("a2"), call("a3"), call("b", queue="other")]
    with pytest.raises(BatchError) as caught:
        await producing.enqueue_many(calls)
    kinds = [type(item) for item in caught.value.results]
    assert kinds[1] is TypeNotAllowed
    assert kinds[3] is QueueFull
    assert all(caught.value.results[place].created for place in (0, 2, 4))
    assert (await inspector.queue(QUEUE)).ready == 2


async def test_limits_come_and_go_while_a_client_works(
    producing: Producing, inspector: Inspector, server: Server
) -> None:
    """Without limits a plain task takes the quick script; the client learns of limits by its answers."""
    script_calls = [await calls_of_one_enqueue(producing, server)]
    await inspector.set_limits(QUEUE, QueueLimits(size=1000))
    script_calls += [await calls_of_one_enqueue(producing, server) for _ in range(2)]
    await inspector.set_limits(QUEUE, None)
    script_calls += [await calls_of_one_enqueue(producing, server) for _ in range(2)]
    assert script_calls == [1, 2, 1, 1, 1], "once the quick script sends it on to the other"
    assert (await inspector.queue(QUEUE)).ready == 5


async def test_a_new_client_meets_limits_in_its_very_first_call(
    producing: Producing, inspector: Inspector
) -> None:
    """Also while it is still to connect, and with more tasks than one call carries."""
    await inspector.set_limits(QUEUE, QueueLimits(size=500))
    with pytest.raises(BatchError) as caught:
        await producing.enqueue_many(call() for _ in range(600))
    kinds = [type(item) for item in caught.value.results]
    assert kinds.count(QueueFull) == 100
    assert (await inspector.queue(QUEUE)).ready == 500


async def calls_of_one_enqueue(producing: Producing, server: Server) -> int:
    await producing.enqueue("warm-up", queue="other")
    before = server.commandstats()["evalsha"]
    handle = await producing.enqueue("t")
    calls = server.commandstats()["evalsha"] - before
    assert (await producing.info(handle)).state is State.READY
    return calls


async def test_the_queue_shows_its_limits(opened: StreamQ, inspector: Inspector) -> None:
    limits = QueueLimits(size=10, rate=(5, 60), types=["mail:*"])
    await inspector.set_limits(QUEUE, limits)
    assert await inspector.queues() == [QUEUE], "limits may be set before anybody enqueues"
    assert await inspector.limits(QUEUE) == (await inspector.queue(QUEUE)).limits == limits
    await inspector.set_limits(QUEUE, None)
    assert await inspector.limits(QUEUE) == NO_LIMITS


async def test_limits_of_a_queue_that_is_not_there_are_an_error(
    opened: StreamQ, inspector: Inspector
) -> None:
    with pytest.raises(QueueError, match="no such queue"):
        await inspector.limits("nowhere")
    with pytest.raises(QueueError, match="no such queue"):
        await inspector.set_limits("nowhere", None)


async def test_a_removed_queue_has_no_limits(producing: Producing, inspector: Inspector) -> None:
    await producing.enqueue("t")
    await inspector.set_limits(QUEUE, QueueLimits(size=1))
    await inspector.remove_queue(QUEUE, force=True)
    handles: list[Any] = await producing.enqueue_many([call(), call()])
    assert len(handles) == 2
