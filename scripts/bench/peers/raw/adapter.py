"""The floor: what redis-py itself costs, with nothing of a task queue around it.

- XADD of the same int and 100-byte string, pipelined by 100, blocking and asyncio (on uvloop).
- XREADGROUP of 100, then one pipeline of XACK and XDEL with 100 ids each.
- RESP2 with hiredis: no reply of these commands gains from RESP3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis
import redis.asyncio

from kit.commands import BATCH, Batch, batches, main, redis_url, run_loop
from kit.timing import Clock, Timed

STREAM, GROUP = "bench", "w"


def _blocking() -> redis.Redis:
    return redis.Redis.from_url(redis_url(), protocol=2)


def _asyncio() -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(redis_url(), protocol=2)


def _add(pipeline: Any, batch: Batch) -> Any:
    for number, text in batch:
        pipeline.xadd(STREAM, {"n": number, "t": text})
    return pipeline.execute()


def _settle(pipeline: Any, ids: Iterable[bytes]) -> Any:
    pipeline.xack(STREAM, GROUP, *ids)
    pipeline.xdel(STREAM, *ids)
    return pipeline.execute()


def _fill(count: int) -> None:
    with _blocking() as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        for batch in batches(count):
            _add(client.pipeline(transaction=False), batch)


def xadd_sync(count: int) -> Timed:
    """Blocking pipelines of XADD."""
    with _blocking() as client:
        client.ping()
        clock = Clock()
        for batch in batches(count):
            _add(client.pipeline(transaction=False), batch)
        return clock.stop(count)


async def _xadd_async(count: int) -> Timed:
    async with _asyncio() as client:
        await client.ping()
        clock = Clock()
        for batch in batches(count):
            await _add(client.pipeline(transaction=False), batch)
        return clock.stop(count)


def read_sync(count: int) -> Timed:
    """Blocking reads, batched acknowledgements."""
    _fill(count)
    with _blocking() as client:
        client.ping()
        clock, done = Clock(), 0
        while done < count:
            ((_, entries),) = client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=BATCH)
            _settle(client.pipeline(transaction=False), [entry_id for entry_id, _ in entries])
            done += len(entries)
        return clock.stop(count)


async def _read_async(count: int) -> Timed:
    async with _asyncio() as client:
        await client.ping()
        clock, done = Clock(), 0
        while done < count:
            ((_, entries),) = await client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=BATCH)
            await _settle(client.pipeline(transaction=False), [entry_id for entry_id, _ in entries])
            done += len(entries)
        return clock.stop(count)


def xadd_async(count: int) -> Timed:
    """The same with asyncio."""
    return run_loop(_xadd_async(count))


def read_async(count: int) -> Timed:
    """The same with asyncio."""
    _fill(count)
    return run_loop(_read_async(count))


if __name__ == "__main__":
    main(
        extra={
            "floor-xadd-sync": xadd_sync,
            "floor-xadd-async": xadd_async,
            "floor-read": read_sync,
            "floor-read-async": read_async,
        }
    )
