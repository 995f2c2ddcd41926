"""Schedules through workers: each tick enqueues once, whoever is there; deploys, providers, hooks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamq import Cron, CronEvent, Fixed, GroupRule, QueueLimits, Retry, StreamQ, current_task
from streamq.broker import scheduling
from streamq.broker.runner import AsyncRunner
from streamq.broker.scripts import script
from streamq.clock import ServerClock
from streamq.codec import decode_cron, encode_cron
from streamq.cron import GRACE_MS
from streamq.errors import (
    OptionError,
    PayloadError,
    QueueError,
    ReadOnly,
    RegistrationError,
    Unavailable,
    UsageError,
)
from streamq.model.schedule import CronEntry
from streamq.worker import deployer as deployer_module
from streamq.worker import tick_teller
from streamq.worker.deployer import Deployer
from streamq.worker.scheduler import Scheduler
from tests.conftest import PrivateServer, ProxyFor
from tests.servers import Server
from tests.support import eventually, keys_of, running

QUICK = timedelta(milliseconds=100)
HOUR_MS = 3_600_000


class Runs:
    """A task that notes its ticks."""

    def __init__(self, app: StreamQ, **options: Any) -> None:
        self.ticks: list[datetime | None] = []
        self.ids: list[str] = []

        @app.task(name="tick", **options)
        async def tick(number: int = 0) -> None:
            self.ticks.append(current_task().tick)
            self.ids.append(current_task().id)
            assert number >= 0

        self.task = tick

    async def some(self, count: int) -> None:
        await eventually(lambda: len(self.ticks) >= count, f"{count} runs")


def scheduler_of(app: StreamQ, runner: AsyncRunner | None = None) -> Scheduler:
    """A scheduler that looks after the default queue, driven by hand."""
    return Scheduler(
        runner or app.client.runner,
        app.client.keys,
        [keys_of(app)],
        ServerClock(),
        app.crontab.timetable(),
    )


def deployer_of(app: StreamQ) -> Deployer:
    return Deployer(app.client.runner, app.client.keys, [keys_of(app)], app.crontab.timetable())


async def entry_of(app: StreamQ, cron_id: str = "e") -> CronEntry:
    stored = await app.client.runner.run(scheduling.stored_entry(keys_of(app), cron_id))
    return decode_cron(cron_id, "default", stored)


async def make_due(app: StreamQ, server: Server, ms_ago: int = 0, cron_id: str = "e") -> int:
    """Let its next tick be that long ago; answers the tick."""
    queue, client = keys_of(app), server.client()
    seconds, micros = client.time()
    due_ms = int(seconds) * 1000 + int(micros) // 1000 - ms_ago
    member = scheduling.member_of(await entry_of(app, cron_id))
    client.zadd(queue.cron_due.decode(), {member.decode(): due_ms})
    return due_ms


# Ticks, live


async def test_an_entry_ticks_at_its_interval_and_the_handler_sees_its_tick(app: StreamQ) -> None:
    """A138: every 0.3 s, from a start to an end, is so many tasks with the options given, and no more."""
    runs = Runs(app)
    seen: list[tuple[str | None, int, Any]] = []

    @app.task(name="noted")
    async def noted(number: int) -> None:
        context = current_task()
        seen.append((context.cron, context.max_retries, context.headers))
        runs.ticks.append(context.tick)

    start = datetime.now(UTC) + timedelta(seconds=1)
    start = start.replace(microsecond=start.microsecond // 1000 * 1000)
    call = noted.options(retry=7, headers={"a": "b"}).call(number=1)
    app.cron("e", "@every 300ms", call, start=start, end=start + timedelta(seconds=0.95))
    async with running(app):
        await runs.some(4)
        info = await app.crons.get("e")
    assert runs.ticks == [start + n * timedelta(seconds=0.3) for n in range(4)]
    assert seen == [("e", 7, {"a": "b"})] * 4
    assert info.next_at is None


async def test_any_number_of_schedulers_fire_each_tick_once(app: StreamQ) -> None:
    """B25: five workers, one of which is cut off; no tick is missed, none fires twice."""
    runs = Runs(app)
    app.cron("e", QUICK, runs.task.call(), misfire="all")
    async with running(app), running(app), running(app), running(app):
        async with running(app):
            await runs.some(8)
        await runs.some(16)
        await app.crons.pause("e")
        history = (await app.crons.history(limit=1000))[::-1]
        await eventually(lambda: len(runs.ids) >= len(history), "each has run")
    assert [tick.due_at for tick in history] == [history[0].due_at + n * QUICK for n in range(len(history))]
    assert sorted(runs.ids) == sorted(str(tick.task_id) for tick in history)


async def test_schedulers_that_look_at_once_fire_once(app: StreamQ, server: Server) -> None:
    """B25: by hand, both having seen the tick before either fired it."""
    runs = Runs(app)
    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    due_ms = await make_due(app, server)
    schedulers = [scheduler_of(app) for _ in range(5)]
    fired = await asyncio.gather(*(scheduler.run_once() for scheduler in schedulers))
    assert sorted(fired) == [0, 0, 0, 0, 1]
    [tick] = await app.crons.history()
    assert tick.due_at.timestamp() * 1000 == due_ms


async def test_a_worker_fires_for_code_that_it_does_not_have(app: StreamQ, server: Server) -> None:
    """What is enqueued is stored with the entry; another app's worker need only serve the queue."""
    runs = Runs(app)
    await app.crons.add(Cron("e", "@yearly", runs.task.call(5)))
    async with StreamQ(server.url, namespace=app.config.namespace) as other:
        assert await scheduler_of(other).run_once() == 0
        await make_due(app, server)
        assert await scheduler_of(other).run_once() == 1
    async with running(app):
        await runs.some(1)


async def test_a_retry_and_a_thread_see_the_same_tick(app: StreamQ, server: Server) -> None:
    """The tick belongs to the task, not to its attempt."""
    seen: list[tuple[int, datetime | None]] = []

    @app.task(name="twice", retry=Retry(max_retries=1, delay=Fixed(0)))
    def twice() -> None:
        seen.append((current_task().attempt, current_task().tick))
        if len(seen) == 1:
            raise RuntimeError("again")

    await app.crons.add(Cron("e", "@yearly", twice.call()))
    due_ms = await make_due(app, server)
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    assert seen == [(n, datetime.fromtimestamp(due_ms / 1000, UTC)) for n in (1, 2)]


async def test_a_task_that_no_schedule_enqueued_has_no_tick(app: StreamQ) -> None:
    runs = Runs(app)
    await runs.task.enqueue()
    async with running(app):
        await runs.some(1)
    assert runs.ticks == [None]


async def test_an_unserved_queue_ticks_too(app: StreamQ) -> None:
    """Any worker that looks after it fires; the tasks wait for one that serves it."""
    runs = Runs(app)
    await app.crons.add(Cron("e", QUICK, runs.task.options(queue="unserved").call()))
    async with running(app, care_s=0.1), app.inspector() as inspector:

        async def waiting() -> bool:
            return (await inspector.queue("unserved")).ready >= 3

        await eventually(waiting, "ticks of the unserved queue")
    assert runs.ticks == []


async def test_a_change_is_heard_at_once(app: StreamQ) -> None:
    """An entry that is added to a queue without any, and one that is made quicker."""
    runs = Runs(app)
    async with running(app):
        await app.crons.add(Cron("e", "@yearly", runs.task.call()))
        await app.crons.change(Cron("e", QUICK, runs.task.call()))
        await asyncio.wait_for(runs.some(2), 4)
        await app.crons.remove("e")


async def test_a_removed_entry_ticks_no_more(app: StreamQ, server: Server) -> None:
    """A139: also one that was due already."""
    runs = Runs(app)
    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    await make_due(app, server)
    await app.crons.remove("e")
    assert await scheduler_of(app).run_once() == 0
    assert await app.crons.history() == []


# Lost replies


async def test_a_lost_reply_fires_nothing_twice(
    app: StreamQ, server: Server, proxy_for: ProxyFor, namespace: str
) -> None:
    """B5, B25: the call is sent again under its own number, and its first answer is what hooks hear."""
    runs = Runs(app)
    events: list[CronEvent] = []
    app.after_fire(events.append)
    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    await make_due(app, server)
    proxy = await proxy_for(server)
    runner = AsyncRunner(StreamQ(proxy.url, namespace=namespace).address)
    scheduler = scheduler_of(app, runner)
    await runner.run(scheduling.look(keys_of(app)))  # connected, and the script is there
    lost = proxy.lose_next_reply(containing=script("enqueue_checked").sha)
    with pytest.raises(Unavailable):
        await scheduler.run_once()
    assert lost.is_set()
    assert await scheduler.run_once() == 1
    await runner.aclose()
    assert [(event.outcome, event.error) for event in events] == [("ready", None)]
    assert [tick.task_id for tick in await app.crons.history()] == [events[0].task_id]


# Missed ticks


@pytest.mark.parametrize("misfire, fired", [("skip", 0), ("one", 1), ("all", 4)])
async def test_missed_ticks_follow_the_policy(app: StreamQ, server: Server, misfire: Any, fired: int) -> None:
    """B25: after three hours and a bit without any scheduler."""
    runs = Runs(app)
    await app.crons.add(Cron("e", "@every 1h", runs.task.call(), misfire=misfire))
    seconds, _ = server.client().time()
    newest_ms = int(seconds) * 1000 // HOUR_MS * HOUR_MS
    if int(seconds) * 1000 - newest_ms <= GRACE_MS + 10_000:
        newest_ms -= HOUR_MS  # the full hour was a moment ago, and would count as on time
    await make_due(app, server, 0)
    queue, client = keys_of(app), server.client()
    member = scheduling.member_of(await entry_of(app)).decode()
    client.zadd(queue.cron_due.decode(), {member: newest_ms - 3 * HOUR_MS})
    passed = (int(seconds) * 1000 - newest_ms) // HOUR_MS
    assert await scheduler_of(app).run_once() == fired + (passed if misfire == "all" else 0)
    outcomes = [tick.outcome for tick in await app.crons.history()]
    assert outcomes.count("skipped") == (misfire == "skip")
    info = await app.crons.get("e")
    assert info.next_at is not None
    assert info.next_at > datetime.now(UTC)


async def test_many_late_ticks_of_many_entries_are_fired_in_one_pass(app: StreamQ, server: Server) -> None:
    """More than one page of entries, and more ticks than one entry may have in a call."""
    runs = Runs(app)
    for n in range(scheduling.LOOK_PAGE + 5):
        await app.crons.add(Cron(f"e{n}", "@hourly", runs.task.call()))
        await make_due(app, server, 10, f"e{n}")
    await app.crons.add(Cron("busy", QUICK, runs.task.call(), misfire="all"))
    await make_due(app, server, GRACE_MS, "busy")
    fired = await scheduler_of(app).run_once()
    assert fired >= scheduling.LOOK_PAGE + 5 + GRACE_MS // 100


# What an entry may use


async def test_a_unique_task_does_not_overlap_itself(app: StreamQ, server: Server) -> None:
    """The tick is used up; the history and the hook tell that another task holds the lock."""
    runs = Runs(app, unique="until_done")
    events: list[CronEvent] = []
    app.after_fire(events.append)
    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    scheduler = scheduler_of(app)
    for _ in range(2):
        await make_due(app, server)
        assert await scheduler.run_once() == 1
    newest, oldest = await app.crons.history()
    assert (newest.outcome, oldest.outcome) == ("duplicate", "ready")
    first, second = events
    assert (first.outcome, first.task_id, first.error) == ("ready", oldest.task_id, None)
    assert (second.outcome, second.task_id) == ("duplicate", None)
    assert isinstance(second.error, QueueError)


async def test_a_tick_may_join_a_group(app: StreamQ, server: Server) -> None:
    await app.crons.add(Cron("e", "@hourly", app.call("many", group="g", group_rule=GroupRule(grace=3600))))
    await make_due(app, server)
    assert await scheduler_of(app).run_once() == 1
    [tick] = await app.crons.history()
    assert tick.outcome == "aggregating"


async def test_a_limit_of_the_queue_uses_the_tick_up(app: StreamQ, server: Server) -> None:
    """The history says which one, and the hook gets an error."""
    events: list[CronEvent] = []
    app.after_fire(events.append)
    await app.crons.add(Cron("e", "@hourly", app.call("tick")))
    await app.crons.add(Cron("other", "@hourly", app.call("allowed")))
    async with app.inspector() as inspector:
        await inspector.set_limits("default", QueueLimits(types=["allowed"]))
    await make_due(app, server)
    await make_due(app, server, 1, "other")
    assert await scheduler_of(app).run_once() == 2
    assert {(tick.id, tick.outcome) for tick in await app.crons.history()} == {
        ("e", "type"),
        ("other", "ready"),
    }
    assert {(event.id, event.outcome, type(event.error)) for event in events} == {
        ("e", "type", QueueError),
        ("other", "ready", type(None)),
    }


async def test_a_paused_queue_takes_ticks_and_hands_nothing_out(app: StreamQ) -> None:
    runs = Runs(app)
    await app.crons.add(Cron("e", QUICK, runs.task.call()))
    async with app.inspector() as inspector:
        await inspector.pause("default")

        async def ready() -> bool:
            return (await inspector.queue("default")).ready >= 2

        async with running(app):
            await eventually(ready, "ticks wait")
            assert runs.ticks == []
            await inspector.resume("default")
            await runs.some(2)


async def test_a_delay_and_an_expiry_count_from_the_tick(app: StreamQ, server: Server) -> None:
    runs = Runs(app)
    await app.crons.add(Cron("e", "@hourly", runs.task.options(delay=60, expires=3600).call()))
    await make_due(app, server)
    await scheduler_of(app).run_once()
    [tick] = await app.crons.history()
    assert tick.task_id is not None
    info = await app.client.info("default", tick.task_id)
    assert info.next_at is not None
    assert timedelta(seconds=50) < info.next_at - datetime.now(UTC) <= timedelta(seconds=60)


@pytest.mark.parametrize(
    "field, options",
    [
        ("at", {"at": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("deadline", {"deadline": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("task_id", {"task_id": "x"}),
        ("expires", {"expires": datetime(2030, 1, 1, tzinfo=UTC)}),
    ],
)
async def test_what_belongs_to_one_task_is_refused(app: StreamQ, field: str, options: Any) -> None:
    runs = Runs(app)
    cron = Cron("e", "@hourly", runs.task.options(**options).call())
    with pytest.raises(OptionError) as refused:
        await app.crons.add(cron)
    assert refused.value.field == field
    assert await app.crons.list() == []


# Static entries


def test_an_equal_entry_twice_is_one_and_another_is_refused(namespace: str) -> None:
    """B26, A143: reordered options are equal; another schedule, type, payload or option is not."""
    app = StreamQ(namespace=namespace)
    runs = Runs(app)

    @app.task(name="other")
    async def other(number: int = 0, text: str = "") -> None: ...

    options: dict[str, Any] = {"retry": 3, "timeout": 5, "headers": {"a": "1", "b": "2"}}
    reordered = {**dict(reversed(options.items())), "headers": {"b": "2", "a": "1"}}
    app.cron("e", "@daily", other.options(**options).call(number=1, text="x"))
    app.cron("e", "@DAILY", other.options(**reordered).call(text="x", number=1))
    assert len(app.crontab.timetable().entries) == 1
    for spec, call in (
        ("@weekly", other.options(**options).call(number=1, text="x")),
        ("@daily", runs.task.call()),
        ("@daily", other.options(**options).call(number=2, text="x")),
        ("@daily", other.options(**{**options, "retry": 4}).call(number=1, text="x")),
    ):
        with pytest.raises(RegistrationError, match="registered already"):
            app.cron("e", spec, call)
    assert len(app.crontab.timetable().entries) == 1


@pytest.mark.parametrize(
    "error, arguments",
    [
        (OptionError, ("", "@daily")),
        (OptionError, ("e", "* * *")),
        (OptionError, ("e", "@daily", "task")),
    ],
)
def test_a_bad_entry_is_refused_where_it_stands(
    namespace: str, error: type[Exception], arguments: tuple[Any, ...]
) -> None:
    app = StreamQ(namespace=namespace)
    call = Runs(app).task.call()
    with pytest.raises(error):
        app.cron(*(*arguments, call)[:3])
    with pytest.raises(PayloadError):
        app.cron("e", "@daily", app.call("t", {"a": object()}))
    for bad in ({"cron_owner": ""}, {"cron_owner": "a/b"}, {"cron_gone": "perhaps"}):
        with pytest.raises(OptionError):
            StreamQ(**bad)  # type: ignore[arg-type]  # one of the two in each


def fresh(app: StreamQ, **settings: Any) -> StreamQ:
    """The app's next release: other code on the same data."""
    return StreamQ(app.address, namespace=app.config.namespace, **settings)


async def deployed(app: StreamQ, *crons: tuple[str, str], **settings: Any) -> dict[str, str]:
    """Deploy a release with these entries; answers what is stored: id to spec."""
    async with fresh(app, **settings) as release:
        runs = Runs(release)
        for cron_id, spec in crons:
            release.cron(cron_id, spec, runs.task.call())
        await deployer_of(release).run_once()
        return {info.id: info.spec for info in await release.crons.list()}


async def test_stored_entries_follow_the_code(app: StreamQ) -> None:
    """A144: a changed entry changes, one whose code has gone goes, or stays as asked."""
    assert await deployed(app, ("a", "@daily"), ("b", "@daily")) == {"a": "@daily", "b": "@daily"}
    assert await deployed(app, ("b", "@weekly"), cron_gone="keep") == {"a": "@daily", "b": "@weekly"}
    assert await deployed(app, ("b", "@weekly")) == {"b": "@weekly"}
    assert await deployed(app) == {}


async def test_a_provider_whose_code_has_gone_takes_its_entries_along(app: StreamQ) -> None:
    """A144: not those of another app, though its name begins alike."""
    for owner in ("app", "apple"):
        async with fresh(app, cron_owner=owner) as release:
            made = [Cron(owner, "@daily", release.call("tick"))]

            @release.cron_provider()
            def source(made: list[Cron] = made) -> list[Cron]:
                return made

            release.cron("static", "@daily", release.call("tick"))
            await deployer_of(release).run_once()
    assert await deployed(app, cron_gone="keep") == {"app": "@daily", "apple": "@daily", "static": "@daily"}
    assert await deployed(app) == {"apple": "@daily"}


async def test_an_app_leaves_the_entries_of_another_and_those_made_by_hand(
    app: StreamQ, caplog: pytest.LogCaptureFixture
) -> None:
    await deployed(app, ("theirs", "@daily"), cron_owner="them")
    await app.crons.add(Cron("by hand", "@daily", app.call("tick")))
    with caplog.at_level(logging.ERROR):
        stored = await deployed(app, ("theirs", "@weekly"), ("ours", "@weekly"), cron_owner="us")
    assert stored == {"by hand": "@daily", "ours": "@weekly", "theirs": "@daily"}
    assert "belongs to another owner id=theirs" in caplog.text
    assert await deployed(app, cron_owner="us") == {"by hand": "@daily", "theirs": "@daily"}


async def test_a_worker_deploys_when_it_starts(app: StreamQ) -> None:
    runs = Runs(app)
    app.cron("e", QUICK, runs.task.call())
    await app.crons.add(Cron("old", "@daily", runs.task.call()))
    async with running(app):
        await runs.some(1)
    assert {(info.id, info.owner) for info in await app.crons.list()} == {("e", "app"), ("old", "")}


# Providers


async def test_entries_follow_a_provider(app: StreamQ) -> None:
    """A144: remove one, add one, then none, while the worker runs; a failure changes nothing."""
    runs = Runs(app)
    wished = ["a", "b"]

    @app.cron_provider(every=0.1)
    async def tenants() -> list[Cron]:
        if "broken" in wished:
            raise RuntimeError("the database is away")
        return [Cron(cron_id, "@daily", runs.task.call()) for cron_id in wished]

    async def stored() -> set[str]:
        return {info.id for info in await app.crons.list()}

    def are(*ids: str) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            return await stored() == set(ids)

        return ask

    app.cron("static", "@daily", runs.task.call())
    async with running(app):
        await eventually(are("a", "b", "static"))
        wished[:] = ["b", "c"]
        await eventually(are("b", "c", "static"))
        wished[:] = ["broken"]
        async with running(app):
            await eventually(are("b", "c", "static"))
        wished[:] = []
        await eventually(are("static"))


async def test_a_provider_that_fails_leaves_its_entries(
    app: StreamQ, caplog: pytest.LogCaptureFixture
) -> None:
    """Raises, answers nonsense, or tells one id twice: each is logged and changes nothing."""
    call = Runs(app).task.call()
    answers: list[Any] = [[Cron("a", "@daily", call)]]

    @app.cron_provider(every=0.1)
    def source() -> Any:
        return answers[-1]

    deployer = deployer_of(app)
    assert await deployer.run_once() == 1
    bad = ([Cron("a", "@daily", call), Cron("a", "@weekly", call)], [5], None, [Cron("a", "* * *", call)])
    for answer in bad:
        answers.append(answer)
        deployer._next_s = dict.fromkeys(deployer._next_s, 0.0)
        assert await deployer.run_once() == 0
    assert caplog.text.count("a provider of schedules failed") == len(bad)
    assert [info.spec for info in await app.crons.list()] == ["@daily"]


async def test_a_provider_that_hangs_is_broken_off(
    app: StreamQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one is asked all the same."""
    monkeypatch.setattr(deployer_module, "_POLL_S", 0.01)

    @app.cron_provider()
    async def hangs() -> list[Cron]:
        await asyncio.Event().wait()
        return []

    @app.cron_provider()
    def answers() -> Iterator[Cron]:
        yield Cron("e", "@daily", app.call("tick"))

    assert await deployer_of(app).run_once() == 1
    assert "a provider of schedules failed" in caplog.text


async def test_a_provider_may_wait_without_holding_the_worker_up(app: StreamQ) -> None:
    """A plain function is called in a thread."""
    threads: list[int] = []

    @app.cron_provider()
    def asks_a_database() -> list[Cron]:
        threads.append(threading.get_ident())
        return []

    await deployer_of(app).run_once()
    assert threads != [threading.get_ident()]
    assert len(threads) == 1


def test_a_provider_is_checked_when_it_is_given(namespace: str) -> None:
    """A142: no function, no interval, or one name twice."""
    app = StreamQ(namespace=namespace)
    nothing: Any = None
    with pytest.raises(RegistrationError, match="cron_provider"):
        app.cron_provider()(nothing)
    for every in (0, -1, "soon"):
        bad: Any = every
        with pytest.raises(OptionError, match="every"):
            app.cron_provider(every=bad)(list)
    app.cron_provider()(list)
    with pytest.raises(RegistrationError, match="registered already"):
        app.cron_provider()(list)


async def test_schedules_need_an_open_app(namespace: str) -> None:
    """A142: without a connection there is an error that says so."""
    with pytest.raises(UsageError, match="is not open"):
        _ = StreamQ(namespace=namespace).crons


# Hooks


async def test_hooks_are_called_around_each_tick(app: StreamQ, server: Server) -> None:
    """A141: three ticks, three calls before and three after, with the tick and its task."""
    runs = Runs(app)
    told: list[tuple[str, CronEvent]] = []

    @app.before_fire
    def before(event: CronEvent) -> None:
        told.append(("before", event))

    @app.after_fire
    async def after(event: CronEvent) -> None:
        await asyncio.sleep(0)
        told.append(("after", event))

    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    scheduler = scheduler_of(app)
    dues = []
    for _ in range(3):
        dues.append(await make_due(app, server))
        await scheduler.run_once()
    assert [name for name, _ in told] == ["before", "after"] * 3
    assert [round(event.tick.timestamp() * 1000) for _, event in told[::2]] == dues
    history = await app.crons.history()
    assert [event.task_id for _, event in told[1::2]] == [tick.task_id for tick in reversed(history)]
    assert {(event.id, event.queue, event.type) for _, event in told} == {("e", "default", "tick")}
    assert {event.outcome for _, event in told[::2]} == {None}


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_hook_that_raises_changes_nothing(
    app: StreamQ, server: Server, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A141: neither before nor after, neither plain nor async."""
    runs = Runs(app)

    def broken(_event: CronEvent) -> None:
        raise error

    async def broken_later(_event: CronEvent) -> None:
        raise error

    for hook in (broken, broken_later):
        app.before_fire(hook)
        app.after_fire(hook)
    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    await make_due(app, server)
    assert await scheduler_of(app).run_once() == 1
    assert len(await app.crons.history()) == 1
    assert caplog.text.count("before_fire raised cron=e") == 2
    assert caplog.text.count("after_fire raised cron=e") == 2


async def test_a_hook_that_hangs_is_broken_off(
    app: StreamQ, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tick_teller, "HOOK_S", 0.01)

    @app.before_fire
    async def hangs(_event: CronEvent) -> None:
        await asyncio.Event().wait()

    await app.crons.add(Cron("e", "@hourly", Runs(app).task.call()))
    await make_due(app, server)
    assert await scheduler_of(app).run_once() == 1


def test_a_hook_must_be_a_function(namespace: str) -> None:
    nothing: Any = "hook"
    for register in (StreamQ(namespace=namespace).before_fire, StreamQ(namespace=namespace).after_fire):
        with pytest.raises(RegistrationError, match="_fire"):
            register(nothing)


async def test_hooks_hear_of_each_tick_while_redis_is_away(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """A140: three ticks without Redis, three calls with the error; then it goes on."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    runs = Runs(app)
    events: list[CronEvent] = []
    app.after_fire(events.append)
    app.cron("e", QUICK, runs.task.call())

    def failed() -> list[CronEvent]:
        return [event for event in events if event.error is not None]

    async with app, running(app):
        await runs.some(2)
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: len(failed()) >= 3, "three ticks fail")
        await proxy.accept()
        before = len(runs.ticks)
        await runs.some(before + 3)
    ticks = [event.tick for event in failed()]
    assert ticks[:3] == [ticks[0] + n * QUICK for n in range(3)]
    assert len(ticks) == len(set(ticks))
    assert {(event.outcome, event.task_id) for event in failed()} == {(None, None)}


async def test_hooks_hear_of_entries_that_have_not_ticked_yet(
    server: Server, namespace: str, proxy_for: ProxyFor
) -> None:
    """A140: they are known as soon as the worker has heard that there are any."""
    proxy = await proxy_for(server)
    app = StreamQ(proxy.url, namespace=namespace)
    events: list[CronEvent] = []
    app.after_fire(events.append)
    start = datetime.now(UTC) + timedelta(seconds=3)
    app.cron("e", "@every 1h", Runs(app).task.call(), start=start)
    async with app, running(app) as worker:
        await eventually(lambda: worker.scheduler._teller.knows("default"))
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: events, "the tick fails")
        assert isinstance(events[0].error, Unavailable)
        await proxy.accept()
        await eventually(lambda: events[-1].outcome == "ready", "it fires after all")
    assert len(events) == 2


async def test_hooks_hear_of_a_tick_that_redis_refused(app: StreamQ, server: Server) -> None:
    """A140: it is told once, stays due, and fires when it can."""
    events: list[CronEvent] = []
    app.after_fire(events.append)
    await app.crons.add(Cron("e", "@hourly", Runs(app).task.call()))
    await make_due(app, server)
    scheduler = scheduler_of(app)
    sent = app.client.runner.run

    async def run(command: Any, **more: Any) -> Any:
        if command.script is not None and command.script.name == "enqueue_checked":
            raise ReadOnly("not now")
        return await sent(command, **more)

    app.client.runner.run = run  # type: ignore[method-assign]  # a refusal at the one place that matters
    for _ in range(2):
        with pytest.raises(ReadOnly):
            await scheduler.run_once()
        assert not scheduler._unanswered, "a refusal is an answer: the call is not sent as it was"
    app.client.runner.run = sent  # type: ignore[method-assign]
    assert await scheduler.run_once() == 1
    assert [type(event.error) for event in events] == [ReadOnly, type(None)]


# What cannot be read


async def test_an_entry_that_cannot_be_read_keeps_no_other_waiting(
    app: StreamQ, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes without meaning, a newer version, a zone that is not known here: said, and left as it is."""
    runs = Runs(app)
    queue, client = keys_of(app), server.client()
    await app.crons.add(Cron("e", "@hourly", runs.task.call()))
    good = await entry_of(app)
    nowhere = replace(good, id="nowhere", schedule=replace(good.schedule, tz="No/Where"))
    huge = replace(good, id="huge", schedule=replace(good.schedule, start_ms=10**18))
    stored = {
        "junk": b"00000000:\xff",
        "newer": b"00000000:\xa1av\x02",
        "message": encode_cron(replace(good, message=b"?")),
        "nowhere": encode_cron(nowhere),
        "huge": encode_cron(huge),
    }
    for cron_id, value in stored.items():
        client.hset(queue.cron.decode(), cron_id, value)
        client.zadd(queue.cron_due.decode(), {f"{cron_id} {value.partition(b':')[0].decode()}": 1})
    await make_due(app, server)
    assert await scheduler_of(app).run_once() == 1
    assert [tick.id for tick in await app.crons.history()] == ["e"]
    assert "cannot read cron entry" in caplog.text
    assert client.hlen(queue.cron.decode()) == len(stored) + 1


async def test_a_page_of_unreadable_entries_does_not_spin(app: StreamQ, server: Server) -> None:
    queue, client = keys_of(app), server.client()
    for n in range(scheduling.LOOK_PAGE):
        client.hset(queue.cron.decode(), f"junk{n}", b"00000000:\xff")
        client.zadd(queue.cron_due.decode(), {f"junk{n} 00000000": 1})
    scheduler = scheduler_of(app)
    assert await scheduler.run_once() == 0
    assert scheduler._due_queues() == []  # not before a pause


# Idle


async def test_a_scheduler_without_entries_sends_nothing(private_server: PrivateServer) -> None:
    """Once a worker has started, the forwarder's own look tells it that there is nothing to do."""
    server = private_server()
    app = StreamQ(server.url)
    async with app, running(app) as worker:
        await eventually(lambda: worker.deployer._deployed)
        await app.client.runner.run(scheduling.stored_entries(keys_of(app)))
        await worker.forwarder.run_once()
        monitored: list[str] = []
        client: Any = server.client()
        with client.monitor() as monitor:
            for _ in range(3):
                await worker.forwarder.run_once()
            client.echo("the end")
            while "the end" not in (line := await asyncio.to_thread(monitor.next_command))["command"]:
                if line["client_type"] != "lua":
                    monitored.append(line["command"])
    assert not [command for command in monitored if "look" in command or "HGETALL" in command]
    forwards = [command for command in monitored if "cron_due" in command]
    assert forwards
    sha = forwards[0].split()[1]
    assert all(command.split()[1] == sha for command in forwards)
