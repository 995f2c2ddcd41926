"""Concurrent enqueues share round trips, and disturb each other in nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from streamq import Inspector, State, StreamQ
from streamq.errors import TaskIdConflict, UsageError
from tests.conftest import ProxyFor
from tests.proxy import Proxy
from tests.servers import Server
from tests.support import eventually


@pytest.fixture
async def proxy(server: Server, proxy_for: ProxyFor) -> Proxy:
    return await proxy_for(server)


async def in_flight(app: StreamQ, proxy: Proxy) -> asyncio.Task[Any]:
    """An enqueue whose reply is held back by the proxy, so that what follows must wait."""
    await app.enqueue("warm-up")
    proxy.silence()
    first = asyncio.create_task(app.enqueue("first"))
    await asyncio.sleep(0)
    return first


async def test_a_hundred_coroutines_need_few_round_trips(opened: StreamQ, server: Server) -> None:
    await opened.enqueue("t")
    before = server.commandstats()["evalsha"]
    handles = await asyncio.gather(*(opened.enqueue("t", {"n": n}) for n in range(100)))
    assert len({handle.id for handle in handles}) == 100
    assert server.commandstats()["evalsha"] - before <= 3, "the first goes at once, the others together"


async def test_an_enqueue_alone_goes_at_once(opened: StreamQ, server: Server) -> None:
    """No timer gathers anything: ten enqueues one after the other are ten calls."""
    await opened.enqueue("t")
    before = server.commandstats()["evalsha"]
    for _ in range(10):
        await opened.enqueue("t")
    assert server.commandstats()["evalsha"] - before == 10


async def test_each_caller_of_a_shared_call_gets_its_own_answer(opened: StreamQ) -> None:
    await opened.enqueue("t", task_id="taken")
    answers: list[Any] = await asyncio.gather(
        opened.enqueue("a"),
        opened.enqueue("b", task_id="taken"),
        opened.enqueue("c", delay=60),
        opened.enqueue("d", task_id="taken", on_conflict="return"),
        opened.enqueue("e", task_id="own"),
        opened.enqueue_many([opened.task(name="f")(print).call()]),
        return_exceptions=True,
    )
    a, b, c, d, e, f = answers
    assert isinstance(b, TaskIdConflict)
    assert (d.id, d.created, e.id, e.created) == ("taken", False, "own", True)
    infos = [await handle.info() for handle in (a, c, e, f[0])]
    assert [info.type for info in infos] == ["a", "c", "e", "f"]
    assert [info.state for info in infos] == [State.READY, State.SCHEDULED, State.READY, State.READY]


async def test_input_refused_in_one_coroutine_leaves_the_others_alone(opened: StreamQ) -> None:
    answers = await asyncio.gather(
        opened.enqueue("a"), opened.enqueue("b", {"x": object()}), opened.enqueue("c"), return_exceptions=True
    )
    assert isinstance(answers[1], UsageError)
    assert [(await answers[place].info()).type for place in (0, 2)] == ["a", "c"]  # type: ignore[union-attr]


@pytest.mark.parametrize("cancelled", [0, 1, 2], ids=["in flight", "waiting", "last"])
async def test_cancelling_one_waiting_enqueue_disturbs_nobody(
    proxy: Proxy, namespace: str, server: Server, cancelled: int
) -> None:
    async with StreamQ(proxy.url, namespace=namespace) as app, app.inspector() as inspector:
        tasks = [await in_flight(app, proxy)]
        tasks += [asyncio.create_task(app.enqueue(f"waiting{n}")) for n in range(2)]
        await asyncio.sleep(0)
        tasks[cancelled].cancel()
        await asyncio.sleep(0)
        proxy.resume()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(cancelled), asyncio.CancelledError)
        for handle in answers:
            assert (await handle.info()).state is State.READY  # type: ignore[union-attr]
        assert (await app.enqueue("after")).created
        assert (await inspector.queue("default")).ready in {4, 5}, "it may or may not have been sent already"


async def test_closing_waits_for_what_was_submitted(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    app = StreamQ(proxy.url, namespace=namespace)
    client = app.new_client()
    await client.enqueue("warm-up")
    proxy.silence()
    waiting = [asyncio.create_task(client.enqueue("t", queue=f"q{n % 2}")) for n in range(600)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    proxy.resume()
    await closing
    assert {(await task).created for task in waiting} == {True}
    assert [(await inspector.queue(name)).ready for name in ("q0", "q1")] == [300, 300]


async def test_closing_waits_also_when_the_last_caller_gave_up(
    proxy: Proxy, namespace: str, inspector: Inspector
) -> None:
    app = StreamQ(proxy.url, namespace=namespace)
    client = app.new_client()
    await client.enqueue("warm-up")
    proxy.silence()
    waiting = [asyncio.create_task(client.enqueue("t")) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[-1].cancel()
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    proxy.resume()
    await closing
    assert {(await task).created for task in waiting[:-1]} == {True}
    assert (await inspector.queue("default")).ready in {20, 21}


async def test_a_closed_client_says_so_at_once(opened: StreamQ) -> None:
    client = opened.new_client()
    handle = await client.enqueue("t")
    await client.aclose()
    await client.aclose()
    calls: list[Coroutine[Any, Any, Any]] = [client.enqueue("t"), client.enqueue_many([]), handle.result()]
    for refused in calls:
        with pytest.raises(UsageError, match="client: is closed"):
            await refused


async def test_many_more_than_one_call_takes_are_all_enqueued(opened: StreamQ, inspector: Inspector) -> None:
    handles = await asyncio.gather(*(opened.enqueue("t") for _ in range(3000)))
    assert len({handle.id for handle in handles}) == 3000
    assert (await inspector.queue("default")).ready == 3000


async def test_nothing_is_left_running_after_closing(app: StreamQ) -> None:
    before = asyncio.all_tasks()
    async with app:
        await asyncio.gather(*(app.enqueue("t") for _ in range(10)))
    await eventually(lambda: asyncio.all_tasks() == before, "no task is left")
