"""Keys of the wrong type: what others write in their place ends no worker and stops no other queue."""

from __future__ import annotations

from typing import Any

import pytest

from streamq import StreamQ
from streamq.broker.keys import QueueKeys
from streamq.model.lanes import Lane
from streamq.worker import fetcher
from tests.servers import Server
from tests.support import eventually, keys_of, live, make_worker, running

SINGLE = (
    "index",
    "parked",
    "scheduled",
    "retry",
    "completed",
    "config",
    "stats",
    "owners",
    "unique",
    "groups",
)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "_LOOK_AGAIN_S", 0.1)


@pytest.mark.parametrize("name", [*SINGLE, *(lane.name.lower() for lane in Lane)])
async def test_a_worker_goes_on_with_its_other_queue(app: StreamQ, server: Server, name: str) -> None:
    """B3: and with this one, as soon as the key is gone; what was enqueued then runs."""
    ran: list[str] = []

    @app.task(name="t", retention=0.05)
    async def task(queue: str) -> None:
        ran.append(queue)

    redis: Any = server.client()
    spoilt = f"{keys_of(app, 'spoilt').base}:{name}"
    redis.set(spoilt, "something else")
    worker = make_worker(app, queues={"spoilt": 9, "good": 1}, care_s=0.1)
    async with live(worker) as work:
        for number in range(3):
            await task.options(queue="good", delay=0.01).enqueue(f"good{number}")
            await eventually(lambda number=number: f"good{number}" in ran)  # type: ignore[misc]
        assert not work.done()
        redis.delete(spoilt)
        await task.options(queue="spoilt").enqueue("spoilt")
        await eventually(lambda: "spoilt" in ran)
        assert not work.done()


async def test_a_lane_that_is_replaced_while_the_worker_reads_is_left_out_until_it_is_a_stream_again(
    app: StreamQ, server: Server
) -> None:
    """B3: the blocked read is woken by it; the other lanes of the queue go on."""
    ran: list[str] = []

    @app.task(name="t")
    async def task(name: str) -> None:
        ran.append(name)

    keys: QueueKeys = keys_of(app)
    redis: Any = server.client()
    async with running(app) as worker:
        await task.enqueue("first")
        await eventually(lambda: ran == ["first"])
        redis.set(keys.lanes[Lane.HIGH], "something else")
        await task.enqueue("second")
        await eventually(lambda: ran == ["first", "second"])
        await eventually(lambda: worker.fetcher._spoilt == {keys.lanes[Lane.HIGH]})
        redis.delete(keys.lanes[Lane.HIGH])
        await task.options(priority="high").enqueue("third")
        await eventually(lambda: ran == ["first", "second", "third"])
        assert not worker.fetcher._spoilt
