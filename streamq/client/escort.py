"""Middleware around enqueue: context managers that a call passes through on its way to Redis.

Each may change the call, and is left when its task is stored, or with the error when it is not. A
call is escorted in a copy of the caller's context, so that calls which are under way together (an
``enqueue_many``) do not see each other's context variables, and spans do not nest by accident.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from streamq.errors import BatchError, UsageError
from streamq.model.call import TaskCall

EnqueueMiddleware = Callable[[TaskCall[Any]], AbstractContextManager[TaskCall[Any]]]
"""Made for each call; entering it gives the call to be enqueued."""


class Escort:
    """One call inside of its middleware. Raises what the middleware raises."""

    def __init__(self, middleware: Sequence[EnqueueMiddleware], call: TaskCall[Any]) -> None:
        self._context = contextvars.copy_context()
        self._entered: list[AbstractContextManager[Any]] = []
        try:
            self.call = self._context.run(self._enter, middleware, call)
        except BaseException as error:
            raised = self.leave(error)
            if raised is None or raised is error:
                raise
            raise raised from error

    def leave(self, error: BaseException | None) -> BaseException | None:
        """End it; returns the error it ends with. What swallows an error hides it from nobody."""
        while self._entered:
            manager = self._entered.pop()
            words = (None, None, None) if error is None else (type(error), error, error.__traceback__)
            try:
                self._context.run(manager.__exit__, *words)
            except Exception as other:  # noqa: BLE001  # it is the error now; the others are left all the same
                error = other
        return error

    def _enter(self, middleware: Sequence[EnqueueMiddleware], call: TaskCall[Any]) -> TaskCall[Any]:
        for make in middleware:
            manager = make(call)
            entered: object = manager.__enter__()
            self._entered.append(manager)
            if not isinstance(entered, TaskCall):
                kind = type(entered).__name__
                raise UsageError("enqueue_middleware", f"must yield the TaskCall, not {kind}")
            call = entered
        return call


@contextmanager
def escorted(middleware: Sequence[EnqueueMiddleware], call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
    """The call as the middleware has made it, for the length of its enqueue."""
    escort = Escort(middleware, call)
    try:
        yield escort.call
    except BaseException as error:
        raised = escort.leave(error)
        if raised is None or raised is error:
            raise
        raise raised from error
    raised = escort.leave(None)
    if raised is not None:
        raise raised


class Convoy:
    """The calls of one enqueue_many, each with an escort of its own."""

    def __init__(self, middleware: Sequence[EnqueueMiddleware], calls: Iterable[TaskCall[Any]]) -> None:
        self._middleware = middleware
        self._calls = calls
        self._escorts: list[Escort] = []
        self._places: list[int] = []
        self._results: list[Any] = []

    def calls(self) -> Iterator[TaskCall[Any]]:
        """Those that their middleware lets pass, as it has made them."""
        for call in self._calls:
            try:
                escort = Escort(self._middleware, call)
            except Exception as error:  # noqa: BLE001  # it is this call's alone
                self._results.append(error)
                continue
            self._places.append(len(self._results))
            self._results.append(None)
            self._escorts.append(escort)
            yield escort.call

    def finish(self, results: Sequence[Any]) -> list[Any]:
        """Leave them all; ``results`` are those of the calls that passed. Raises BatchError."""
        for place, escort, result in zip(self._places, self._escorts, results, strict=True):
            error = escort.leave(result if isinstance(result, Exception) else None)
            self._results[place] = result if error is None else error
        if any(isinstance(result, Exception) for result in self._results):
            raise BatchError(self._results)
        return self._results

    def abort(self, error: BaseException) -> None:
        """Leave them all with an error that is not any call's own."""
        for escort in self._escorts:
            escort.leave(error)
