"""How a handler is called, decided once for each definition.

A plain async handler is called as it is: the executor awaits it with nothing in between. Everything
else becomes a coroutine function that is called in its place. Owns the threads of sync handlers.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from streamq.model.definition import Definition
from streamq.worker.held import Run, Stop
from streamq.worker.middleware import surround
from streamq.worker.resolver import provide
from streamq.worker.threads import Threads

Invoke = Callable[..., Awaitable[Any]]
"""Called with the arguments of the task, and awaited for its result."""


class Admits(Protocol):
    """What is needed of the limiter."""

    async def admit(
        self, run: Run, definition: Definition, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[str]: ...

    def leave(self, names: list[str]) -> None: ...


class Isolates(Protocol):
    """What is needed of the isolator."""

    async def call(self, run: Run, definition: Definition, /, *args: Any, **kwargs: Any) -> Any: ...


class Invoker:
    """The ways to call a handler in one worker."""

    def __init__(self, concurrency: int, limiter: Admits, isolator: Isolates | None = None) -> None:
        self._threads = Threads(concurrency)
        self._limiter = limiter
        self._isolator = isolator

    def of(self, run: Run, definition: Definition) -> Invoke:
        """What the executor awaits in place of the handler, for definitions that are not ``plain``."""
        call = self._bare(run, definition)
        if definition.surrounded:
            call = self._surround(run, definition, partial(_until_ended, run, call))
        if definition.limits:
            # Around everything else: a task that may not start yet has no attempt.
            call = partial(self._limited, run, definition, call)
        return call

    def _surround(self, run: Run, definition: Definition, call: Invoke) -> Invoke:
        if definition.needs is not None and definition.isolation is None:
            call = partial(provide, run, self._threads.submit, definition.needs, definition.overrides, call)
        return surround(definition.middleware, call) if definition.middleware else call

    def _bare(self, run: Run, definition: Definition) -> Invoke:
        """The handler with nothing around it."""
        if definition.isolation is not None and self._isolator is not None:
            return partial(self._isolator.call, run, definition)
        if definition.is_async:
            return definition.handler
        return partial(self._in_thread, run, definition.handler)

    async def _limited(
        self, run: Run, definition: Definition, call: Invoke, /, *args: Any, **kwargs: Any
    ) -> Any:
        places = await self._limiter.admit(run, definition, args, kwargs)
        if run.message is not None and run.message.put_back:
            run.message = run.message.copy(put_back=None)
        try:
            return await call(*args, **kwargs)
        finally:
            if run.outliving is None:
                self._limiter.leave(places)
            else:
                # The attempt may be over, but what it could not cancel still runs.
                run.outliving.add_done_callback(lambda _: self._limiter.leave(places))

    async def _in_thread(self, run: Run, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        run.outliving = thread = self._threads.submit(lambda: context.run(handler, *args, **kwargs))
        # Shielded: a thread cannot be cancelled, and what it comes to must not be thrown away.
        return await asyncio.shield(thread)


async def _until_ended(run: Run, call: Invoke, /, *args: Any, **kwargs: Any) -> Any:
    """A call that ends no sooner than what it cannot cancel: what stands around it is still needed there.

    After a shutdown what the work came to counts, as it does where nothing stands around it.
    """
    try:
        result = await call(*args, **kwargs)
    except asyncio.CancelledError as cancelled:
        work = run.outliving
        if work is None:
            raise
        await outlast(work)
        if run.stop is Stop.SHUTDOWN:
            result = work.result()  # its error, if it has one, the executor finds in ``outliving``
        else:
            run.outliving = None
            cancelled.__cause__ = work.exception()
            raise
    # From here on the run ends as what stands around decides.
    run.outliving = None
    return result


async def outlast(work: asyncio.Future[Any]) -> None:
    """Wait for work that cannot be cancelled, however often its waiter is."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            # The work goes on; so does the slot. The run's ``stop`` says what its end will count as.
            continue
