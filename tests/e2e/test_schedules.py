"""Schedules while their workers are killed: each tick is enqueued once, and none is lost."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest

from streamq import Cron, CronTick
from tests.e2e.processes import wait_until
from tests.e2e.scenes import Scene

pytestmark = [pytest.mark.processes, pytest.mark.slow]

TICKS = 200
EVERY = timedelta(milliseconds=100)
LEASE = ("--lease", "1.5", "--concurrency", "20")


def history(scene: Scene) -> list[CronTick]:
    """What fired, the oldest first."""
    with scene.app.sync() as client:
        return client.crons.history(limit=1000)[::-1]


def test_two_hundred_ticks_under_kills_are_one_enqueue_each(scene: Scene) -> None:
    """B25: two workers, both of which fire, are killed and replaced again and again.

    Whoever dies with a tick in its hands has fired it or has not; ticks that nobody was there for come
    late, each of them. What runs twice because its worker died is one task, with one id.
    """
    chance = random.Random(25)
    kills = 0
    with scene.worker(*LEASE) as one, scene.worker(*LEASE) as two:
        one.until_started()
        two.until_started()
        start = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
        with scene.app.sync() as client:
            call = scene.app.call("tick")
            end = start + (TICKS - 1) * EVERY
            client.crons.add(Cron("e", EVERY, call, start=start, end=end, misfire="all"))
        while (fired := len(history(scene))) < TICKS - 20:
            wanted = fired + chance.randint(4, 20)
            until_fired(scene, wanted)
            victim = chance.choice([one, two])
            victim.kill()
            victim.start()
            kills += 1
        until_fired(scene, TICKS)
        wait_until(lambda: len(ran(scene)) >= TICKS, "all ticks run")
        scene.until_drained()

    ticks = history(scene)
    assert [tick.due_at for tick in ticks] == [start + n * EVERY for n in range(TICKS)]
    assert {tick.outcome for tick in ticks} == {"ready"}
    by_tick = {tick.due_at: {tick.task_id} for tick in ticks}
    assert ran(scene) == by_tick
    assert len({tick.task_id for tick in ticks}) == TICKS
    assert kills >= 8


def until_fired(scene: Scene, count: int) -> None:
    wait_until(lambda: len(history(scene)) >= count, f"{count} ticks fire")


def ran(scene: Scene) -> dict[datetime, set[str | None]]:
    """The ids of the tasks that ran for each tick."""
    found: dict[datetime, set[str | None]] = defaultdict(set)
    for record in scene.journal.read():
        if record.kind == "tick":
            tick_ms, _, task_id = record.task_id.partition(":")
            found[datetime.fromtimestamp(int(tick_ms) / 1000, UTC)].add(task_id)
    return dict(found)
