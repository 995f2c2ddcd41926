"""Headers on their way from the producer's map to the handler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from streamq import State, StreamQ, current_task
from streamq.errors import OptionError
from tests.client.conftest import Producing, call
from tests.servers import Server
from tests.support import eventually, running


@pytest.fixture
def seen() -> dict[str, Mapping[str, str]]:
    """Task id -> the headers that its handler saw."""
    return {}


@pytest.fixture
async def app(server: Server, namespace: str, seen: dict[str, Mapping[str, str]]) -> AsyncIterator[StreamQ]:
    """A running worker whose one task notes the headers."""
    app = StreamQ(server.url, namespace=namespace, defaults={"headers": {"from": "app", "app": "1"}})

    @app.task(name="t", headers={"from": "task", "task": "1"})
    async def t() -> None:
        seen[current_task().id] = dict(current_task().headers)

    async with running(app):
        yield app


async def test_the_handler_sees_the_headers_of_app_task_and_call_merged(
    producing: Producing, seen: dict[str, Mapping[str, str]]
) -> None:
    """A20: name by name, the call's win over the task's, and those over the app's."""
    task = producing.app.tasks["t"]
    handles = [
        await producing.enqueue(task.call()),
        await producing.enqueue(task.options(headers={"from": "call", "x": "ü"}).call()),
        await producing.enqueue(task.options(headers={"x": "1"}).options(headers={"y": "2"}).call()),
        await producing.enqueue("t", headers={"from": "name"}),
    ]
    await eventually(lambda: len(seen) == len(handles), "all ran")
    assert [seen[handle.id] for handle in handles] == [
        {"app": "1", "task": "1", "from": "task"},
        {"app": "1", "task": "1", "from": "call", "x": "ü"},
        {"app": "1", "task": "1", "from": "task", "x": "1", "y": "2"},
        {"app": "1", "from": "name"},
    ]


@pytest.mark.parametrize("headers", [None, {}])
async def test_no_headers_work(server: Server, namespace: str, headers: Any) -> None:
    """A20: empty and None alike."""
    plain = StreamQ(server.url, namespace=namespace)
    found: list[Mapping[str, str]] = []

    @plain.task(name="plain")
    async def task() -> None:
        found.append(current_task().headers)

    async with plain, running(plain):
        await plain.enqueue("plain", headers=headers)
        await eventually(lambda: found, "it ran")
    assert dict(found[0]) == {}


async def test_headers_are_kept_through_a_delay(
    producing: Producing, seen: dict[str, Mapping[str, str]]
) -> None:
    """A21: parked, forwarded and run."""
    handle = await producing.enqueue("t", headers={"x": "1"}, delay=0.3)
    info = await producing.info(handle)
    assert (info.state, info.headers) == (State.SCHEDULED, {"from": "app", "app": "1", "x": "1"})
    await eventually(lambda: seen, "it ran")
    assert seen == {handle.id: {"from": "app", "app": "1", "x": "1"}}


async def test_headers_are_kept_through_a_retry(server: Server, namespace: str) -> None:
    """A21: each attempt sees them."""
    app = StreamQ(server.url, namespace=namespace)
    found: list[tuple[int, str]] = []

    @app.task(name="flaky")
    async def flaky() -> None:
        found.append((current_task().attempt, current_task().headers["x"]))
        if current_task().attempt < 3:
            raise ValueError

    async with app, running(app):
        await flaky.options(headers={"x": "1"}, retry=_at_once(3)).enqueue()
        await eventually(lambda: len(found) == 3, "three attempts")
    assert found == [(1, "1"), (2, "1"), (3, "1")]


def _at_once(retries: int) -> Any:
    from streamq import Retry

    return Retry(retries, delay=0.01)


async def test_what_the_caller_does_to_its_map_later_changes_nothing(
    producing: Producing, seen: dict[str, Mapping[str, str]]
) -> None:
    """A22: a copy is taken when the option is given."""
    given = {"x": "before"}
    made = producing.app.tasks["t"].options(headers=given).call()
    task = producing.app.task(name="other", headers=given)(print)
    plain = call(headers=given)
    given["x"] = "after"
    given["y"] = "new"
    handle = await producing.enqueue(made)
    given["x"] = "later still"
    await eventually(lambda: seen, "it ran")
    assert seen[handle.id] == {"app": "1", "task": "1", "from": "task", "x": "before"}
    for each in (task.call(), plain):
        later = await producing.enqueue(each, queue="elsewhere")
        assert (await producing.info(later)).headers["x"] == "before"


async def test_a_handler_cannot_change_what_the_next_attempt_sees(server: Server, namespace: str) -> None:
    """A22: the headers of the running task are read-only, or a copy."""
    app = StreamQ(server.url, namespace=namespace)
    found: list[dict[str, str]] = []

    @app.task(name="meddling", retry=_at_once(2))
    async def meddling() -> None:
        headers: Any = current_task().headers
        found.append(dict(headers))
        try:
            headers["x"] = "changed"
        finally:
            raise ValueError

    async with app, running(app):
        await meddling.options(headers={"x": "1"}).enqueue()
        await eventually(lambda: len(found) == 3, "three attempts")
    assert found == [{"x": "1"}] * 3


async def test_headers_that_are_too_large_are_refused(producing: Producing) -> None:
    """A20: all of them together, so the merged map counts."""
    half = "v" * 5000
    task = producing.app.task(name="big", headers={"a": half})(print)
    await producing.enqueue(task.call(), queue="elsewhere")
    with pytest.raises(ValueError, match="headers"):
        await producing.enqueue(task.options(headers={"b": half}).call(), queue="elsewhere")


def test_headers_must_be_text(app: StreamQ) -> None:
    """A20"""
    with pytest.raises(OptionError, match="headers"):
        app.task(name="x", headers=["no map"])(print)  # type: ignore[call-overload]
