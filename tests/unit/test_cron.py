"""Schedules: which ticks there are, against an oracle that walks minute by minute and knows no shortcuts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamq import cron
from streamq.cron import GRACE_MS, MOST_TICKS, Every, Expression, Step, Ticks, check_schedule, decide, spec_of
from streamq.errors import OptionError
from streamq.model.call import TaskCall
from streamq.model.schedule import Cron, Schedule

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"
ZONES = [
    "UTC",
    BERLIN,
    NEW_YORK,
    "Europe/London",
    "Australia/Lord_Howe",  # turns by half an hour
    "Africa/Casablanca",  # turns back for a month in each year
    "America/Sao_Paulo",  # turned at midnight
    "Asia/Tehran",
    "Asia/Kathmandu",
    "Pacific/Apia",  # skipped a whole day in 2011
    "Antarctica/Troll",  # turns by two hours
]
MINUTE_MS = 60_000
CALL: TaskCall[Any] = TaskCall("t")


def ms(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return round(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp() * 1000)


def schedule(spec: str | timedelta, **more: Any) -> Schedule:
    return check_schedule(Cron("id", spec, CALL, **more))


def ticks(spec: str | timedelta, since_ms: int, until_ms: int, **more: Any) -> list[int]:
    """When the ticks in (since, until] are due."""
    all_ticks, found, due = Ticks("id", schedule(spec, **more)), [], since_ms
    while (after := all_ticks.due_after(due)) is not None and after <= until_ms:
        found.append(after)
        due = after
    return found


def walls(found: list[int], zone: str) -> list[str]:
    return [f"{datetime.fromtimestamp(at / 1000, ZoneInfo(zone)):%d %H:%M:%S%z}" for at in found]


# Against an oracle


@dataclass(frozen=True)
class Fields:
    """A cron expression as sets of numbers; None is a star."""

    minutes: frozenset[int]
    hours: frozenset[int] | None
    step: int
    """Of a star in the hours."""
    days: frozenset[int] | None
    weekdays: frozenset[int] | None

    @property
    def text(self) -> str:
        def listed(values: frozenset[int] | None) -> str:
            return "*" if values is None else ",".join(map(str, sorted(values)))

        hours = listed(self.hours) if self.hours is not None else f"*/{self.step}" if self.step > 1 else "*"
        return f"{listed(self.minutes)} {hours} {listed(self.days)} * {listed(self.weekdays)}"

    def match(self, wall: datetime) -> bool:
        by_day = self.days is None or wall.day in self.days
        by_weekday = self.weekdays is None or wall.isoweekday() % 7 in self.weekdays
        either = self.days is not None and self.weekdays is not None
        hour_fits = wall.hour % self.step == 0 if self.hours is None else wall.hour in self.hours
        return (
            wall.minute in self.minutes
            and hour_fits
            and (by_day or by_weekday if either else by_day and by_weekday)
        )


def some(low: int, high: int, most: int) -> st.SearchStrategy[frozenset[int]]:
    return st.frozensets(st.integers(low, high), min_size=1, max_size=most)


FIELDS = st.builds(
    Fields,
    minutes=some(0, 59, 4),
    hours=st.none() | some(0, 23, 3) | st.just(frozenset({0, 1, 2, 3})),
    step=st.sampled_from([1, 1, 2, 3, 5]),
    days=st.none() | st.none() | some(1, 28, 15),
    weekdays=st.none() | st.none() | some(0, 6, 4),
)


def oracle(fields: Fields, zone: ZoneInfo, since_ms: int, until_ms: int) -> Iterator[int]:
    """Every minute of real time: what does the clock on the wall say, and has it said so before?"""
    said = set()
    before: datetime | None = None
    for at in range(since_ms - 1_600 * MINUTE_MS, until_ms + 1, MINUTE_MS):
        wall = datetime.fromtimestamp(at / 1000, zone).replace(tzinfo=None, fold=0)
        missed = []
        if before is not None:
            between = before + timedelta(minutes=1)
            while between < wall:
                missed.append(between)
                between += timedelta(minutes=1)
        if fields.hours is None:
            due = fields.match(wall)
        else:
            due = (fields.match(wall) and wall not in said) or any(map(fields.match, missed))
        if due and at > since_ms:
            yield at
        said.add(wall)
        before = wall


def turns(zone: ZoneInfo, year: int) -> list[int]:
    """The hours after which the clock stands differently."""
    hours = range(ms(year, 1, 1), ms(year + 1, 1, 1), 60 * MINUTE_MS)
    offsets = [datetime.fromtimestamp(at / 1000, zone).utcoffset() for at in hours]
    return [at for at, one, other in zip(hours, offsets, offsets[1:], strict=False) if one != other]


@settings(max_examples=100, deadline=None)
@given(FIELDS, st.sampled_from(ZONES), st.integers(1975, 2037), st.integers(0, 10_000))
@example(Fields(frozenset({30}), frozenset({2}), 1, None, None), BERLIN, 2026, 0)
@example(Fields(frozenset({30}), frozenset({2}), 1, None, None), BERLIN, 2026, 1)
@example(Fields(frozenset({0}), frozenset({12}), 1, None, None), "Pacific/Apia", 2011, 2)
@example(Fields(frozenset({15}), None, 2, None, None), "Australia/Lord_Howe", 2026, 1)
def test_ticks_are_those_of_a_slow_walk_over_every_minute(
    fields: Fields, zone_name: str, year: int, pick: int
) -> None:
    """Near each turn of a clock, in any zone and year, also from a start within the turn itself."""
    zone = ZoneInfo(zone_name)
    around = turns(zone, year) or [ms(year, 3, 1)]
    middle = around[pick % len(around)]
    since, until = middle - 600 * MINUTE_MS, middle + 1_500 * MINUTE_MS
    expected = list(oracle(fields, zone, since, until))
    assert ticks(fields.text, since, until, tz=zone_name) == expected
    spec = Expression(fields.text, zone)
    for begin in (middle + 30 * MINUTE_MS, middle + 60 * MINUTE_MS, middle + 90 * MINUTE_MS):
        first = next((at for at in expected if at > begin), None)
        found = spec.after(begin)
        assert found == first or (first is None and found is not None and found > until)


# Daylight saving, by example

SPRING = (ms(2026, 3, 28, 12), ms(2026, 3, 30, 12))  # Berlin: 29 March, 02:00 -> 03:00
AUTUMN = (ms(2026, 10, 24, 12), ms(2026, 10, 26, 12))  # 25 October, 03:00 -> 02:00


@pytest.mark.parametrize(
    "spec, span, expected",
    [
        ("30 2 * * *", SPRING, ["29 03:00:00+0200", "30 02:30:00+0200"]),
        ("0,15,30 2 * * *", SPRING, ["29 03:00:00+0200", *(f"30 02:{m}:00+0200" for m in ("00", 15, 30))]),
        ("0 2,3 * * *", SPRING, ["29 03:00:00+0200", "30 02:00:00+0200", "30 03:00:00+0200"]),
        ("30 2 * * *", AUTUMN, ["25 02:30:00+0200", "26 02:30:00+0100"]),
        ("0 3 * * *", AUTUMN, ["25 03:00:00+0100", "26 03:00:00+0100"]),
    ],
)
def test_a_fixed_hour_means_the_clock_on_the_wall(
    spec: str, span: tuple[int, int], expected: list[str]
) -> None:
    """A skipped time is made up for once, at the end of the gap; one that comes twice counts once."""
    assert walls(ticks(spec, *span, tz=BERLIN), BERLIN) == expected


def test_a_rhythm_follows_real_time() -> None:
    """Every half hour stays every half hour, 23 or 25 hours long; a step of hours goes by the wall."""
    for span in (SPRING, AUTUMN):
        found = ticks("*/30 * * * *", *span, tz=BERLIN)
        assert {after - at for at, after in itertools.pairwise(found)} == {30 * MINUTE_MS}
    night = (ms(2026, 10, 24, 22, 30), ms(2026, 10, 25, 3))
    assert walls(ticks("30 */2 * * *", *night, tz=BERLIN), BERLIN) == [
        "25 02:30:00+0200", "25 02:30:00+0100",
    ]  # fmt: skip


def test_a_day_that_a_zone_skipped_is_made_up_for_once() -> None:
    """Samoa had no 30 December 2011."""
    found = ticks("0 9,12,15 * * *", ms(2011, 12, 29, 12), ms(2012, 1, 1), tz="Pacific/Apia")
    assert walls(found, "Pacific/Apia")[:5] == [
        "29 09:00:00-1000", "29 12:00:00-1000", "29 15:00:00-1000", "31 00:00:00+1400", "31 09:00:00+1400",
    ]  # fmt: skip


# What may be written


@pytest.mark.parametrize(
    "spec, first",
    [
        ("*/5 * * * *", ms(2026, 1, 1, 0, 5)),
        ("0 12 * * MON-FRI", ms(2026, 1, 1, 12)),
        ("0 0 1 feb *", ms(2026, 2, 1)),
        ("0 0 L * *", ms(2026, 1, 31)),
        ("0 0 * * fri#2", ms(2026, 1, 9)),
        ("0 0 29 2 *", ms(2028, 2, 29)),
        ("0 0 13 * 5", ms(2026, 1, 2)),  # Friday, or the 13th
        ("* * * * * */20", ms(2026, 1, 1, 0, 0, 20)),
        ("30 6 * * * 15", ms(2026, 1, 1, 6, 30, 15)),
        ("@hourly", ms(2026, 1, 1, 1)),
        ("@daily", ms(2026, 1, 2)),
        ("@MIDNIGHT", ms(2026, 1, 2)),
        ("@weekly", ms(2026, 1, 4)),
        ("@monthly", ms(2026, 2, 1)),
        ("@yearly", ms(2027, 1, 1)),
        ("@annually", ms(2027, 1, 1)),
        ("@every 90s", ms(2026, 1, 1, 0, 1, 30)),
        ("@every 1h30m", ms(2026, 1, 1, 1, 30)),
        (timedelta(milliseconds=250), ms(2026, 1, 1) + 250),
    ],
)
def test_expressions_have_five_fields_or_six_with_seconds_last(spec: str | timedelta, first: int) -> None:
    assert ticks(spec, ms(2026, 1, 1), first) == [first]


@pytest.mark.parametrize(
    "field, bad",
    [
        *(
            ("spec", {"spec": spec})
            for spec in (
                "", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "*/0 * * * *",
                "r * * * *", "h * * * *", "r(1-5) * * * *", "0 0 * * funday", "0 0 30 2 *", "@reboot",
                "@every", "@every 5", "@every 1x", "@every 99ms", "@every s", "a b c d e", "* * * * * x",
                timedelta(0), timedelta(days=-1), timedelta(days=50_000), 5, None, b"* * * * *",
            )
        ),
        *(("tz", {"tz": tz}) for tz in ("", "Berlin", "../etc", "Europe", None, 5, "UTC\0", "x" * 500)),
        ("jitter", {"jitter": -1}),
        ("jitter", {"jitter": "1"}),
        ("start", {"start": datetime(2026, 1, 1)}),  # noqa: DTZ001  # that it has no zone is the point
        ("start", {"start": "2026-01-01"}),
        ("end", {"end": datetime(1960, 1, 1, tzinfo=UTC)}),
        ("end", {"start": datetime(2026, 1, 2, tzinfo=UTC), "end": datetime(2026, 1, 1, tzinfo=UTC)}),
        ("misfire", {"misfire": "maybe"}),
        ("id", {"id": ""}),
        ("id", {"id": "a\n"}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_field(field: str, bad: dict[str, Any]) -> None:
    given_: dict[str, Any] = {"id": "id", "spec": "@daily", "call": CALL, **bad}
    with pytest.raises(OptionError) as refused:
        check_schedule(Cron(**given_))
    assert refused.value.field == field


@pytest.mark.parametrize(
    "one, other",
    [
        ("@every 90s", "@every 1m30s"),
        ("@every 90s", timedelta(seconds=90)),
        ("@Daily", " @daily "),
        ("0  9 * * MON", "0 9 * * mon"),
    ],
)
def test_what_means_the_same_is_stored_alike(one: str | timedelta, other: str | timedelta) -> None:
    """A143: so that another spelling is no other schedule."""
    assert schedule(one) == schedule(other)
    assert schedule(one, tz=BERLIN) == schedule(other, tz=ZoneInfo(BERLIN))


def test_utc_is_known_where_there_are_no_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in slim images: the default must work there; any other name says what to install."""

    def nowhere(name: str) -> ZoneInfo:
        raise ZoneInfoNotFoundError(name)

    monkeypatch.setattr(cron, "_zone", nowhere)
    assert schedule("13 1 * * *").tz == "UTC"
    with pytest.raises(OptionError, match="install tzdata"):
        schedule("13 1 * * *", tz=BERLIN)


@pytest.mark.parametrize(
    "change",
    [{"spec": "@weekly"}, {"tz": BERLIN}, {"jitter_ms": 1}, {"start_ms": 1}, {"end_ms": 1}],
    ids=lambda change: next(iter(change)),
)
def test_schedules_with_other_ticks_have_other_digests(change: dict[str, Any]) -> None:
    daily = Schedule("@daily")
    assert replace(daily, **change).digest != daily.digest


def test_the_policy_for_missed_ticks_leaves_the_ticks_as_they_are() -> None:
    assert Schedule("@daily", misfire="all").digest == Schedule("@daily", misfire="skip").digest


# Start, end, intervals


def test_no_tick_is_before_start_or_after_end() -> None:
    """Both are within."""
    start, end = datetime(2026, 1, 1, 3, tzinfo=UTC), datetime(2026, 1, 1, 6, tzinfo=UTC)
    found = ticks("@hourly", 0, ms(2027, 1, 1), start=start, end=end)
    assert found == [ms(2026, 1, 1, hour) for hour in (3, 4, 5, 6)]


def test_an_interval_counts_from_its_start() -> None:
    """A138: every 3 s for 10 s are three ticks after the first."""
    start = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    found = ticks("@every 3s", 0, ms(2026, 1, 1, 0, 0, 11), start=start)
    assert [at - found[0] for at in found] == [0, 3_000, 6_000, 9_000]
    assert found[0] == ms(2026, 1, 1, 0, 0, 1)


@given(st.integers(100, 10**9), st.integers(0, 10**13), st.integers(0, 10**13))
def test_an_interval_ticks_at_multiples_and_never_now(interval: int, anchor: int, at: int) -> None:
    after = Every(interval, anchor).after(at)
    assert after is not None
    assert after > at
    assert after >= anchor
    assert (after - anchor) % interval == 0
    assert after == anchor or after - at <= interval


# Jitter


@settings(deadline=None)
@given(
    st.sampled_from(["* * * * *", "*/7 3 * * *", "@every 10s", "0 0 29 2 *"]),
    st.integers(0, 200_000),
    st.integers(ms(2020, 1, 1), ms(2030, 1, 1)),
)
def test_jitter_delays_each_tick_and_keeps_their_order(spec: str, jitter_ms: int, at: int) -> None:
    """Every tick is found again from the moment at which it is due, whoever computes it."""
    plain, late = Ticks("id", schedule(spec)), Ticks("id", schedule(spec, jitter=jitter_ms / 1000))
    tick = plain.due_after(at)
    assert tick is not None
    following = plain.due_after(tick)
    assert following is not None
    due = next(due for due in dues(late, tick - 1) if late.tick_of(due) == tick)
    assert tick <= due < min(following, tick + jitter_ms + 1)
    assert late.tick_of(due) == tick
    after = late.due_after(due)
    assert after is not None
    assert late.tick_of(after) == following
    assert Ticks("id", late.schedule).due_after(due - 1) == due


def dues(all_ticks: Ticks, since: int) -> Iterator[int]:
    due = all_ticks.due_after(since)
    while due is not None:
        yield due
        due = all_ticks.due_after(due)


def test_entries_with_one_schedule_are_spread_by_their_ids() -> None:
    jittered = schedule("@hourly", jitter=600)
    found = {Ticks(f"entry-{n}", jittered).due_after(ms(2026, 1, 1)) for n in range(50)}
    assert len(found) > 40


# Missed ticks

NOON = ms(2026, 1, 1, 12)
LATE = GRACE_MS + 1


def made(spec: str, misfire: Any, **more: Any) -> Ticks:
    return Ticks("id", schedule(spec, misfire=misfire, **more))


@pytest.mark.parametrize("misfire", ["skip", "one", "all"])
@pytest.mark.parametrize("late_ms", [0, 1, GRACE_MS])
def test_a_tick_within_the_grace_is_on_time_under_every_policy(misfire: str, late_ms: int) -> None:
    hourly = made("@hourly", misfire)
    assert decide(hourly, NOON, NOON + late_ms) == [Step(NOON, NOON, NOON + 3_600_000)]


@pytest.mark.parametrize("misfire", ["skip", "one", "all"])
def test_all_ticks_within_the_grace_are_on_time(misfire: str) -> None:
    """A redeploy of half a minute loses no tick of a quick schedule."""
    steps = decide(made("@every 10s", misfire), NOON, NOON + GRACE_MS)
    assert [step.tick_ms for step in steps] == [NOON + n * 10_000 for n in range(4)]
    assert [step.next_ms for step in steps] == [NOON + n * 10_000 for n in range(1, 5)]
    assert [step.due_ms for step in steps] == [step.tick_ms for step in steps]


@pytest.mark.parametrize("misfire", ["skip", "one", "all"])
def test_nothing_is_done_before_it_is_due(misfire: str) -> None:
    assert decide(made("@hourly", misfire), NOON, NOON - 1) == []


def test_skip_drops_what_was_missed_and_fires_what_is_on_time() -> None:
    hourly = made("@hourly", "skip")
    assert decide(hourly, NOON, NOON + LATE) == [Step(NOON, None, NOON + 3_600_000)]
    steps = decide(hourly, NOON, NOON + 5 * 3_600_000 + 5)
    on_time = NOON + 5 * 3_600_000
    assert steps == [Step(NOON, None, on_time), Step(on_time, on_time, on_time + 3_600_000)]
    assert decide(hourly, NOON, on_time + GRACE_MS) == steps, "the last moment of the grace is within it"


def test_one_fires_the_newest_of_all_that_were_missed() -> None:
    steps = decide(made("@hourly", "one"), NOON, NOON + 5 * 3_600_000 + LATE)
    newest = NOON + 5 * 3_600_000
    assert steps == [Step(NOON, newest, newest + 3_600_000)]


def test_all_fires_each_in_bounded_calls() -> None:
    minutely, now = made("* * * * *", "all"), NOON + 250 * 60_000
    due: int | None = NOON
    found: list[int | None] = []
    sizes = []
    while due is not None and due <= now:
        steps = decide(minutely, due, now)
        sizes.append(len(steps))
        found += [step.tick_ms for step in steps]
        due = steps[-1].next_ms
    assert found == [NOON + n * 60_000 for n in range(251)]
    assert sizes == [MOST_TICKS] * 5 + [1]


@pytest.mark.parametrize("misfire", ["skip", "one", "all"])
def test_after_the_last_tick_there_is_no_next(misfire: str) -> None:
    ended = made("@hourly", misfire, end=datetime(2026, 1, 1, 12, 30, tzinfo=UTC))
    for now in (NOON, NOON + LATE, NOON + 10**9):
        assert decide(ended, NOON, now)[-1].next_ms is None


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["skip", "one", "all"]),
    st.sampled_from(["* * * * *", "@every 7s", "0 */3 * * *", "30 2 * * *"]),
    st.sampled_from([0, 45]),
    st.integers(0, 5 * 86_400_000),
)
def test_steps_follow_each_other_and_end_in_the_future(
    misfire: str, spec: str, jitter: int, late_ms: int
) -> None:
    """Each expects what the one before has set; no tick comes twice; and in the end nothing is due."""
    all_ticks = made(spec, misfire, jitter=jitter, tz=BERLIN)
    first = all_ticks.due_after(SPRING[0])
    assert first is not None
    now, due, fired = first + late_ms, first, []
    while due <= now:
        steps = decide(all_ticks, due, now)
        assert steps
        for step in steps:
            assert step.due_ms == due
            assert step.next_ms is not None
            assert step.next_ms > due
            due = step.next_ms
            fired += [] if step.tick_ms is None else [step.tick_ms]
    assert fired == sorted(set(fired))
    assert due == all_ticks.due_after(now)
    if misfire == "one":
        assert fired
    if misfire == "all":
        assert len(fired) == len(list(until(all_ticks, first, now)))


def until(all_ticks: Ticks, due: int | None, now: int) -> Iterator[int]:
    while due is not None and due <= now:
        yield due
        due = all_ticks.due_after(due)


def test_the_newest_of_very_many_ticks_is_found_quickly() -> None:
    """A year of seconds: by bisection, not by a walk."""
    asked: list[int] = []

    class Counted:
        unit_ms = 1

        def __init__(self, spec: Any) -> None:
            self._after: Callable[[int], int | None] = spec.after

        def after(self, at: int) -> int | None:
            asked.append(at)
            return self._after(at)

    every = made("@every 1s", "one")
    every._spec = Counted(spec_of(every.schedule))
    year_ms = 366 * 86_400_000
    assert decide(every, NOON, NOON + year_ms) == [Step(NOON, NOON + year_ms, NOON + year_ms + 1_000)]
    assert len(asked) < 100
