"""The supervisor with children that do as they are told: what it replaces, recovers, kills, and when."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from streamq.errors import Unavailable
from streamq.worker.supervisor import ORDERED, Backoff, Supervisor
from tests.support import eventually

pytestmark = pytest.mark.processes

OBEDIENT = "trap 'exit 0' TERM; trap ':' USR1; while :; do sleep 0.02; done"
DEAF = "trap '' TERM; while :; do sleep 0.02; done"


class Fleet:
    """Starts shells as children, and writes down what is asked of it."""

    def __init__(self, script: str = OBEDIENT) -> None:
        self.script = script
        self.started: list[str] = []
        self.recovered: list[str] = []
        self.outages = 0
        self._numbers = itertools.count(1)

    def new_id(self) -> str:
        return f"w{next(self._numbers)}"

    async def start(self, worker_id: str) -> Process:
        self.started.append(worker_id)
        return await asyncio.create_subprocess_exec("/bin/sh", "-c", self.script)

    async def recover(self, worker_id: str) -> int:
        if self.outages:
            self.outages -= 1
            raise Unavailable("no connection")
        self.recovered.append(worker_id)
        return 1

    @asynccontextmanager
    async def supervised(self, count: int = 2, *, stop_within_s: float = 30.0) -> AsyncIterator[Supervisor]:
        supervisor = Supervisor(
            count, self.start, self.recover, new_id=self.new_id, stop_within_s=stop_within_s
        )
        running = asyncio.create_task(supervisor.run())
        try:
            await eventually(lambda: len(supervisor.children) == count, "the children run")
            yield supervisor
        finally:
            running.cancel()
            await asyncio.wait([running])


def kill(supervisor: Supervisor, worker_id: str, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(supervisor.children[worker_id], number)


def test_the_first_death_costs_no_time_and_early_ones_ever_more() -> None:
    """Never more than the longest pause, and never giving up; a long life starts the count again."""
    backoff = Backoff()

    assert [backoff.after(1.0) for _ in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert backoff.after(3_600.0) == 0.0
    assert backoff.after(1.0) == 0.5
    for _ in range(5_000):
        assert backoff.after(0.0) <= 15.0


async def test_a_dead_child_is_recovered_and_replaced_under_a_new_id() -> None:
    fleet = Fleet()
    async with fleet.supervised() as supervisor:
        kill(supervisor, "w1")
        await eventually(lambda: set(supervisor.children) == {"w2", "w3"}, "it is replaced")
        await eventually(lambda: fleet.recovered == ["w1"], "it is recovered")
        assert supervisor.replaced == 1


async def test_a_child_that_somebody_stopped_is_replaced_with_nothing_to_recover() -> None:
    """Exit code 0: it has given everything back itself."""
    fleet = Fleet()
    async with fleet.supervised(1) as supervisor:
        await until_trapped(supervisor)
        kill(supervisor, "w1", signal.SIGTERM)
        await eventually(lambda: set(supervisor.children) == {"w2"}, "it is replaced")
        assert fleet.recovered == []


async def test_children_that_were_ordered_to_end_are_not_replaced_and_the_supervisor_ends() -> None:
    """Their exit code says so; nothing is to be recovered, and all went well."""
    fleet = Fleet(OBEDIENT.replace("exit 0", f"exit {ORDERED}"))
    supervisor = Supervisor(2, fleet.start, fleet.recover, new_id=fleet.new_id, stop_within_s=30.0)
    running = asyncio.create_task(supervisor.run())
    await eventually(lambda: len(supervisor.children) == 2, "the children run")
    await until_trapped(supervisor)

    kill(supervisor, "w1", signal.SIGTERM)
    await eventually(lambda: set(supervisor.children) == {"w2"}, "it has ended")
    assert not running.done()
    kill(supervisor, "w2", signal.SIGTERM)

    assert await running is True
    assert (fleet.started, fleet.recovered, supervisor.replaced) == (["w1", "w2"], [], 0)


async def test_recovery_is_tried_again_while_redis_is_away_and_does_not_hold_up_the_replacement() -> None:
    fleet = Fleet()
    fleet.outages = 2
    async with fleet.supervised(1) as supervisor:
        kill(supervisor, "w1")
        await eventually(lambda: "w2" in supervisor.children, "it is replaced")
        assert fleet.recovered == []
        await eventually(lambda: fleet.recovered == ["w1"], "it is recovered in the end")


async def test_after_quiet_nothing_is_replaced() -> None:
    fleet = Fleet()
    async with fleet.supervised() as supervisor:
        await until_trapped(supervisor)
        supervisor.quiet()
        supervisor.quiet()
        kill(supervisor, "w1")
        await eventually(lambda: fleet.recovered == ["w1"], "it is recovered")
        assert set(supervisor.children) == {"w2"}
        assert fleet.started == ["w1", "w2"]


async def test_stop_ends_every_child_and_run_tells_that_all_went_well() -> None:
    fleet = Fleet()
    supervisor = Supervisor(2, fleet.start, fleet.recover, new_id=fleet.new_id, stop_within_s=30.0)
    running = asyncio.create_task(supervisor.run())
    await eventually(lambda: len(supervisor.children) == 2, "the children run")
    await until_trapped(supervisor)

    supervisor.stop()
    supervisor.stop()

    assert await running is True
    assert supervisor.children == {}
    assert fleet.recovered == []
    assert len(fleet.started) == 2


async def test_a_child_that_does_not_end_is_killed_and_recovered() -> None:
    fleet = Fleet(DEAF)
    supervisor = Supervisor(1, fleet.start, fleet.recover, new_id=fleet.new_id, stop_within_s=0.3)
    running = asyncio.create_task(supervisor.run())
    await eventually(lambda: supervisor.children, "the child runs")
    await until_trapped(supervisor)

    supervisor.stop()

    assert await running is False
    assert fleet.recovered == ["w1"]


async def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    class Poor(Fleet):
        async def start(self, worker_id: str) -> Process:
            if len(self.started) < 1:
                self.started.append(worker_id)
                raise BlockingIOError("no more processes")
            return await super().start(worker_id)

    fleet = Poor()
    async with fleet.supervised(1) as supervisor:
        assert set(supervisor.children) == {"w2"}


async def test_cancelling_run_leaves_no_child_behind() -> None:
    fleet = Fleet()
    async with fleet.supervised() as supervisor:
        pids = list(supervisor.children.values())
    assert not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


async def until_trapped(supervisor: Supervisor) -> None:
    """Until the shells have come to their loop: they have a child of their own then."""

    def in_loop() -> bool:
        return all(psutil.Process(pid).children() for pid in supervisor.children.values())

    await eventually(in_loop, "the shells have set their traps")
