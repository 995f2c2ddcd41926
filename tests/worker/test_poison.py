"""Poison: bytes that no worker can read are set aside with each of them kept, wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest

from streamq import GroupRule, Member, StreamQ
from streamq.codec import encode_message
from streamq.inspector import Inspector
from streamq.model.lanes import Lane
from streamq.model.message import Message
from streamq.model.parked import Parked, Reason
from streamq.model.states import State
from tests.servers import Server
from tests.support import eventually, keys_of, running

NEWER = encode_message(Message.new(type="t", payload=b"\x80")).replace(b"\x61v\x01", b"\x61v\x09")
POISON = [b"", b"\x00garbage", b"\xa1", NEWER, b"\x9f" * 5000, bytes(range(256))]
"""Nothing, no CBOR, CBOR that ends too soon, a newer version's, nested too deep, any byte."""
TASKS = 5


@pytest.mark.parametrize("poison", POISON, ids=range(len(POISON)))
@pytest.mark.parametrize("slip", [b"n0:", b""], ids=["body", "value"])
async def test_poison_among_the_members_of_a_group_is_archived_and_the_others_run(
    app: StreamQ, server: Server, inspector: Inspector, slip: bytes, poison: bytes
) -> None:
    """B2: the message alone, or the whole value that is stored of it."""
    batches: list[list[int]] = []

    @app.batch_task(name="t", group_rule=GroupRule(grace=3600, max_delay=None, max_size=TASKS))
    async def task(members: list[Member]) -> None:
        batches.append([member.args[0] for member in members])

    redis: Any = server.client()
    handles = [await task.in_group("g").enqueue(number) for number in range(TASKS - 1)]
    redis.hset(keys_of(app).parked, handles[1].id, slip + poison)
    handles.append(await task.in_group("g").enqueue(TASKS - 1))
    async with running(app):
        await eventually(lambda: batches == [[0, 2, 3, 4]])

        async def is_archived() -> bool:
            return (await inspector.queue("default")).archived == 1

        await eventually(is_archived)
    info = await inspector.task("default", handles[1].id)
    assert (info.reason, info.message) == (Reason.UNDECODABLE, None)
    assert Parked.unpack(redis.hget(keys_of(app).parked, handles[1].id)).message == poison
    assert (await inspector.queue("default")).size == 1


@pytest.mark.parametrize("poison", POISON, ids=range(len(POISON)))
@pytest.mark.parametrize("place", ["ready", "expired", "scheduled", "retry"])
async def test_poison_among_good_tasks_is_archived_and_the_others_run(
    app: StreamQ, server: Server, inspector: Inspector, place: str, poison: bytes
) -> None:
    """B2: in a lane, among entries of a dead worker, among scheduled ones and those to be tried again."""
    ran: set[int] = set()

    @app.task(name="t")
    async def task(number: int) -> None:
        ran.add(number)

    keys = keys_of(app)
    redis: Any = server.client()
    lane = keys.lanes[Lane.NORMAL]

    def put_poison() -> None:
        if place in {"scheduled", "retry"}:
            redis.zadd(getattr(keys, place), {"poison": 1})
            redis.hset(keys.parked, "poison", Parked(Lane.NORMAL, 0, poison).pack())
        else:
            entry = redis.xadd(lane, {"id": "poison", "m": poison})
            redis.hset(keys.index, "poison", b"n" + entry)

    for number in range(TASKS):
        if number == 2:
            put_poison()
        await task.options(delay=0.01 if place == "scheduled" else None).enqueue(number)
    if place == "expired":
        redis.xgroup_create(lane, "w", "0")
        redis.xreadgroup("w", "dead", {lane: ">"}, count=100)
    async with running(app, lease_ms=300):

        async def is_archived() -> bool:
            return (await inspector.queue("default")).archived == 1

        await eventually(is_archived)
        await eventually(lambda: len(ran) == TASKS)
    info = await inspector.task("default", "poison")
    assert (info.state, info.reason, info.retried) == (State.ARCHIVED, Reason.UNDECODABLE, 0)
    assert info.message is None
    assert info.crashes == (1 if place == "expired" else 0)
    assert Parked.unpack(redis.hget(keys.parked, "poison")).message == poison
    assert (await inspector.queue("default")).size == 1
