"""How a handler is called, decided once for each definition.

A plain async handler is called as it is: the executor awaits it with nothing in between. Everything
else becomes a coroutine function that is called in its place. Owns the threads of sync handlers.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from streamq.errors import BadAggregate, HandlerNotFound
from streamq.model.call import TaskCall
from streamq.model.definition import Definition
from streamq.model.groups import Member
from streamq.worker.batching import Batch
from streamq.worker.context import current_task
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
    ) -> list[Any]: ...

    def leave(self, places: list[Any]) -> None: ...


class Isolates(Protocol):
    """What is needed of the isolator."""

    async def call(self, run: Run, definition: Definition, /, *args: Any, **kwargs: Any) -> Any: ...


class Invoker:
    """The ways to call a handler in one worker."""

    def __init__(
        self,
        concurrency: int,
        limiter: Admits,
        definitions: Mapping[str, Definition],
        isolator: Isolates | None = None,
    ) -> None:
        self._threads = Threads(concurrency)
        self._limiter = limiter
        self._definitions = definitions
        self._isolator = isolator

    def of(self, run: Run, definition: Definition) -> Invoke:
        """What the executor awaits in place of the handler, for definitions that are not ``plain``."""
        return self._surrounded(run, definition, self._provided(run, definition))

    def of_batch(self, run: Run, definition: Definition, batch: Batch) -> tuple[Invoke, list[Any]]:
        """The same for a batch, and the arguments to call it with."""
        if definition.batch:
            return self.of(run, definition), [batch.members]
        call = partial(self._aggregated, run, definition)
        return self._surrounded(run, definition, call), [batch.group, batch.members]

    def _surrounded(self, run: Run, definition: Definition, call: Invoke) -> Invoke:
        """A call with everything around it that stands around each run of a task."""
        if definition.middleware:
            call = surround(definition.middleware, partial(_until_ended, run, call))
        if definition.limits:
            # Around everything else: a task that may not start yet has no attempt.
            call = partial(self._limited, run, definition, call)
        return call

    def _provided(self, run: Run, definition: Definition) -> Invoke:
        """The handler, given what it needs."""
        call = self._bare(run, definition)
        if definition.needs is None or definition.isolation is not None:
            return call
        until_ended = partial(_until_ended, run, call)
        return partial(
            provide, run, self._threads.submit, definition.needs, definition.overrides, until_ended
        )

    def _bare(self, run: Run, definition: Definition) -> Invoke:
        """The handler with nothing around it."""
        if definition.isolation is not None and self._isolator is not None:
            return partial(self._isolator.call, run, definition)
        if definition.is_async:
            return definition.handler
        return partial(self._in_thread, run, definition.handler)

    async def _aggregated(
        self, run: Run, definition: Definition, /, group: str, members: list[Member]
    ) -> Any:
        """Make one task of the members, and run it here and now, as the batch that they are."""
        if definition.aggregate is None:
            raise HandlerNotFound(f"{definition.name!r} takes no groups in this worker; see app.batch_task")
        made: Any = definition.aggregate(group, list(members))
        call = await made if inspect.isawaitable(made) else made
        if call is None:
            return None
        if not isinstance(call, TaskCall):
            problem = f"must return a TaskCall or None, not {type(call).__name__}"
            raise BadAggregate(f"the aggregator of {definition.name!r} {problem}")
        target = self._definitions[call.type]
        if target.batch:
            whole = Member(current_task().id, tuple(call.args), call.kwargs)
            return await self._provided(run, target)([whole])
        return await self._provided(run, target)(*call.args, **call.kwargs)

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
