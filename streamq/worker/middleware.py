"""Middleware around the run of a task: the first that was registered is the outermost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from streamq.worker.context import TaskContext, current_task


class CallNext(Protocol):
    """What middleware awaits: the rest of the run, at last the handler. Returns its result."""

    def __call__(self) -> Awaitable[Any]: ...


Middleware = Callable[[TaskContext, CallNext], Awaitable[Any]]
"""Called in place of the handler. What it returns is the result, what it raises the error."""


def surround(middleware: Sequence[Middleware], call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """``call`` with the middleware around it."""

    async def surrounded(*args: Any, **kwargs: Any) -> Any:
        context = current_task()
        step: CallNext = partial(call, *args, **kwargs)
        for one in reversed(middleware):
            step = partial(one, context, step)
        return await step()

    return surrounded
