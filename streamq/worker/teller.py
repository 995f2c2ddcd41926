"""Tells the user's hooks what became of a task. Whatever a hook does, the task and the worker are safe.

A hook is called after the outcome was decided, so nothing that it raises can change it, SystemExit
included: that is logged once, with the task's id and type. One that takes too long is broken off.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from typing import Any

from streamq.model.definition import Definition
from streamq.model.hooks import NO_HOOKS, Hook, Hooks
from streamq.worker.context import TaskContext, set_current

log = logging.getLogger("streamq.teller")

HOOK_S = 30.0
"""How long an async hook may take: while it runs, its task's slot is taken."""
_AT_ONCE = 16
_MOST_WAITING = 10_000
"""Facts about tasks that had no slot; those beyond are not told, rather than fill the memory."""

_Fact = tuple[str, TaskContext, Definition | None, Any]


class Teller:
    """The hooks of one worker. Lives on one event loop."""

    def __init__(self, hooks: Hooks = NO_HOOKS) -> None:
        self._hooks = hooks
        self.of_success = hooks.on_success is not None
        """The app wants to hear of every success."""
        self._waiting: deque[_Fact] = deque()
        self._telling: set[asyncio.Task[None]] = set()
        self._untold = 0

    def wants(self, name: str, definition: Definition | None) -> bool:
        """Whether anybody has this hook."""
        return any(self._hooks_of(name, definition))

    async def tell(self, name: str, context: TaskContext, definition: Definition | None, fact: Any) -> None:
        """Call the task's own hook, then the app's. Never raises."""
        for hook in self._hooks_of(name, definition):
            if hook is not None:
                await _call(name, hook, context, fact)

    def tell_later(self, name: str, context: TaskContext, definition: Definition | None, fact: Any) -> None:
        """The same for tasks that have no slot here, beside everything else."""
        if not self.wants(name, definition):
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._untold += 1
            return
        self._waiting.append((name, context, definition, fact))
        if len(self._telling) < _AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._tell_waiting(), name="streamq-teller")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def aclose(self, within_s: float) -> None:
        """Wait for what is being told, then break it off."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=within_s)
        self._untold += len(self._waiting)
        self._waiting.clear()
        for task in self._telling:
            task.cancel()
        if self._untold:
            log.error("hooks were not called count=%d", self._untold)

    async def _tell_waiting(self) -> None:
        while self._waiting:
            name, context, definition, fact = self._waiting.popleft()
            set_current(context)
            await self.tell(name, context, definition, fact)

    def _hooks_of(self, name: str, definition: Definition | None) -> tuple[Hook | None, Hook | None]:
        own = None if definition is None else definition.hooks
        return getattr(own, name, None), getattr(self._hooks, name)


def complain(name: str, context: TaskContext, broken: BaseException) -> None:
    """Log what a user's function raised."""
    log.error("%s raised id=%s type=%s", name, context.id, context.type, exc_info=broken)


async def _call(name: str, hook: Hook, context: TaskContext, fact: Any) -> None:
    try:
        told = hook(context, fact)
        if inspect.isawaitable(told):
            async with asyncio.timeout(HOOK_S):
                await told
    except BaseException as broken:  # noqa: BLE001  # also sys.exit: a hook must not end the worker
        complain(name, context, broken)
