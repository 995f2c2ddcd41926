"""Schedules at run time, through both clients."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamq import Cron, CronInfo, GroupRule, StreamQ, Unique
from streamq.broker.keys import Keys, QueueKeys
from streamq.codec import encode_cron
from streamq.errors import CronError, DuplicateTask, OptionError, PayloadError, UnknownVersion
from streamq.model.schedule import CronEntry, Schedule
from streamq.model.states import State
from tests.client.conftest import Producing, call
from tests.servers import Server


class Both:
    """``client.crons`` of either client: each answer can be awaited."""

    def __init__(self, producing: Producing) -> None:
        client = producing.app.client if producing.sync is None else producing.sync
        self._crons: Any = client.crons

    def __getattr__(self, name: str) -> Any:
        async def called(*args: Any, **kwargs: Any) -> Any:
            answer = getattr(self._crons, name)(*args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer

        return called


@pytest.fixture
def crons(producing: Producing) -> Both:
    """The schedules, through either client."""
    return Both(producing)


def nightly(spec: str = "0 3 * * *", cron_id: str = "nightly", **more: Any) -> Cron:
    return Cron(cron_id, spec, more.pop("call", call("report")), **more)


def queue_of(app: StreamQ, name: str = "default") -> QueueKeys:
    return Keys(app.config.namespace).queue(name)


async def test_an_entry_is_added_and_told_as_it_was_given(crons: Both) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    await crons.add(
        nightly(tz="Europe/Berlin", jitter=timedelta(seconds=30), start=start, end=end, misfire="skip")
    )
    [info] = await crons.list()
    assert info == await crons.get("nightly")
    assert info.next_at is not None
    assert info.next_at > datetime.now(UTC)
    assert info == CronInfo(
        id="nightly",
        queue="default",
        spec="0 3 * * *",
        tz="Europe/Berlin",
        jitter=timedelta(seconds=30),
        start=start,
        end=end,
        misfire="skip",
        type="report",
        owner="",
        paused=False,
        next_at=info.next_at,
    )


async def test_an_equal_entry_is_accepted_and_another_one_is_refused(crons: Both) -> None:
    """B26: the second is the first, or a clear error; and it can be removed."""
    await crons.add(nightly())
    await crons.add(nightly())
    for other in (nightly("0 4 * * *"), nightly(call=call("other")), nightly(misfire="all")):
        with pytest.raises(CronError, match="exists already"):
            await crons.add(other)
    assert len(await crons.list()) == 1
    await crons.remove("nightly")
    assert await crons.list() == []


async def test_a_change_replaces_an_entry_and_keeps_its_pause(crons: Both) -> None:
    await crons.add(nightly())
    await crons.pause("nightly")
    await crons.change(nightly("@weekly"))
    info = await crons.get("nightly")
    assert (info.spec, info.paused, info.next_at) == ("@weekly", True, None)
    await crons.add(nightly("@weekly"))  # equal, though paused
    await crons.resume("nightly")
    info = await crons.get("nightly")
    assert (info.spec, info.paused, info.next_at is None) == ("@weekly", False, False)


async def test_pausing_or_resuming_twice_is_no_error(crons: Both) -> None:
    await crons.add(nightly())
    for _ in range(2):
        await crons.pause("nightly")
    for _ in range(2):
        await crons.resume("nightly")
    assert not (await crons.get("nightly")).paused


@pytest.mark.parametrize("verb", ["pause", "resume", "remove", "fire", "get"])
async def test_an_entry_that_is_not_there_is_an_error_that_names_it(crons: Both, verb: str) -> None:
    await crons.add(nightly(call=call("report", queue="mail")))
    with pytest.raises(CronError) as missing:
        await getattr(crons, verb)("nightly")
    assert (missing.value.queue, missing.value.cron_id) == ("default", "nightly")
    await getattr(crons, verb)("nightly", queue="mail")


async def test_a_change_needs_an_entry(crons: Both) -> None:
    with pytest.raises(CronError, match="no such entry"):
        await crons.change(nightly())


async def test_entries_live_in_the_queue_of_their_task(crons: Both) -> None:
    for queue in ("mail", "default"):
        for cron_id in ("b", "a"):
            await crons.add(nightly(cron_id=cron_id, call=call("report", queue=queue)))
    found = [(info.queue, info.id) for info in await crons.list()]
    assert found == [("default", "a"), ("default", "b"), ("mail", "a"), ("mail", "b")]
    assert [info.id for info in await crons.list(queue="mail")] == ["a", "b"]
    assert await crons.list(queue="none") == []


async def test_fire_enqueues_now_and_leaves_the_schedule_alone(producing: Producing, crons: Both) -> None:
    await crons.add(nightly(call=call("report", headers={"a": "b"}, priority="high", delay=60)))
    before = await crons.get("nightly")
    handle = await crons.fire("nightly")
    info = await producing.info(handle)
    assert (info.type, info.state) == ("report", State.SCHEDULED)
    assert await crons.get("nightly") == before
    [tick] = await crons.history()
    assert (tick.id, tick.outcome, tick.task_id) == ("nightly", "scheduled", handle.id)
    assert tick.due_at == tick.fired_at, "it was due when somebody wanted it"
    assert (await crons.fire("nightly")).id != handle.id
    assert len(await crons.history()) == 2


async def test_fire_respects_the_lock_of_a_unique_task(crons: Both) -> None:
    await crons.add(nightly(call=call("report", unique=True)))
    handle = await crons.fire("nightly")
    with pytest.raises(DuplicateTask) as refused:
        await crons.fire("nightly")
    assert refused.value.task_id == handle.id
    await crons.change(nightly(call=call("report", unique=Unique(on_conflict="return"))))
    assert (await crons.fire("nightly")).id == handle.id


async def test_fire_joins_a_group(producing: Producing, crons: Both) -> None:
    rule = GroupRule(grace=60)
    await crons.add(nightly(call=call("report", group="g", group_rule=rule)))
    assert (await producing.info(await crons.fire("nightly"))).state is State.AGGREGATING


async def test_what_is_refused_is_not_stored(crons: Both) -> None:
    for bad, error in (
        (nightly("never"), OptionError),
        (nightly(tz="Mars/Olympus"), OptionError),
        (nightly(call=call("report", task_id="one")), OptionError),
        (nightly(call=object()), OptionError),
        ("nightly", OptionError),
    ):
        with pytest.raises(error):
            await crons.add(bad)
    with pytest.raises(PayloadError):
        await crons.add(Cron("e", "@daily", producing_call({"a": object()})))
    assert await crons.list() == []


def producing_call(arguments: dict[str, Any]) -> Any:
    return StreamQ().call("report", arguments)


@pytest.mark.parametrize(
    "bad", [{"limit": -1}, {"limit": 1001}, {"offset": -1}, {"limit": 1.5}, {"offset": "0"}]
)
async def test_a_page_of_the_past_has_bounds(crons: Both, bad: dict[str, Any]) -> None:
    """A120."""
    with pytest.raises(OptionError, match=next(iter(bad))):
        await crons.history(**bad)
    assert await crons.history(limit=0) == []


async def test_an_entry_of_a_newer_version_is_left_as_it_is(
    crons: Both, producing: Producing, server: Server
) -> None:
    """It can be removed, but neither changed nor paused: what it says is not known here."""
    stored = b"00000000:\xa1av\x02"
    client, key = server.client(), queue_of(producing.app).cron.decode()
    client.hset(key, "nightly", stored)
    for verb, given in (("pause", "nightly"), ("fire", "nightly"), ("change", nightly()), ("add", nightly())):
        with pytest.raises(UnknownVersion):
            await getattr(crons, verb)(given)
    kept: Any = client.hget(key, "nightly")
    assert kept in {stored, stored.decode("latin-1")}
    await crons.remove("nightly")
    assert client.exists(key) == 0


def test_what_is_stored_can_be_read_without_this_package() -> None:
    """The digest of the schedule, a colon, and CBOR: for the scripts, and for other programs."""
    entry = CronEntry("e", "default", Schedule("@daily"), b"n-", b"m")
    assert encode_cron(entry).startswith(Schedule("@daily").digest.encode() + b":\xa8")
    assert len(Schedule("@daily").digest) == 8
