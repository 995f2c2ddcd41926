"""The header of each script is its contract: compared with the state table, the body and the builders.

A header tells, in this order: purpose, EDGE, KEYS[n], ARGV[n], RETURNS, COST.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from streamq.broker import (
    auditing,
    grouping,
    inspecting,
    limiting,
    moving,
    producing,
    scheduling,
    semaphores,
    steering,
    working,
)
from streamq.broker.command import Command
from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.scripts import script, script_names
from streamq.model.lanes import LANES, Lane
from streamq.model.parked import Reason
from streamq.model.run_limits import Concurrency, SlidingWindow
from streamq.model.states import EDGES
from tests.servers import Server

FOLDER = Path(__file__).parents[2] / "scripts" / "lua"
QUEUE: QueueKeys = Keys("ns").queue("mail")
OTHER: QueueKeys = Keys("ns").queue("other")
DAY = "20260102"
ENTRY = working.Entry(Lane.LOW, b"1-1", b"a", b"m", Lane.LOW, 0)
SETTLED = [working.Settle((b"1-1", b"a", 1, 1, b"n0:m"))]

RULES = [
    limiting.Rule.of("c0:a", Concurrency(1)),
    limiting.Rule.of("w0:a", SlidingWindow(1, per=1)),
]

# Every way in which the package calls a script: all builders, on a queue.
BUILDERS: dict[str, list[Callable[[QueueKeys], Command[Any]]]] = {
    "enqueue": [lambda queue: producing.enqueue(queue, "p", 1, [producing.how(Lane.NORMAL), "a", b"m"])],
    "enqueue_checked": [
        lambda queue: producing.enqueue(queue, "p", 1, [producing.how(Lane.NORMAL, "x"), "a", b"m"])
    ],
    "complete": [lambda queue: working.complete(queue, Lane.NORMAL, DAY, [b"1-1"], [b"a"])],
    "retain": [lambda queue: working.retain(queue, Lane.NORMAL, DAY, SETTLED)],
    "retry": [lambda queue: working.retry(queue, Lane.NORMAL, DAY, SETTLED)],
    "archive": [lambda queue: working.archive(queue, Lane.NORMAL, DAY, SETTLED, 10, 10)],
    "tidy": [lambda queue: working.tidy(queue, [b"a"], [b"n1-1"])],
    "discard": [lambda queue: working.discard(queue, Lane.NORMAL, DAY, SETTLED)],
    "cancel": [lambda queue: steering.cancel(queue, "a", "a0", DAY)],
    "release": [lambda queue: working.release(queue, Lane.FRONT, [b"1-1"])],
    "recover": [
        lambda queue: working.recover(
            queue, Lane.LOW, DAY, "me", lease_ms=1, crash_limit=1, backoff_ms=1, dead="w", cursor=b"0-0"
        )
    ],
    "forward": [moving.forward],
    "purge": [lambda queue: moving.purge(queue, 1, 10)],
    "delete": [lambda queue: moving.delete(queue, "a")],
    "progress": [lambda queue: working.progress(queue, "me", [working.Said(ENTRY, b" ")])],
    "find": [lambda queue: inspecting.find(queue, "a")],
    "pause": [steering.pause, steering.resume],
    "remove": [lambda queue: steering.remove(queue, [DAY], ["c0:a"], force=True)],
    "audit_lane": [lambda queue: auditing.audit_lane(queue, Lane.HIGH, DAY, b"-")],
    "audit_index": [lambda queue: auditing.audit_index(queue, DAY, b"0 0")],
    "audit_sets": [lambda queue: auditing.audit_sets(queue, 3, DAY, b"0")],
    "audit_behind": [lambda queue: auditing.audit_behind(queue, DAY, b"0")],
    "audit_entries": [lambda queue: auditing.audit_entries(queue, Lane.HIGH, DAY, b"-")],
    "audit_groups": [lambda queue: auditing.audit_groups(queue, DAY, b"0")],
    "audit_parked": [lambda queue: auditing.audit_parked(queue, DAY, b"0")],
    "flush_group": [lambda queue: grouping.flush_group(queue, ["b1", "b2"])],
    "settle_batch": [
        lambda queue: working.settle_batch(
            queue, Lane.NORMAL, DAY, working.Settle((b"1-1", b"b", 0, b"")), [(b"a", b"n0!undecodable:m")]
        )
    ],
    "forget_consumer": [lambda queue: moving.forget_consumer(queue.lanes[Lane.HIGH], "w")],
    "forget_producers": [lambda queue: moving.forget_producers(queue, 1)],
    "admit": [lambda queue: limiting.admit(queue, [limiting.Ask(b"n1-1", b"a", RULES)])],
    "set_cron": [lambda queue: scheduling.set_cron(queue, "id", b"", b"0a:m", 1)],
    "look_cron": [scheduling.look],
    "skip_cron": [lambda queue: scheduling.skip_cron(queue, b"id 0a", 1, None)],
    "give_back": [lambda queue: limiting.give_back(queue, [("c0:a", b"n1-1"), ("c0:b", b"n1-1")])],
    "acquire": [lambda queue: semaphores.acquire(Keys("ns").semaphore(queue.name), "t", 1, 1)],
    "renew": [lambda queue: semaphores.renew(Keys("ns").semaphore(queue.name), "t", 1)],
}


TASK_SETS = {"scheduled", "retry", "completed", "archived", "aggregating"}
"""Sorted sets whose members are tasks."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a script says of itself."""

    purpose: str
    edges: frozenset[str]
    keys: list[str]
    """Name and meaning, of KEYS[1] on."""
    more_keys: str | None
    """The same of those that follow, as many as a call needs."""
    arguments: list[tuple[str, str]]
    """What stands in the brackets, and the text after them."""
    tags: list[str]
    """The first word of each part, in order."""
    body: str


_DASH = " \N{EN DASH} "
_PART = re.compile(r"^-- (?P<tag>EDGE|KEYS|ARGV|RETURNS|COST)(?:\[(?P<at>[^\]]+)\])? (?P<text>.+)$")


@cache
def header(name: str) -> Header:
    lines = (FOLDER / f"{name}.lua").read_text().splitlines()
    end = next(at for at, line in enumerate(lines) if not line.startswith("--"))
    edges: list[str] = []
    keys: list[str] = []
    more_keys: str | None = None
    arguments: list[tuple[str, str]] = []
    tags: list[str] = []
    for line in lines[1:end]:
        part = _PART.match(line)
        if part is None:
            assert line.startswith("--    "), f"{name}.lua: a line of no part: {line}"
            continue
        tags.append(part["tag"])
        match part["tag"]:
            case "EDGE":
                edges.append(part["text"])
            case "KEYS" if part["at"] == f"{len(keys) + 1}...":
                more_keys = part["text"]
            case "KEYS":
                assert more_keys is None, f"{name}.lua: a list of keys comes last"
                keys.append(part["text"])
                assert part["at"] == str(len(keys)), f"{name}.lua: keys are numbered in order"
            case "ARGV":
                arguments.append((part["at"], part["text"]))
    assert len(edges) == len(set(edges))
    return Header(lines[0], frozenset(edges), keys, more_keys, arguments, tags, "\n".join(lines[end:]))


def calls(name: str, queue: QueueKeys = QUEUE) -> list[Command[Any]]:
    return [build(queue) for build in BUILDERS[name]]


@pytest.fixture(params=script_names())
def name(request: pytest.FixtureRequest) -> str:
    word: str = request.param
    return word


def test_the_scripts_are_those_of_the_checkout_and_each_has_a_builder() -> None:
    assert script_names() == sorted(path.stem for path in FOLDER.glob("*.lua")) == sorted(BUILDERS)


def test_the_builders_listed_here_are_all_there_are() -> None:
    """Every ``script("...")`` in the package is one of those above."""
    named: list[str] = []
    for path in (FOLDER.parents[1] / "streamq").rglob("*.py"):
        named += re.findall(r"\bscript\(\"(\w+)\"\)", path.read_text())
    assert sorted(named) == sorted(name for name, builders in BUILDERS.items() for _ in builders)


def test_a_header_has_its_parts_in_order(name: str) -> None:
    order = ["EDGE", "KEYS", "ARGV", "RETURNS", "COST"]
    tags = header(name).tags
    assert tags == sorted(tags, key=order.index)
    assert set(tags) == set(order)
    assert tags.count("RETURNS") == tags.count("COST") == 1


def test_a_purpose_is_a_sentence(name: str) -> None:
    assert re.fullmatch(r"-- [A-Z].{20,}\.", header(name).purpose)


def test_the_edges_are_those_of_the_state_table(name: str) -> None:
    edges = EDGES.get(name)
    expected = {f"{one} -> {other}" for one, other in edges} if edges else {"none"}
    assert header(name).edges == expected


def test_every_script_of_the_state_table_exists() -> None:
    assert EDGES.keys() <= set(script_names())


def test_the_builders_pass_the_keys_that_the_header_declares(name: str) -> None:
    """Not one more or fewer, and each under the name that the key builders give it."""
    for command in calls(name):
        assert command.script is script(name)
        told, more = header(name).keys, header(name).more_keys
        if more is not None:
            told = told + [more] * (len(command.keys) - len(told))
        assert len(command.keys) == len(told)
        for key, text in zip(command.keys, told, strict=True):
            declared, _, meaning = text.partition(_DASH)
            assert meaning, f"{name}.lua says nothing of {declared}"
            last = key.decode().removeprefix(f"{QUEUE.base}:").split(":")
            if declared in {"lane", "front"}:
                assert key in QUEUE.lanes.values()
            elif declared == "day":
                assert last == ["stats", DAY]
            elif declared == "limit":
                assert last[0] in {"limit", "turn"}
            elif declared == "other":
                assert key in QUEUE.every or last[0] in {"stats", "limit", "turn"}
            elif declared == "semaphore":
                assert key == Keys("ns").semaphore(QUEUE.name)
            else:
                assert last == [declared]


def test_the_body_uses_the_keys_that_the_header_declares(name: str) -> None:
    """By number, or by counting through KEYS."""
    body, declared = header(name).body, len(header(name).keys)
    used = {int(at) for at in re.findall(r"KEYS\[(\d+)\]", body)}
    for first, last in re.findall(r"for k = (\d+), (\d+) do\b(?=[^\n]*\n?[^\n]*KEYS\[k\])", body):
        used |= set(range(int(first), int(last) + 1))
    if "KEYS[6 + k]" in body:
        listed = re.search(r"for k, \w+ in ipairs\(\{([^}]*)\}\)", body)
        assert listed is not None
        used |= {6 + place for place in range(1, listed[1].count(",") + 2)}
    assert used == set(range(1, declared + 1))
    counted = re.findall(r"KEYS\[[^\]]*\bi\b[^\]]*\]", body)
    assert bool(counted) == (header(name).more_keys is not None)


def test_no_key_is_made_up_in_a_body(name: str) -> None:
    """Every key is declared, so that Redis Cluster and key-checking proxies let the script pass (B28)."""
    body = header(name).body
    for first in re.findall(r"redis\.p?call\('(?!TIME|PUBLISH)\w+',\s*([^,)]+)", body):
        known = r"\w+|KEYS\[[\w +]+\]|'(CONSUMERS|DELCONSUMER|GROUPS|CREATE|SETID)'|lanes\[\w+\]"
        assert re.fullmatch(known, first), first
    for name_, value in re.findall(r"local (lane|stream|key|from|waiting|zset) = ([^\n]+)", body):
        assert ".." not in value, f"{name_} = {value}"


def test_the_header_tells_every_argument_of_the_body(name: str) -> None:
    arguments, body = header(name).arguments, header(name).body
    single = {int(at) for at, _ in arguments if at.isdigit()}
    assert single == set(range(1, len(single) + 1)), "numbered in order"
    lists = [at for at, _ in arguments if not at.isdigit()]
    used = {int(at) for at in re.findall(r"ARGV\[(\d+)\]", body)}
    for at in used - single:
        assert lists, f"{name}.lua uses ARGV[{at}] and does not tell it"
    assert single <= used, "told, but not used"
    for command in calls(name):
        least = len(single) + bool(lists)
        assert len(command.args) >= least
        assert lists or len(command.args) == len(single)


def test_every_argument_is_explained(name: str) -> None:
    for at, text in header(name).arguments:
        assert len(text) > 4, f"ARGV[{at}]"


def test_all_keys_of_a_call_share_one_hash_tag(name: str) -> None:
    """One slot in Redis Cluster; another queue has another."""
    for queue, tag in ((QUEUE, b"mail"), (OTHER, b"other")):
        for command in calls(name, queue):
            tags = {re.findall(rb"\{([^}]*)\}", key)[0] for key in command.keys}
            assert tags in ({tag}, {b"sem:" + tag})  # a semaphore belongs to no queue


def test_the_native_commands_stay_in_one_slot_too() -> None:
    lanes = [(lane, QUEUE.lanes[lane]) for lane in LANES]
    commands: list[Command[Any]] = [
        working.read(lanes, "w", 1),
        working.read_own(Lane.LOW, QUEUE.lanes[Lane.LOW], "w", b"0"),
        working.extend(QUEUE.lanes[Lane.LOW], "w", [b"1-1"]),
        working.make_group(QUEUE.lanes[Lane.LOW]),
        steering.has_content(QUEUE),
        working.marks(QUEUE, Lane.LOW, [b"1-1"]),
        *inspecting.lane_lengths(QUEUE),
        *inspecting.pending_counts(QUEUE),
        *inspecting.cardinalities(QUEUE),
        inspecting.counters(QUEUE.stats),
        inspecting.is_paused(QUEUE),
        moving.consumers(QUEUE.lanes[Lane.LOW]),
        limiting.limiter_names(QUEUE, 0, -1),
        grouping.groups(QUEUE, 10),
        grouping.group_size(QUEUE, b"t\ng"),
        grouping.oldest_member(QUEUE, b"t\ng"),
        scheduling.stored_entry(QUEUE, "id"),
        scheduling.stored_entries(QUEUE),
        scheduling.next_ticks(QUEUE),
        scheduling.history(QUEUE, 0, 10),
    ]
    for command in commands:
        assert command.keys
        assert all(b"{mail}" in key for key in command.keys)
        assert set(command.keys) <= set(command.args), "the declared keys are those of the command"


def test_no_script_names_an_engine(name: str) -> None:
    """Redis 6.2 rejects a ``#!`` line."""
    assert not (FOLDER / f"{name}.lua").read_text().startswith("#!")
    assert "#!" not in header(name).body


def test_what_is_unpacked_is_bounded(name: str) -> None:
    """Lua's stack ends near 8,000: each unpack has a bound that the header or a LIMIT beside it gives."""
    body = header(name).body
    if "unpack(" in body:
        text = (FOLDER / f"{name}.lua").read_text()
        assert re.search(r"at most \d[\d,]*|LIMIT", text), "no bound is told"
    assert "while true" not in body
    assert "repeat" not in body


def test_time_comes_from_redis_alone(name: str) -> None:
    body = header(name).body
    assert "os.time" not in body
    assert "os.clock" not in body
    if re.search(r"\bnow\b", body):
        assert "redis.call('TIME')" in body


def test_a_script_that_takes_no_edge_moves_no_task(name: str) -> None:
    body = header(name).body
    if header(name).edges == {"none"}:
        assert not re.search(r"'(XADD|XACK|XDEL)'", body)
        sets = {text.partition(_DASH)[0] for text in header(name).keys}
        if sets & TASK_SETS:
            assert not re.search(r"'(ZADD|ZREM)'", body)


def test_settling_scripts_acknowledge_before_they_write(name: str) -> None:
    """The law: an acknowledged entry is the token for every further write."""
    from_active = any(edge.startswith("active ->") for edge in header(name).edges)
    if not from_active:
        assert "XACK" not in header(name).body
        return
    writes = re.findall(r"'(XACK|XDEL|XADD|ZADD|HSET|HDEL|ZREM)'", header(name).body)
    assert writes[0] == "XACK"


def test_reasons_that_scripts_write_are_known() -> None:
    written = {reason for name in script_names() for reason in re.findall(r"'!(\w+):'", header(name).body)}
    assert written == {"crashed", "cancelled", "orphaned", "undecodable"}
    assert written <= set(Reason)


def test_every_server_loads_every_script(any_server: Server) -> None:
    """And gives it the name that the package calls it by."""
    for name in script_names():
        sha = any_server.client().script_load(script(name).source)
        assert sha == script(name).sha.decode()
