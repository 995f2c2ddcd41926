"""The four handlers every peer registers, as plain functions in an async and a sync form.

All take ``(number: int, text: str)`` so that one payload, an int and a 100-byte string, serves every
workload.
"""

from __future__ import annotations

import asyncio
import time

from kit.board import begin, begin_in_thread, sample, tick, tick_in_thread

NAP_S = 0.05
TEXT = "x" * 100


async def noop(number: int, text: str) -> None:
    """Nothing but being counted."""
    tick()


async def yield_once(number: int, text: str) -> None:
    """Suspends once, as a handler that awaits anything does."""
    await asyncio.sleep(0)
    tick()


async def nap(number: int, text: str) -> None:
    """Stands for I/O: 50 ms of waiting. The clock starts when the first one starts."""
    begin()
    await asyncio.sleep(NAP_S)
    tick()


async def stamp(number: int, text: str) -> None:
    """``number`` is when the task was due (CLOCK_MONOTONIC, ns): records how much later it is now."""
    sample(time.monotonic_ns() - number)
    tick()


def noop_sync(number: int, text: str) -> None:
    """Nothing but being counted."""
    tick_in_thread()


def nap_sync(number: int, text: str) -> None:
    """Stands for I/O: 50 ms of waiting."""
    begin_in_thread()
    time.sleep(NAP_S)
    tick_in_thread()


def stamp_sync(number: int, text: str) -> None:
    """``number`` is when the task was due (CLOCK_MONOTONIC, ns): records how much later it is now."""
    sample(time.monotonic_ns() - number)
    tick_in_thread()


ASYNC = {"noop": noop, "yield_once": yield_once, "nap": nap, "stamp": stamp}
SYNC = {"noop": noop_sync, "nap": nap_sync, "stamp": stamp_sync}
