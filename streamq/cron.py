"""When schedules tick: cron expressions, intervals, jitter, and what becomes of missed ticks.

Nothing here reads a clock or a server. The only home of croniter.

Expressions have five fields, or six: minute, hour, day of month, month, day of week, and second last.
Where both days are restricted, either is enough, as in Vixie cron.

Daylight saving, by the rules of Vixie cron. An entry with a fixed hour (no ``*`` in that field) means a
time on the wall: a time that the clock skips is made up for once, at the end of the gap; a time that
comes twice counts the first time alone. An entry with ``*`` or ``*/n`` there means a rhythm: it ticks
at each real instant that matches, however the clock is turned.

croniter is asked in naive local times, and never across a turn of the clock: within a stretch of one
UTC offset the wall clock is as continuous as UTC is, so nothing depends on what a library makes of
folds and gaps.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, CroniterError, croniter

from streamq.errors import OptionError
from streamq.model.durations import MAX_MS, duration_ms, moment_ms
from streamq.model.names import check_name
from streamq.model.schedule import MISFIRES, Cron, CronEntry, Schedule

GRACE_MS = 30_000
"""So late a tick still counts as on time: a deploy or a failover loses nothing, whatever the policy."""
MOST_TICKS = 50
"""Of one entry in one call; what is left is decided in the next."""
LEAST_EVERY_MS = 100

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EVERY = "@every"
_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_HOUR_FIELD = 1
_NAMES = re.compile("jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat")
_FIELD = re.compile(r"[0-9*/,\-?#lw]+")
"""What is left of a field without names. croniter's ``h`` and ``r`` would tick at random."""

_FAR_MS = 3 * 86_400_000
"""More than all clocks of one zone were ever turned at once."""
_PROBE_MS = 3 * 3_600_000
"""No zone turns its clock twice within so short a time."""
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # of wall clocks, which have no zone


class Spec(Protocol):
    """Something with ticks."""

    @property
    def unit_ms(self) -> int:
        """All ticks are multiples of it."""

    def after(self, ms: int) -> int | None:
        """The first tick later than this moment; None when there is none."""


# Reading what users write


def check_schedule(cron: Cron) -> Schedule:
    """The schedule of an entry, checked.

    Raises OptionError naming the field: an expression, zone, moment or policy without meaning.
    """
    check_name("id", cron.id)
    start_ms = None if cron.start is None else moment_ms("start", cron.start)
    end_ms = None if cron.end is None else moment_ms("end", cron.end)
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        raise OptionError("end", "must not be before start")
    if cron.misfire not in MISFIRES:
        raise OptionError("misfire", f"must be one of {', '.join(MISFIRES)}")
    zone = cron.tz.key if isinstance(cron.tz, ZoneInfo) else cron.tz
    zone_of(zone)
    schedule = Schedule(
        spec=_spell(cron.spec),
        tz=zone,
        jitter_ms=duration_ms("jitter", cron.jitter),
        start_ms=start_ms,
        end_ms=end_ms,
        misfire=cron.misfire,
    )
    if spec_of(schedule).after((start_ms or 0) - 1) is None:
        raise OptionError("spec", f"{schedule.spec!r} never comes: there is no such day")
    return schedule


def zone_of(name: object) -> tzinfo:
    """The time zone of that name. Raises OptionError."""
    if name == "UTC":
        return UTC  # known also where there are no time zones
    try:
        if isinstance(name, str) and name:
            return _zone(name)
    except (KeyError, ValueError, OSError):  # not found, no key at all, a folder of zones
        pass
    raise OptionError(
        "tz",
        f"{name!r:.80} is no time zone known here; give an IANA name such as 'Europe/Berlin', "
        "and install tzdata where the system has none",
    )


_zone = lru_cache(maxsize=256)(ZoneInfo)


def _spell(spec: object) -> str:
    """One spelling for what means the same. Raises OptionError."""
    if isinstance(spec, timedelta):
        return _spell_every(duration_ms("spec", spec))
    if not isinstance(spec, str):
        raise OptionError("spec", f"must be a cron expression or a timedelta, not {type(spec).__name__}")
    fields = spec.lower().split()
    if fields and fields[0] == _EVERY:
        return _spell_every(_read_every(fields[1:], spec))
    spelt = " ".join(fields)
    if spelt in _ALIASES:
        return spelt
    if spelt.startswith("@"):
        known = ", ".join([*_ALIASES, "@every 90s"])
        raise OptionError("spec", f"{spec!r:.80} is not known; there are {known}")
    if len(fields) not in {5, 6} or not all(_FIELD.fullmatch(_NAMES.sub("0", field)) for field in fields):
        raise OptionError(
            "spec",
            f"{spec!r:.80} is no cron expression: minute, hour, day of month, month, day of week "
            "and, if need be, second, as in '*/5 * * * *'",
        )
    try:
        croniter(spelt, _EPOCH)
    except (CroniterError, ValueError) as error:
        raise OptionError("spec", f"{spec!r:.80} is no cron expression: {error}") from None
    return spelt


def _read_every(words: list[str], spec: str) -> int:
    text = "".join(words)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)", text)
    if not text or "".join(map("".join, parts)) != text:
        raise OptionError("spec", f"{spec!r:.80} makes no sense; write it as '@every 1h30m' or '@every 90s'")
    return round(sum(float(number) * _UNITS_MS[unit] for number, unit in parts))


def _spell_every(ms: int) -> str:
    if not LEAST_EVERY_MS <= ms <= MAX_MS:
        raise OptionError("spec", f"an interval must be from {LEAST_EVERY_MS} ms to a hundred years")
    text = ""
    for unit, size in _UNITS_MS.items():
        count, ms = divmod(ms, size)
        text += f"{count}{unit}" if count else ""
    return f"{_EVERY} {text}"


# Ticks on the clock


@lru_cache(maxsize=1024)
def spec_of(schedule: Schedule) -> Spec:
    """What ticks there are, apart from jitter and end. Raises OptionError for what is stored and wrong."""
    if schedule.spec.startswith(_EVERY):
        return Every(_read_every(schedule.spec.split()[1:], schedule.spec), schedule.start_ms or 0)
    return Expression(_ALIASES.get(schedule.spec, schedule.spec), zone_of(schedule.tz))


@dataclass(frozen=True, slots=True)
class Every:
    """Multiples of an interval, counted from an anchor, so that everybody counts alike."""

    interval_ms: int
    anchor_ms: int
    unit_ms: int = field(default=1, init=False)

    def after(self, ms: int) -> int | None:
        """The first tick later than this moment."""
        if ms < self.anchor_ms:
            return self.anchor_ms
        return self.anchor_ms + ((ms - self.anchor_ms) // self.interval_ms + 1) * self.interval_ms


@dataclass(frozen=True, slots=True)
class Expression:
    """A cron expression in a time zone."""

    text: str
    zone: tzinfo
    unit_ms: int = field(default=1000, init=False)
    _croniter: croniter = field(init=False, compare=False, repr=False)
    _turns: threading.Lock = field(default_factory=threading.Lock, init=False, compare=False, repr=False)
    """Reading an expression costs more than asking it, so it is read once, and threads take turns."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_croniter", croniter(self.text, _EPOCH))

    @property
    def is_fixed(self) -> bool:
        """It means times on the wall, not a rhythm."""
        return "*" not in self.text.split()[_HOUR_FIELD]

    def after(self, ms: int) -> int | None:
        """The first tick later than this moment, by the rules above."""
        at, wall = ms, self._wall_to_begin(ms)
        while True:
            match = self._match_after(wall)
            if match is None:
                return None
            offset = self._offset(at)
            there = match - offset
            if there - at > _FAR_MS:
                # Nothing matches in between, whatever the clock does there.
                at = there - _FAR_MS
                wall = max(wall, at + self._offset(at))
                continue
            turn = self._turn(at, there)
            if turn is None:
                return there
            turned = self._offset(turn)
            skipped = self.is_fixed and match < turn + turned
            if skipped:
                return turn
            repeated = self.is_fixed and turned < offset
            at, wall = turn, turn + (offset if repeated else turned) - 1000

    def _wall_to_begin(self, ms: int) -> int:
        """The time on the wall after which to look; in an hour that comes again, where that ends."""
        wall = ms + self._offset(ms)
        if self.is_fixed and datetime.fromtimestamp(ms // 1000, self.zone).fold:
            first = self._turn(ms - _FAR_MS, ms)
            if first is not None:
                wall = max(wall, first + self._offset(first - 1) - 1000)
        return wall

    def _match_after(self, wall: int) -> int | None:
        begin = _EPOCH + timedelta(seconds=wall // 1000)
        try:
            with self._turns:
                found: datetime = self._croniter.get_next(datetime, start_time=begin)
        except CroniterBadDateError:
            return None
        return round((found - _EPOCH).total_seconds()) * 1000

    def _offset(self, ms: int) -> int:
        offset = datetime.fromtimestamp(ms // 1000, self.zone).utcoffset()
        return 0 if offset is None else round(offset.total_seconds()) * 1000

    def _turn(self, after: int, until: int) -> int | None:
        """The first moment in (after, until] at which the clock stands differently."""
        offset = self._offset(after)
        low = after
        while low < until:
            high = min(low + _PROBE_MS, until)
            if self._offset(high) != offset:
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
                return high
            low = high
        return None


# Ticks of an entry


class Ticks:
    """The ticks of one entry: between start and end, and each late by its share of the jitter.

    A share is below the time to the next tick, so ticks never overtake each other, and drawn from id
    and tick, so every scheduler draws the same.
    """

    def __init__(self, entry_id: str, schedule: Schedule) -> None:
        """Raises OptionError for what is stored and wrong, and for zones that are not known here."""
        self.schedule = schedule
        self._id = entry_id
        self._spec = spec_of(schedule)

    @classmethod
    def of(cls, entry: CronEntry) -> Ticks:
        """Those of a stored entry."""
        return cls(entry.id, entry.schedule)

    def due_after(self, ms: int) -> int | None:
        """When the first tick is due that is due later than this moment; None when there is none."""
        if self.schedule.jitter_ms:
            tick = self._newest(ms, ms)
            if tick is not None and self._due(tick) > ms:
                return self._due(tick)
        tick = self._after(ms)
        return None if tick is None else self._due(tick)

    def tick_of(self, due_ms: int) -> int:
        """The tick that is due at this moment: the time for which it stands in the schedule."""
        tick = self._newest(due_ms, due_ms) if self.schedule.jitter_ms else due_ms
        return due_ms if tick is None else tick

    def newest_due(self, since_ms: int, now_ms: int) -> int:
        """When the last tick was due, of those that were due from ``since_ms`` on."""
        tick = self._newest(since_ms, now_ms)
        if tick is not None and self._due(tick) > now_ms:
            tick = self._newest(since_ms, tick - 1)
        return since_ms if tick is None else max(since_ms, self._due(tick))

    def _after(self, ms: int) -> int | None:
        start_ms, end_ms = self.schedule.start_ms, self.schedule.end_ms
        tick = self._spec.after(ms if start_ms is None else max(ms, start_ms - 1))
        return None if tick is None or (end_ms is not None and tick > end_ms) else tick

    def _due(self, tick: int) -> int:
        if not self.schedule.jitter_ms:
            return tick
        following = self._spec.after(tick)
        most_ms = (
            self.schedule.jitter_ms if following is None else min(self.schedule.jitter_ms, following - tick)
        )
        drawn = hashlib.blake2b(f"{self._id} {tick}".encode(), digest_size=6).digest()
        return tick + most_ms * int.from_bytes(drawn, "big") // (1 << 48)

    def _newest(self, since_ms: int, until_ms: int) -> int | None:
        """The last tick up to this moment, of those that may be due from ``since_ms`` on."""
        newest = self._after(since_ms - self.schedule.jitter_ms - 1)
        if newest is None or newest > until_ms:
            return None
        unit_ms, beyond = self._spec.unit_ms, until_ms + 1
        while beyond - newest > unit_ms:
            middle = newest + max(unit_ms, (beyond - newest) // 2 // unit_ms * unit_ms)
            later = self._after(middle - 1)
            if later is not None and later <= until_ms:
                newest = later
            else:
                beyond = middle
        return newest


class Step(NamedTuple):
    """One thing to do with a tick that is due."""

    due_ms: int
    """What the entry's next tick must be for this to be done."""
    tick_ms: int | None
    """The tick to enqueue for; None: what was missed up to the next one is dropped."""
    next_ms: int | None


def decide(ticks: Ticks, due_ms: int, now_ms: int) -> list[Step]:
    """What to do when an entry's next tick is due, in order; at most ``MOST_TICKS`` steps.

    Ticks up to ``GRACE_MS`` late are all fired. When older ones were missed, ``skip`` drops those,
    ``one`` fires the newest of all that are due, and ``all`` fires each.
    """
    steps: list[Step] = []
    on_time_ms, misfire = now_ms - GRACE_MS, ticks.schedule.misfire
    due: int | None = due_ms
    if due_ms < on_time_ms and misfire == "skip":
        due = ticks.due_after(on_time_ms - 1)
        steps.append(Step(due_ms, None, due))
    elif due_ms < on_time_ms and misfire == "one":
        newest = ticks.newest_due(due_ms, now_ms)
        return [Step(due_ms, ticks.tick_of(newest), ticks.due_after(now_ms))]
    while due is not None and due <= now_ms and len(steps) < MOST_TICKS:
        following = ticks.due_after(due)
        steps.append(Step(due, ticks.tick_of(due), following))
        due = following
    return steps
