"""Runs handlers in child processes, which are kept warm from run to run.

1. There are never more children than slots. Each run has one to itself.
2. While there is room, one more than needed is kept ready, so that a run hardly ever waits for a start.
3. A child is used again until it has had its runs. One that crashed, was told to stop or hit a limit
   is killed, and the slot of its run is free when it is dead.
4. Children that have had nothing to do for a while are let go, but one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from streamq.clock import monotonic_s
from streamq.codec import encode_frame, encode_payload
from streamq.errors import ChildFailed, HandlerFailed, PayloadError, SkipRetry, Steering
from streamq.model.definition import Definition
from streamq.model.isolation import PLAIN, Isolation
from streamq.model.limits import MAX_DEPTH, Limits
from streamq.worker.child_process import ChildProcess, told_code
from streamq.worker.context import Report, current_task, frame_of
from streamq.worker.held import Run
from streamq.worker.home import Home
from streamq.worker.invoking import outlast
from streamq.worker.outcome import retention_of

log = logging.getLogger("streamq.isolation")

_IDLE_S = 60.0
"""A child without work for so long is let go, unless it is the only one."""
_CLOSE_S = 5.0
"""How long children may take to leave the app's lifespan."""
_NO_CAP = Limits(payload_bytes=1 << 40, depth=MAX_DEPTH)
"""Arguments were capped when they were enqueued; a batch has those of many tasks."""
_REUSABLE = (HandlerFailed, Steering, PayloadError)
"""Errors after which a child is as good as before."""


class Isolator:
    """The child processes of one worker. Lives on one event loop."""

    def __init__(self, home: Home | None, size: int, limits: Limits, report: Report) -> None:
        self._home = home
        self._size = size
        self._limits = limits
        self._report = report
        self._spare: list[ChildProcess] = []
        """Ready, or on their way there; the one used last stands last."""
        self._alive: set[ChildProcess] = set()
        self._changed = asyncio.Event()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that live."""
        return sorted(child.pid for child in self._alive)

    def warm(self) -> None:
        """Have a child ready, if there are tasks that will need one."""
        if self._home is None or self._closed or self._spare or len(self._alive) >= self._size:
            return
        try:
            self._spare.append(self._start())
        except ChildFailed as error:
            log.error("no spare child process error=%s", error)

    async def call(self, run: Run, definition: Definition, /, *args: Any, **kwargs: Any) -> Any:
        """Run the handler in a child. When this ends, so has the handler, whatever became of it."""
        isolation = definition.isolation or PLAIN
        frame = encode_frame(
            {
                "name": definition.name,
                "payload": encode_payload(args, kwargs, _NO_CAP),
                "context": frame_of(current_task()),
            }
        )
        child = await self._take(isolation)
        try:
            result = await child.run(frame, isolation, partial(self._report, run))
        except _REUSABLE as error:
            self._give_back(child, isolation)
            if isinstance(error, PayloadError):
                return _unstorable(run, definition, error)
            raise
        except BaseException:
            await self._end(child)
            raise
        self._give_back(child, isolation)
        return result

    async def aclose(self) -> None:
        """End every child: those ready for work in order, within bounds; the others at once."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        children = list(self._alive)
        for child in children:
            if child in self._spare and child.ready.done():
                child.close()
            else:
                child.kill()
        self._spare.clear()
        if children:
            await asyncio.wait([child.dead for child in children], timeout=_CLOSE_S)
        for child in children:
            await self._end(child)
            await child.gone()

    # Children

    async def _take(self, isolation: Isolation) -> ChildProcess:
        """A ready child for one run. Raises ChildFailed when there can be none."""
        child = await self._pick(isolation)
        self.warm()
        try:
            await asyncio.shield(child.ready)
        except asyncio.CancelledError:
            # It goes on to become ready: else a timeout shorter than a start would never let one be.
            self._keep(child)
            raise
        except BaseException:
            await self._end(child)
            raise
        return child

    async def _pick(self, isolation: Isolation) -> ChildProcess:
        while True:
            for child in sorted(self._spare, key=_readiness, reverse=True):
                if child.dead.done() or child.runs < isolation.runs:
                    self._spare.remove(child)
                    if not child.dead.done():
                        return child
                    break
            else:
                if len(self._alive) < self._size:
                    return self._start()
                # All slots but this one are taken, so what is in the way is spare, or about to end.
                if self._spare:
                    self._let_go(self._spare.pop(0))
                await self._change()

    def _start(self) -> ChildProcess:
        if self._home is None or self._closed:
            raise ChildFailed("this worker starts no child processes")
        try:
            child = ChildProcess(self._start_frame(self._home))
        except OSError as error:  # No memory or no process number is left: it may be better in a while.
            raise ChildFailed(f"the child process cannot be started: {error}") from error
        self._alive.add(child)
        child.dead.add_done_callback(lambda _: self._died(child))
        return child

    def _died(self, child: ChildProcess) -> None:
        self._alive.discard(child)
        if child in self._spare:
            self._spare.remove(child)
            log.warning(
                "child process ended without work pid=%d end=%s", child.pid, told_code(child.dead.result())
            )
        self._changed.set()

    def _give_back(self, child: ChildProcess, isolation: Isolation) -> None:
        if self._closed or child.runs >= isolation.runs:
            self._let_go(child)
            self.warm()
        else:
            self._keep(child)

    def _keep(self, child: ChildProcess) -> None:
        """For the next run."""
        if self._closed or child.dead.done():
            child.kill()
            return
        child.idle_since_s = monotonic_s()
        self._spare.append(child)
        self._changed.set()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_IDLE_S, self._sweep)

    def _let_go(self, child: ChildProcess) -> None:
        """It may leave the lifespan, but not take for ever."""
        child.close()
        asyncio.get_running_loop().call_later(_CLOSE_S, child.kill)

    async def _end(self, child: ChildProcess) -> None:
        child.kill()
        await outlast(child.dead)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _sweep(self) -> None:
        """Let go who has had nothing to do, but one."""
        self._sweeping = None
        idle = [child for child in self._spare if child.idle_since_s <= monotonic_s() - _IDLE_S]
        for child in idle if len(idle) < len(self._spare) else idle[:-1]:
            self._spare.remove(child)
            self._let_go(child)
        if len(self._spare) > 1:
            self._sweeping = asyncio.get_running_loop().call_later(_IDLE_S, self._sweep)

    def _start_frame(self, home: Home) -> dict[str, Any]:
        root = logging.getLogger()
        shown = root.handlers[0].formatter if root.handlers else None
        return {
            "home": home.frame(),
            "argv": sys.argv,
            "limits": asdict(self._limits),
            "uvloop": type(asyncio.get_running_loop()).__module__.partition(".")[0] == "uvloop",
            "log": None if shown is None else [root.level, shown._fmt],  # noqa: SLF001  # has no public name
        }


def _readiness(child: ChildProcess) -> tuple[bool, float]:
    """Greater for those that should rather be taken: who is ready; who was used last."""
    return child.ready.done(), child.idle_since_s


def _unstorable(run: Run, definition: Definition, error: PayloadError) -> None:
    """The work is done: where nobody keeps the result, nothing is amiss; else it will not come out better."""
    if run.message is not None and retention_of(run.message, definition):
        error.__cause__ = SkipRetry("another attempt would do the work twice and end the same way")
        raise error
