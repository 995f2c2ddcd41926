"""One worker in this process: its event loop, its signals, its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from streamq.app import StreamQ
from streamq.cli.reporting import FAILED, flush_everything
from streamq.errors import StreamQError
from streamq.worker.supervisor import ORDERED
from streamq.worker.worker import Worker

log = logging.getLogger("streamq.cli")

_ORPHAN_MARGIN_S = 15.0
"""What an orphan may need beyond its grace period, before it is ended by force."""


def work(app: StreamQ, settings: dict[str, Any], *, supervised: bool) -> int:
    """Run a worker until it is told to stop. Returns the exit code.

    Raises StreamQError for settings that turn out wrong only now, such as certificates that are missing.
    """
    lifeline = _take_lifeline() if supervised else None
    # What is loaded by now stays for good: the collector need not walk through it again and again.
    gc.collect()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return runner.run(_work(app, settings, lifeline))
    except StreamQError:
        raise
    except Exception:
        log.exception("the worker ended with an error")
        return FAILED


async def _work(app: StreamQ, settings: dict[str, Any], lifeline: int | None) -> int:
    worker = app.worker(**settings)
    listen(worker.stop, worker.quiet)
    if lifeline is not None:
        _stop_with_the_parent(worker, lifeline)
    async with app:
        await worker.run()
    # Only a supervisor needs to know: it would start another one.
    code = ORDERED if worker.ordered and lifeline is not None else 0
    if worker.stuck:
        # Their tasks are given back. The loop cannot end while they refuse to; the process can.
        log.warning("leaving handlers behind that do not end count=%d", worker.stuck)
        flush_everything()
        os._exit(code)
    return code


def listen(stop: Callable[[], None], quiet: Callable[[], None]) -> None:
    """Call these when the signals come. The loop's own handlers: they run between two steps of it."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _heard, number, stop)
    for number in (signal.SIGUSR1, signal.SIGTSTP):
        loop.add_signal_handler(number, _heard, number, quiet)


def _heard(number: signal.Signals, then: Callable[[], None]) -> None:
    log.info("signal received name=%s", number.name)
    then()


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


# The supervisor's end


def _take_lifeline() -> int:
    """Move the pipe away from stdin, where handlers and their children could read from it."""
    lifeline = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return lifeline


def _stop_with_the_parent(worker: Worker, lifeline: int) -> None:
    """Stop when the pipe ends, from a thread: it also notices while a handler hogs the loop."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        log.warning("the supervisor is gone; stopping id=%s", worker.id)
        try:
            loop.call_soon_threadsafe(worker.stop)
        except RuntimeError:
            return  # The loop has ended already.
        threading.Event().wait(worker.config.grace_s + _ORPHAN_MARGIN_S)
        log.error("does not end by itself; ending the process id=%s", worker.id)
        flush_everything()
        os._exit(FAILED)

    threading.Thread(target=watch, name="streamq-lifeline", daemon=True).start()
