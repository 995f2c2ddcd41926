"""One contract for every component's ``run``: it can be cancelled at any time and leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamq import StreamQ
from streamq.worker.worker import Worker
from tests.servers import Server
from tests.support import eventually, make_worker

Run = Callable[[], Coroutine[Any, Any, None]]

COMPONENTS: dict[str, Callable[[Worker], Run]] = {
    "fetcher": lambda worker: worker.fetcher.run,
    "forwarder": lambda worker: worker.forwarder.run,
    "aggregator": lambda worker: worker.aggregator.run,
    "recoverer": lambda worker: worker.recoverer.run,
    "scheduler": lambda worker: worker.scheduler.run,
    "deployer": lambda worker: worker.deployer.run,
    "janitor": lambda worker: worker.janitor.run,
    "auditor": lambda worker: worker.auditor.run,
    "caretaker": lambda worker: worker.caretaker.run,
    "canceller": lambda worker: worker.canceller.run,
    "presence": lambda worker: worker.presence.run,
    "hints": lambda worker: worker.hints.run,
    "settler": lambda worker: worker.settler.run,
    "worker": lambda worker: worker.run,
}


@pytest.fixture(params=["up", "down"])
def reachable(request: pytest.FixtureRequest, server: Server, namespace: str) -> StreamQ:
    """An app whose Redis is there, or is not."""
    return StreamQ(server.url if request.param == "up" else "redis://127.0.0.1:1/0", namespace=namespace)


async def closed(worker: Worker) -> None:
    for runner in (worker._control, worker._settling, worker._reading):
        await runner.aclose()
    worker.lease_keeper.stop()


@pytest.mark.parametrize("turns", [0, 1, 3, 30])
@pytest.mark.parametrize("name", COMPONENTS)
async def test_a_component_can_be_cancelled_after_any_number_of_turns_and_twice(
    reachable: StreamQ, name: str, turns: int
) -> None:
    """It ends soon, leaves no task behind, and raises nothing but the cancellation."""
    worker = make_worker(reachable, grace_s=0)
    before = asyncio.all_tasks()
    run = asyncio.create_task(COMPONENTS[name](worker)())
    for _ in range(turns):
        await asyncio.sleep(0.001)
    run.cancel()
    await asyncio.sleep(0)
    run.cancel()
    await asyncio.wait([run], timeout=20)
    assert run.done()
    assert run.cancelled() or run.exception() is None
    await closed(worker)
    # A clean-up that the second cancellation broke off may take a few more turns.
    await eventually(lambda: not asyncio.all_tasks() - before, "no task is left")


@pytest.mark.parametrize(
    "name",
    [
        "forwarder",
        "aggregator",
        "scheduler",
        "deployer",
        "recoverer",
        "janitor",
        "presence",
        "caretaker",
        "auditor",
    ],
)
async def test_a_component_goes_on_after_failures(
    app: StreamQ, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that Redis refuses is logged and tried again."""
    from streamq.errors import ReadOnly
    from streamq.worker import aggregator, auditor, deployer, forwarder, janitor, recoverer, scheduler

    monkeypatch.setattr(forwarder, "_RETRY_S", 0.01)
    monkeypatch.setattr(aggregator, "_RETRY_S", 0.01)
    monkeypatch.setattr(scheduler, "_RETRY_S", 0.01)
    monkeypatch.setattr(deployer, "_RETRY_S", 0.01)
    monkeypatch.setattr(recoverer, "_PASS_S", 0.01)
    monkeypatch.setattr(janitor, "_LONGEST_S", 0.01)
    monkeypatch.setattr(auditor, "_PERIOD_S", 0.01)
    worker = make_worker(app, presence_s=0.1, care_s=0.1)
    worker.scheduler.expect("default", 0)
    component = getattr(worker, name)
    passes: list[int] = []
    done = asyncio.Event()

    async def run_once(*_args: object) -> int:
        passes.append(1)
        if len(passes) >= 3:
            done.set()
        raise ReadOnly("not now")

    monkeypatch.setattr(component, "run_once", run_once)
    run = asyncio.create_task(component.run())
    await asyncio.wait_for(done.wait(), 20)
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    await closed(worker)
