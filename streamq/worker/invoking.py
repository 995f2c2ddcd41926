"""How a handler is called, decided once for each definition.

A plain async handler is called as it is: the executor awaits it with nothing in between. Everything
else becomes a coroutine function that is called in its place. Owns the threads of sync handlers.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from streamq.model.definition import Definition
from streamq.worker.held import Run
from streamq.worker.threads import Threads

Invoke = Callable[..., Awaitable[Any]]
"""Called with the arguments of the task, and awaited for its result."""


class Invoker:
    """The ways to call a handler in one worker."""

    def __init__(self, concurrency: int) -> None:
        self._threads = Threads(concurrency)

    def of(self, run: Run, definition: Definition) -> Invoke:
        """What the executor awaits in place of the handler, for definitions that are not ``plain``."""
        if definition.is_async:
            return definition.handler
        return partial(self._in_thread, run, definition.handler)

    async def _in_thread(self, run: Run, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        run.outliving = thread = self._threads.submit(lambda: context.run(handler, *args, **kwargs))
        # Shielded: a thread cannot be cancelled, and what it comes to must not be thrown away.
        return await asyncio.shield(thread)


async def outlast(work: asyncio.Future[Any]) -> None:
    """Wait for work that cannot be cancelled, however often its waiter is."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            # The work goes on; so does the slot. The run's ``stop`` says what its end will count as.
            continue
