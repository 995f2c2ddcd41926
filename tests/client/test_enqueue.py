"""Enqueueing one task through the public API: where it lands, and with which options."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamq import Inspector, Retry, State, StreamQ, TaskCall
from streamq.errors import BatchError, OptionError, PayloadError, TaskIdConflict, UsageError
from streamq.model.retry import Fixed
from tests.client.conftest import Producing
from tests.servers import Server

SOON = timedelta(minutes=1)


def now() -> datetime:
    return datetime.now(UTC)


def keys_in(server: Server, app: StreamQ) -> list[bytes]:
    return list(server.client().scan_iter(match=f"sq:{app.config.namespace}:*", count=1000))


async def test_without_options_a_task_is_ready_at_once_with_the_documented_defaults(
    producing: Producing, inspector: Inspector
) -> None:
    """A1: 25 retries, 30 minutes, ready; a ready task has no next time, it is due already."""
    handle = await producing.enqueue("mail:send", {"to": "a@example.org"})
    info = await producing.info(handle)
    assert (info.id, info.queue, info.type) == (handle.id, "default", "mail:send")
    assert (info.state, info.priority, info.next_at) == (State.READY, "normal", None)
    assert (info.max_retries, info.timeout, info.deadline, info.expires) == (25, 1800.0, None, None)
    assert (info.retried, info.crashes, info.retention, info.headers) == (0, 0, 0.0, {})
    assert info.enqueued_at is not None
    assert abs(info.enqueued_at - now()) < SOON
    assert handle.created
    assert (await inspector.queue("default")).ready == 1


async def test_a_future_moment_schedules_the_task_for_it(producing: Producing, inspector: Inspector) -> None:
    """A2"""
    at = (now() + timedelta(hours=2)).replace(microsecond=123_000)
    info = await producing.info(await producing.enqueue("t", at=at))
    assert (info.state, info.next_at) == (State.SCHEDULED, at)
    queue = await inspector.queue("default")
    assert (queue.ready, queue.scheduled) == (0, 1)


@pytest.mark.parametrize("delay", [3600, 3600.0, timedelta(hours=1)])
async def test_a_delay_schedules_the_task_that_long_from_now(producing: Producing, delay: Any) -> None:
    """A3: the delay counts from Redis's clock."""
    info = await producing.info(await producing.enqueue("t", delay=delay))
    assert info.state is State.SCHEDULED
    assert info.next_at is not None
    assert abs(info.next_at - now() - timedelta(hours=1)) < SOON


@pytest.mark.parametrize("options", [{"delay": 0}, {"delay": timedelta()}, {"delay": None}, {"at": None}])
async def test_no_delay_is_ready_at_once(producing: Producing, options: Any) -> None:
    """A3: delay 0; None says the same as nothing."""
    assert (await producing.info(await producing.enqueue("t", **options))).state is State.READY


async def test_a_moment_in_the_past_is_ready_at_once(producing: Producing) -> None:
    """A4"""
    handle = await producing.enqueue("t", at=now() - timedelta(hours=1))
    assert (await producing.info(handle)).state is State.READY


@pytest.mark.parametrize("retry", [3, Retry(max_retries=3), Retry(max_retries=3, delay=2.5)])
async def test_retries_are_stored_as_given(producing: Producing, retry: Any) -> None:
    """A5"""
    assert (await producing.info(await producing.enqueue("t", retry=retry))).max_retries == 3


async def test_no_retry_is_said_by_none_or_zero(producing: Producing) -> None:
    """A5"""
    for retry in (None, 0):
        assert (await producing.info(await producing.enqueue("t", retry=retry))).max_retries == 0


async def test_negative_retries_are_refused(producing: Producing, server: Server) -> None:
    """A6: Asynq stores 0. StreamQ refuses: a negative count is a mistake, and guessing hides it."""
    with pytest.raises(OptionError, match=r"retry\.max_retries"):
        await producing.enqueue("t", retry=-2)
    assert keys_in(server, producing.app) == []


async def test_the_last_of_two_equal_options_wins(opened: StreamQ) -> None:
    """A7: where one option is given in several steps; in one step Python itself refuses to take two."""
    task = opened.task(name="t")(print)
    handle = await task.options(queue="a", retry=1, delay=60).options(queue="b", retry=2).enqueue()
    info = await handle.info()
    assert (info.queue, info.max_retries, info.state) == ("b", 2, State.SCHEDULED)
    again = await opened.enqueue(task.options(retry=1, delay=60).call(), retry=5, at=now() - SOON)
    info = await again.info()
    assert (info.max_retries, info.state) == (5, State.READY), "a moment replaces a delay"


async def test_only_the_queue_that_was_named_changes(producing: Producing, inspector: Inspector) -> None:
    """A8"""
    assert await inspector.queues() == []
    await producing.enqueue("t", queue="mail")
    assert await inspector.queues() == ["mail"]
    assert (await inspector.queue("mail")).size == 1
    await producing.enqueue("t", queue="other")
    assert await inspector.queues() == ["mail", "other"]
    assert (await inspector.queue("mail")).size == 1


async def test_queue_names_are_case_sensitive(producing: Producing, inspector: Inspector) -> None:
    """A9"""
    await producing.enqueue("t", queue="MyQueue")
    await producing.enqueue("t", queue="myqueue")
    await producing.enqueue("t", queue="myqueue")
    assert await inspector.queues() == ["MyQueue", "myqueue"]
    sizes = [(await inspector.queue(name)).size for name in ("MyQueue", "myqueue")]
    assert sizes == [1, 2]


async def test_a_timeout_alone_adds_no_deadline(producing: Producing) -> None:
    """A10"""
    info = await producing.info(await producing.enqueue("t", timeout=20))
    assert (info.timeout, info.deadline) == (20.0, None)


async def test_a_deadline_alone_adds_no_timeout(producing: Producing) -> None:
    """A11"""
    deadline = datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)
    info = await producing.info(await producing.enqueue("t", deadline=deadline))
    assert (info.timeout, info.deadline) == (None, deadline)


async def test_timeout_and_deadline_are_both_kept(producing: Producing) -> None:
    """A12"""
    deadline = datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)
    info = await producing.info(await producing.enqueue("t", deadline=deadline, timeout=0.25))
    assert (info.timeout, info.deadline) == (0.25, deadline)


async def test_no_timeout_is_said_by_none(producing: Producing) -> None:
    """A10: None means no limit; only silence means the default."""
    assert (await producing.info(await producing.enqueue("t", timeout=None))).timeout is None


async def test_retention_is_recorded(producing: Producing) -> None:
    """A13"""
    handle = await producing.enqueue("t", retention=timedelta(hours=24))
    assert (await producing.info(handle)).retention == 86_400.0


async def test_options_of_the_task_apply_to_its_calls(producing: Producing) -> None:
    """A14"""
    app = producing.app
    task = app.task(
        name="t", queue="mail", retry=4, timeout=7, retention=60, priority="low", headers={"k": "task"}
    )(print)
    info = await producing.info(await producing.enqueue(task.call("x")))
    assert (info.queue, info.max_retries, info.timeout, info.retention) == ("mail", 4, 7.0, 60.0)
    assert (info.priority, info.headers) == ("low", {"k": "task"})


async def test_the_call_wins_over_the_task_and_the_task_over_the_app(server: Server, namespace: str) -> None:
    """A15: option by option, not all or nothing; headers are merged name by name."""
    app = StreamQ(
        server.url,
        namespace=namespace,
        defaults={"queue": "app", "retry": 1, "timeout": 1, "headers": {"a": "app", "b": "app", "c": "app"}},
    )
    task = app.task(name="t", queue="task", retry=2, headers={"b": "task", "c": "task"})(print)
    async with app:
        info = await (await task.options(queue="call", headers={"c": "call"}).enqueue()).info()
        plain = await (await app.enqueue("t")).info()
    assert (info.queue, info.max_retries, info.timeout) == ("call", 2, 1.0)
    assert info.headers == {"a": "app", "b": "task", "c": "call"}
    assert (plain.queue, plain.max_retries) == ("app", 1), "by name, the task's own options are not known"


async def test_an_id_of_the_callers_choice_is_kept(producing: Producing) -> None:
    """A16"""
    handle = await producing.enqueue("t", task_id="custom_id")
    assert handle.id == "custom_id"
    assert (await producing.info(handle)).id == "custom_id"


@pytest.mark.parametrize("first", [{}, {"delay": 60}], ids=["ready", "scheduled"])
@pytest.mark.parametrize("second", [{}, {"delay": 60}], ids=["to ready", "to scheduled"])
async def test_an_id_that_is_taken_is_refused_and_its_task_untouched(
    producing: Producing, inspector: Inspector, first: Any, second: Any
) -> None:
    """A17, A18: on the ready and on the schedule path; test_unique has the others."""
    before = await producing.info(await producing.enqueue("one", {"n": 1}, task_id="x", **first))
    with pytest.raises(TaskIdConflict) as caught:
        await producing.enqueue("two", {"n": 2}, task_id="x", **second)
    assert (caught.value.queue, caught.value.task_id) == ("default", "x")
    handle = await producing.enqueue("three", task_id="x", on_conflict="return", **second)
    assert not handle.created
    assert await producing.info(handle) == before
    assert (await inspector.queue("default")).size == 1


async def test_replacing_takes_the_place_of_a_finished_task_only(producing: Producing) -> None:
    """A17: on_conflict='replace' never touches a task that is still to run."""
    await producing.enqueue("one", task_id="x")
    with pytest.raises(TaskIdConflict):
        await producing.enqueue("two", task_id="x", on_conflict="replace")


async def test_the_same_id_may_live_in_two_queues(producing: Producing, inspector: Inspector) -> None:
    """A17: ids are unique within a queue, like the keys that hold them."""
    await producing.enqueue("t", task_id="x", queue="a")
    await producing.enqueue("t", task_id="x", queue="b")
    assert [(await inspector.queue(name)).size for name in ("a", "b")] == [1, 1]


class Opaque:
    pass


@pytest.mark.parametrize(
    "task, arguments, options, field",
    [
        (None, None, {}, "task"),
        ("", None, {}, "task"),
        ("  ", None, {}, "task"),
        ("x" * 201, None, {}, "task"),
        ("t", None, {"queue": ""}, "queue"),
        ("t", None, {"queue": " "}, "queue"),
        ("t", None, {"queue": "a{b}"}, "queue"),
        ("t", None, {"queue": None}, "queue"),
        ("t", None, {"task_id": ""}, "task_id"),
        ("t", None, {"task_id": " "}, "task_id"),
        ("t", None, {"task_id": "a b"}, "task_id"),
        ("t", None, {"priority": "urgent"}, "priority"),
        ("t", None, {"delay": -1}, "delay"),
        ("t", None, {"delay": float("nan")}, "delay"),
        ("t", None, {"delay": "5"}, "delay"),
        ("t", None, {"delay": 1, "at": datetime(2040, 1, 1, tzinfo=UTC)}, "delay"),
        ("t", None, {"at": datetime(2040, 1, 1)}, "at"),  # noqa: DTZ001  # that it has no zone is the point
        ("t", None, {"timeout": 0}, "timeout"),
        ("t", None, {"timeout": -1}, "timeout"),
        ("t", None, {"expires": -1}, "expires"),
        ("t", None, {"retention": -1}, "retention"),
        ("t", None, {"retry": "many"}, "retry"),
        ("t", None, {"retry": Retry(1, Fixed(1)), "retries": 1}, "retries"),
        ("t", None, {"on_conflict": "ignore"}, "on_conflict"),
        ("t", None, {"on_conflict": "return"}, "on_conflict"),
        ("mail:*", None, {}, "task"),
        (TaskCall("mail:*"), None, {}, "type"),
        (len, None, {}, "task"),
        ("t", None, {"headers": {"k": 1}}, "headers"),
        ("t", None, {"headers": {"": "v"}}, "headers"),
        ("t", None, {"headers": [("k", "v")]}, "headers"),
        ("t", None, {"headers": {"k": "v" * 10_000}}, "headers"),
        ("t", None, {"queu": "mail"}, "queu"),
        ("t", ["not", "a", "map"], {}, "arguments"),
        ("t", {1: "x"}, {}, "arguments"),
        ("t", {"x": Opaque()}, {}, "x"),
        ("t", {"x": "y" * (1 << 20)}, {}, "payload"),
    ],
)
async def test_input_without_meaning_is_refused_by_name_before_anything_is_written(
    producing: Producing, server: Server, task: Any, arguments: Any, options: Any, field: str
) -> None:
    """A19"""
    with pytest.raises(UsageError) as caught:
        await producing.enqueue(task, arguments, **options)
    assert caught.value.field == field
    assert type(caught.value) in {OptionError, PayloadError}
    assert keys_in(server, producing.app) == []


async def test_a_misspelt_option_is_answered_with_the_right_one(producing: Producing) -> None:
    """A19"""
    with pytest.raises(OptionError, match="did you mean retention"):
        await producing.enqueue("t", retension=5)


@pytest.mark.parametrize("calls", [5, "t", TaskCall("t"), None])
async def test_what_is_not_many_calls_is_refused(producing: Producing, server: Server, calls: Any) -> None:
    """A19"""
    with pytest.raises(OptionError, match="calls: must be many calls, as in a list"):
        await producing.enqueue_many(calls)
    assert keys_in(server, producing.app) == []


async def test_what_is_no_call_is_refused_among_many_and_the_others_are_stored(producing: Producing) -> None:
    """A19"""
    calls: list[Any] = [TaskCall("t"), "t", len, TaskCall("t")]
    with pytest.raises(BatchError) as caught:
        await producing.enqueue_many(calls)
    stored, *refused, last = caught.value.results
    assert [error.field for error in refused] == ["calls", "calls"]
    assert "not str" in str(refused[0])
    assert (await producing.info(stored)).state == (await producing.info(last)).state == State.READY


async def test_a_call_brings_its_own_arguments(producing: Producing, server: Server) -> None:
    """A19"""
    with pytest.raises(PayloadError, match="already"):
        await producing.enqueue(TaskCall("t"), {"x": 1})
    assert keys_in(server, producing.app) == []


async def test_priorities_lead_to_their_lanes(producing: Producing) -> None:
    for priority in ("high", "normal", "low"):
        handle = await producing.enqueue("t", priority=priority)
        assert (await producing.info(handle)).priority == priority


async def test_expiry_is_a_moment_or_counts_from_each_call(producing: Producing) -> None:
    at = datetime(2040, 1, 1, tzinfo=UTC)
    assert (await producing.info(await producing.enqueue("t", expires=at))).expires == at
    for expires in (60, timedelta(seconds=60)):
        found = (await producing.info(await producing.enqueue("t", expires=expires))).expires
        assert found is not None
        assert timedelta(seconds=30) < found - now() < timedelta(seconds=90)


async def test_outside_of_the_app_there_is_no_client(app: StreamQ) -> None:
    task = app.task(name="t")(print)
    with pytest.raises(UsageError, match="async with app"):
        await task.enqueue()


async def test_the_app_may_be_opened_inside_of_itself(app: StreamQ) -> None:
    async with app:
        async with app:
            await app.enqueue("t")
        assert (await (await app.enqueue("t")).info()).state is State.READY


async def test_calling_a_task_runs_its_function_without_any_queue(app: StreamQ) -> None:
    @app.task(name="double")
    async def double(n: int) -> int:
        return 2 * n

    @app.task(name="triple")
    def triple(n: int) -> int:
        return 3 * n

    assert (await double(2), triple(2)) == (4, 6)
