"""The fetcher: in which order tasks start, and never more of them than there are free slots."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from streamq import StreamQ
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import Entry
from streamq.inspector import Inspector
from streamq.model.lanes import LANES, Lane
from streamq.model.options import Priority
from streamq.worker.draw import Draw
from streamq.worker.fetcher import Fetcher
from streamq.worker.held import Source
from tests.conftest import ProxyFor
from tests.servers import Server
from tests.support import eventually, keys_of, make_worker, running

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


class Slots:
    """An executor that only takes note."""

    def __init__(self, size: int) -> None:
        self.free = size
        self.started: list[Entry] = []
        self.queues: list[str] = []

    async def wait_change(self) -> None:
        raise AssertionError("nobody frees slots in this test")

    def wake(self) -> None: ...

    def start(self, source: Source, entries: list[Entry]) -> None:
        self.started += entries
        self.queues += [source.queue.name for _ in entries]
        self.free -= len(entries)

    @property
    def ids(self) -> list[str]:
        return [entry.task_id.decode() for entry in self.started]


class Turns:
    """A fetcher by hand, over an app's queues."""

    def __init__(self, app: StreamQ, slots: Slots, queues: dict[str, int], *, strict: bool = True) -> None:
        self.runner = AsyncRunner(app.address)
        self.given_back: list[Entry] = []
        self.fetcher = Fetcher(
            self.runner,
            {name: keys_of(app, name) for name in queues},
            Draw(queues, strict=strict),
            slots,
            consumer="w1",
            block_ms=50,
            give_back=lambda _queue, entries: self.given_back.extend(entries),
            is_held=lambda _lane, _entry_id: True,
        )

    async def __aenter__(self) -> Fetcher:
        return self.fetcher

    async def __aexit__(self, *exc_info: object) -> None:
        await self.runner.aclose()


async def put(app: StreamQ, queue: str, *ids: str, priority: Priority = "normal") -> None:
    for task_id in ids:
        await app.enqueue("t", {}, queue=queue, task_id=task_id, priority=priority)


# Order


async def test_tasks_of_one_lane_start_in_the_order_of_their_enqueueing(app: StreamQ) -> None:
    """A39"""
    seen: list[int] = []

    @app.task(name="note")
    async def note(number: int) -> None:
        seen.append(number)

    for number in range(40):
        await note.enqueue(number)
    async with running(app, concurrency=1):
        await eventually(lambda: len(seen) == 40)
    assert seen == list(range(40))


async def test_every_queue_of_a_worker_is_served(app: StreamQ) -> None:
    """A40"""
    seen: list[str] = []

    @app.task(name="note")
    async def note(queue: str) -> None:
        seen.append(queue)

    names = ["low", "mid", "high"]
    for name in names * 3:
        await note.options(queue=name).enqueue(name)
    async with running(app, queues=dict.fromkeys(names, 1)):
        await eventually(lambda: len(seen) == 9)
    assert Counter(seen) == dict.fromkeys(names, 3)


async def test_the_queue_named_first_is_asked_first(app: StreamQ) -> None:
    """A41"""
    await put(app, "low", "l1")
    await put(app, "high", "h1")
    slots = Slots(1)
    async with Turns(app, slots, {"high": 1, "low": 1}) as fetcher:
        assert await fetcher.run_once() == 1
    assert slots.ids == ["h1"]


async def test_empty_queues_give_nothing_and_no_error(app: StreamQ) -> None:
    """A42: also when nobody ever enqueued, and when the read waits."""
    slots = Slots(5)
    async with Turns(app, slots, {"a": 1, "b": 1}) as fetcher:
        assert await fetcher.run_once() == 0
        assert await fetcher.run_once(block=True) == 0
    assert slots.started == []


async def test_a_fetched_task_is_active_and_its_lease_begins_now(app: StreamQ, inspector: Inspector) -> None:
    """A43: the lease is the pending entry itself, idle for no time yet."""
    await put(app, "default", "t1")
    slots = Slots(5)
    async with Turns(app, slots, {"default": 1}) as fetcher:
        await fetcher.run_once()
    [info] = await inspector.active("default")
    assert (info.id, info.worker, info.orphaned) == ("t1", "w1", False)
    queue = await inspector.queue("default")
    assert (queue.ready, queue.active) == (0, 1)


async def test_strict_order_empties_the_first_queue_before_the_next(app: StreamQ) -> None:
    """A44"""
    seen: list[str] = []

    @app.task(name="note")
    async def note(queue: str) -> None:
        seen.append(queue)

    for queue, count in {"low": 1, "default": 2, "critical": 3}.items():
        for _ in range(count):
            await note.options(queue=queue).enqueue(queue)
    async with running(app, queues={"critical": 1, "default": 1, "low": 1}, strict=True, concurrency=1):
        await eventually(lambda: len(seen) == 6)
    assert seen == ["critical"] * 3 + ["default"] * 2 + ["low"]


async def test_weights_decide_how_often_a_queue_comes_first(app: StreamQ) -> None:
    """A45: with one slot and all queues full, starts follow the weights; no queue starves."""
    count = 300
    calls = [
        app.task(name=f"t-{queue}")(noop).options(queue=queue).call()
        for queue in ("a", "b", "c")
        for _ in range(1)
    ]
    for call in calls:
        await app.enqueue_many([call] * count)
    slots = Slots(1)
    async with Turns(app, slots, {"a": 6, "b": 3, "c": 1}, strict=False) as fetcher:
        for _ in range(count):
            slots.free = 1
            assert await fetcher.run_once() == 1
    drawn = Counter(slots.queues)
    # 300 draws: five standard deviations around the expected 180, 90 and 30.
    assert 138 <= drawn["a"] <= 222
    assert 50 <= drawn["b"] <= 130
    assert 4 <= drawn["c"] <= 56


async def noop() -> None: ...


async def test_lanes_of_a_queue_are_strict_and_front_comes_first(app: StreamQ, server: Server) -> None:
    """A44: inside a queue. What was recovered or released stands in front of everything."""
    keys = keys_of(app)
    for priority in PRIORITIES:
        await put(app, "default", f"{priority}-1", f"{priority}-2", priority=priority)
    server.client().xadd(keys.lanes[Lane.FRONT], {"id": "front-1", "m": b"x", "l": "n", "c": "1"})
    slots = Slots(1)
    async with Turns(app, slots, {"default": 1}) as fetcher:
        for _ in range(7):
            slots.free = 1
            await fetcher.run_once()
    assert slots.ids == ["front-1", "high-1", "high-2", "normal-1", "normal-2", "low-1", "low-2"]
    assert slots.started[0].crashes == 1
    assert slots.started[0].home is Lane.NORMAL


async def test_a_high_task_overtakes_a_backlog_of_normal_ones(app: StreamQ) -> None:
    """Under load at most the batch on its way is ahead of it; then it is the first."""
    await app.enqueue_many([app.task(name="n")(noop).call()] * 400)
    slots = Slots(50)
    async with Turns(app, slots, {"default": 1}) as fetcher:
        await fetcher.run_once()
        slots.free = 50
        await fetcher.run_once()
        await put(app, "default", "urgent", priority="high")
        slots.free = 50
        await fetcher.run_once()
        slots.free, slots.started = 50, slots.started[-50:]
        await fetcher.run_once()
    assert slots.ids.index("urgent") in {0, 50}


async def test_a_worker_whose_slots_free_slowly_takes_the_high_task_next(
    app: StreamQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen empty is believed for a moment only: no normal task comes before it."""
    now_s = 1000.0
    monkeypatch.setattr("streamq.worker.fetcher.monotonic_s", lambda: now_s)
    await app.enqueue_many([app.task(name="n")(noop).call()] * 4)
    slots = Slots(1)
    async with Turns(app, slots, {"default": 1}) as fetcher:
        await fetcher.run_once()
        await put(app, "default", "urgent", priority="high")
        now_s += 0.1
        slots.free = 1
        await fetcher.run_once()
    assert slots.ids[-1] == "urgent"


# Paused


async def test_a_paused_queue_is_left_out_and_the_others_are_served(
    app: StreamQ, inspector: Inspector
) -> None:
    """A47"""
    seen: list[str] = []

    @app.task(name="note")
    async def note(queue: str) -> None:
        seen.append(queue)

    await note.options(queue="default").enqueue("default")
    await inspector.pause("default")
    async with running(app, queues={"default": 1, "critical": 1}):
        await note.options(queue="critical").enqueue("critical")
        await eventually(lambda: seen == ["critical"])
        assert (await inspector.queue("default")).ready == 1
        await inspector.resume("default")
        await eventually(lambda: seen == ["critical", "default"])


async def test_pausing_under_a_running_worker_takes_hold(app: StreamQ, inspector: Inspector) -> None:
    """A47: the hint of the pause reaches the worker, which then takes nothing more from that queue."""
    seen: list[str] = []

    @app.task(name="note")
    async def note(name: str) -> None:
        seen.append(name)

    await note.enqueue("before")
    async with running(app, queues={"default": 1, "other": 1}, strict=True) as worker:
        await eventually(lambda: seen == ["before"])
        await inspector.pause("default")
        await eventually(lambda: "default" in worker.fetcher._paused)
        # What was read before the hint came may still start; the first task ends that read.
        for number in range(4):  # turns of the fetcher, in which "default" would come first
            if number == 1:
                await note.enqueue("held up")
            await note.options(queue="other").enqueue(f"other {number}")
            await eventually(lambda number=number: f"other {number}" in seen)  # type: ignore[misc]
        assert "held up" not in seen
        await inspector.resume("default")
        await eventually(lambda: "held up" in seen)


async def test_with_every_queue_paused_nothing_starts(app: StreamQ, inspector: Inspector) -> None:
    """A48"""
    for name in ("a", "b"):
        await put(app, name, f"{name}1")
        await inspector.pause(name)
    slots = Slots(5)
    async with Turns(app, slots, {"a": 1, "b": 1}) as fetcher:
        for name in ("a", "b"):
            fetcher.set_paused(name, paused=True)
        assert await fetcher.run_once() == 0
        assert await fetcher.run_once(block=True) == 0
    assert slots.started == []


async def test_a_worker_that_starts_on_paused_queues_takes_nothing_until_resumed(
    app: StreamQ, inspector: Inspector
) -> None:
    """A48: through a worker."""
    seen: list[int] = []

    @app.task(name="note")
    async def note() -> None:
        seen.append(1)

    await note.enqueue()
    await inspector.pause("default")
    async with running(app, wait=False) as worker:
        await eventually(lambda: worker.fetcher._paused == {"default"})
        assert seen == []
        await inspector.resume("default")
        await eventually(lambda: seen == [1])


async def test_what_was_on_its_way_when_the_pause_came_is_given_back(
    app: StreamQ, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A47: Redis had handed it out, the worker has not started it: it is not started."""
    await put(app, "default", "a", "b")
    slots = Slots(5)
    turns = Turns(app, slots, {"default": 1})
    async with turns as fetcher:
        handed_out = turns.runner.run

        async def then_paused(command: Any, **limits: Any) -> Any:
            reply = await handed_out(command, **limits)
            if any(reply) if isinstance(reply, list) else False:
                fetcher.set_paused("default", paused=True)
            return reply

        monkeypatch.setattr(turns.runner, "run", then_paused)
        assert await fetcher.run_once() == 0
    assert slots.started == []
    assert [entry.task_id for entry in turns.given_back] == [b"a", b"b"]


async def test_a_pause_holds_although_no_hint_can_reach_the_worker(
    app: StreamQ, inspector: Inspector, server: Server, namespace: str
) -> None:
    """A47: its user may not subscribe, so it does not know; Redis hands nothing out all the same."""
    seen: list[str] = []
    admin: Any = server.client()
    user = f"deaf-{namespace}"
    admin.execute_command("ACL", "SETUSER", user, "on", ">secret", "~*", "resetchannels", "+@all")
    deaf = StreamQ(server.url.replace("//", f"//{user}:secret@"), namespace=namespace)

    @deaf.task(name="note")
    async def note(name: str) -> None:
        seen.append(name)

    try:
        async with running(deaf, queues={"default": 1, "other": 1}, block_ms=1_000) as worker:
            await app.enqueue("note", {"name": "before"})
            await eventually(lambda: seen == ["before"] and not worker.settler.unsettled)
            await inspector.pause("default")
            await app.enqueue("note", {"name": "held up"})
            # Its blocked read is over both queues: this one ends it, and a later one was begun after it.
            for number in (1, 2):
                await app.enqueue("note", {"name": f"other {number}"}, queue="other")
                await eventually(lambda number=number: f"other {number}" in seen)  # type: ignore[misc]
            assert "held up" not in seen
            info = await inspector.queue("default")
            assert (info.ready, info.active) == (1, 0)
            await inspector.resume("default")
            await eventually(lambda: "held up" in seen)
    finally:
        admin.execute_command("ACL", "DELUSER", user)


async def test_a_resume_wakes_a_worker_that_waits_for_other_queues(
    app: StreamQ, inspector: Inspector
) -> None:
    """A48: its read is blocked, and does not know of the queue that came back."""
    seen: list[str] = []

    @app.task(name="note")
    async def note(name: str) -> None:
        seen.append(name)

    await note.enqueue("a")
    await inspector.pause("default")
    async with running(app, queues={"default": 1, "other": 1}, block_ms=60_000) as worker:
        await eventually(lambda: worker.fetcher._paused == {"default"})
        await note.options(queue="other").enqueue("b")
        await eventually(lambda: seen == ["b"])
        await inspector.resume("default")
        await eventually(lambda: seen == ["b", "a"])


# Slots


@pytest.mark.parametrize("concurrency", [1, 3, 10])
async def test_a_worker_never_holds_more_entries_than_slots(
    app: StreamQ, inspector: Inspector, concurrency: int
) -> None:
    """All lanes are full. An entry whose handler has ended, its outcome on its way, needs no slot."""
    ends = asyncio.Event()
    at_once = most = most_held = started = 0

    @app.task(name="hold")
    async def hold() -> None:
        nonlocal at_once, most, started, most_held
        started += 1
        at_once += 1
        most = max(most, at_once)
        most_held = max(most_held, len(worker.held) - worker.settler.unsettled)
        await ends.wait()
        await asyncio.sleep(0)
        at_once -= 1

    for priority in PRIORITIES:
        await app.enqueue_many([hold.options(priority=priority).call()] * 8)
    async with running(app, wait=False, concurrency=concurrency) as worker:
        await eventually(lambda: started == concurrency)
        # Nothing is on its way now: what Redis says is exactly the slots.
        assert (await inspector.queue("default")).active == concurrency
        ends.set()
        await eventually(lambda: started == 24)
        await eventually(lambda: _drained(inspector))
    assert most == most_held == concurrency


async def _drained(inspector: Inspector) -> bool:
    info = await inspector.queue("default")
    return info.active == info.ready == 0


async def test_what_a_waiting_read_brought_too_much_is_given_back(app: StreamQ) -> None:
    """XREADGROUP counts per key: four lanes may answer four entries to a worker with one slot."""
    for priority in PRIORITIES:
        await put(app, "default", priority, priority=priority)
    slots = Slots(1)
    turns = Turns(app, slots, {"default": 1})
    async with turns as fetcher:
        assert await fetcher.run_once(block=True) == 1
    assert slots.ids == ["high"]
    assert [entry.task_id for entry in turns.given_back] == [b"normal", b"low"]


async def test_a_surplus_goes_back_to_the_front_with_nothing_spent(
    app: StreamQ, inspector: Inspector
) -> None:
    """Through a worker with one slot: whatever it took too much runs later, first attempt, no crash."""
    seen: dict[str, tuple[int, int]] = {}
    at_once = most = 0

    @app.task(name="note")
    async def note(name: str) -> None:
        nonlocal at_once, most
        from streamq import current_task

        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        seen[name] = current_task().attempt, current_task().crashes

    async with running(app, concurrency=1, block_ms=5000) as worker:
        for number in range(20):
            before = worker.fetcher.fetched
            await asyncio.gather(*(note.options(priority=p).enqueue(f"{p}{number}") for p in PRIORITIES))
            await eventually(lambda number=number: len(seen) == 3 * number + 3)  # type: ignore[misc]
            assert worker.fetcher.fetched > before
        await eventually(lambda: _drained(inspector))
    assert set(seen.values()) == {(1, 0)}
    assert most == 1


# Round trips


async def test_a_batch_of_tasks_takes_few_reads_whatever_the_latency(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """B31: 5 ms away, 1,000 tasks take reads of many entries, not one read a task."""
    proxy = await proxy_for(server)
    proxy.latency_s = 0.005
    app = StreamQ(proxy.url, namespace=namespace)
    ran = 0

    @app.task(name="count")
    async def count() -> None:
        nonlocal ran
        ran += 1

    async with app:
        await app.enqueue_many([count.call()] * 1000)
        before = server.commandstats()
        async with running(app, concurrency=100, lease_ms=10_000):
            await eventually(lambda: ran == 1000)
        calls = server.commandstats() - before
    assert calls["xreadgroup"] <= 100  # one a task would be 1,000


LANE_READ = b":normal\r\n$1\r\n>\r\n"
"""What only a read of new entries of the normal lane alone contains."""


async def test_a_lost_reply_to_a_fetch_strands_nothing(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """B4: what Redis delivered into the void is given back at the reconnect: no crash, no failure counted."""
    from streamq import current_task

    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    seen: list[tuple[int, int, int]] = []

    @app.task(name="note")
    async def note(number: int) -> None:
        seen.append((number, current_task().crashes, current_task().attempt))

    async with app:
        for number in range(5):
            await note.enqueue(number)
        lost = proxy.lose_next_reply(LANE_READ)
        # A lease so long that only giving back, not recovery, can explain that they run.
        async with running(app, wait=False, lease_ms=600_000) as worker:
            await eventually(lambda: len(seen) == 5)
            assert lost.is_set()
            await eventually(lambda: not worker.settler.unsettled)
    assert sorted(seen) == [(number, 0, 1) for number in range(5)]


# Groups


async def test_deleting_a_queues_streams_under_a_worker_only_interrupts_it(
    app: StreamQ, server: Server
) -> None:
    """NOGROUP: the groups are made again, from the beginning of the streams."""
    seen: list[int] = []

    @app.task(name="note")
    async def note(number: int) -> None:
        seen.append(number)

    async with running(app):
        await note.enqueue(1)
        await eventually(lambda: seen == [1])
        server.client().delete(*keys_of(app).lanes.values())
        await note.enqueue(2)
        await eventually(lambda: seen == [1, 2])


async def test_tasks_enqueued_before_any_worker_existed_are_delivered(app: StreamQ) -> None:
    """The group begins at the stream's beginning, never at its end."""
    await put(app, "default", "early")
    slots = Slots(1)
    async with Turns(app, slots, {"default": 1}) as fetcher:
        await fetcher.run_once()
    assert slots.ids == ["early"]


async def test_a_quiet_fetcher_takes_nothing_more(app: StreamQ) -> None:
    await put(app, "default", "t1")
    slots = Slots(1)
    async with Turns(app, slots, {"default": 1}) as fetcher:
        fetcher.quiet()
        assert await fetcher.run_once() == 0
        await fetcher.run()
    assert slots.started == []


async def test_a_worker_serves_each_of_the_four_lanes(app: StreamQ) -> None:
    assert len(LANES) == 4
    worker = make_worker(app)
    assert set(worker.queues["default"].lanes) == set(LANES)
