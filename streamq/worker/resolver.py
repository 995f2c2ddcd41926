"""Provides what a handler wants for one run, and cleans up after it, whatever its end.

Providers are asked in the order of the parameters, each once a run, and left in the opposite order,
in the task that entered them. Plain functions and context managers run in threads, as sync handlers do.
Each cleanup is told the error of the run; none can hide it from the others, nor make a success of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from streamq.model.dependency import Kind, Needs, Provider
from streamq.worker.context import current_task
from streamq.worker.held import Run

Submit = Callable[[Callable[[], Any]], "asyncio.Future[Any]"]
Overrides = Mapping[Callable[..., Any], Provider]

CLEANUP_S = 30.0
"""How long one async cleanup may take."""

_Exit = Callable[[BaseException | None], Awaitable[object]]


async def provide(
    run: Run,
    submit: Submit,
    needs: Needs,
    overrides: Overrides,
    call: Callable[..., Awaitable[Any]],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``call`` with what it needs. An error of a provider or a cleanup counts as the handler's."""
    if not needs.names.isdisjoint(kwargs):
        name = min(needs.names.intersection(kwargs))
        raise TypeError(f"the argument {name!r} is provided by the worker; a producer cannot give it")
    resolver = Resolver(submit, overrides)
    failure: BaseException | None = None
    result: Any = None
    try:
        result = await call(*args, **kwargs, **await resolver.values(needs))
    except BaseException as error:  # noqa: BLE001  # raised again below, when everything has been left
        failure = error
    run.leaving = True
    try:
        failure = await resolver.leave(failure)
        run.leaving = False
        if failure is not None:
            raise failure
        return result
    finally:
        del failure


class Resolver:
    """The values of one run, and how each is left."""

    def __init__(self, submit: Submit, overrides: Overrides) -> None:
        self._submit = submit
        self._overrides = overrides
        self._made: dict[Callable[..., Any], Any] = {}
        self._exits: list[_Exit] = []

    async def values(self, needs: Needs) -> dict[str, Any]:
        """The values by parameter. What was entered when it raises is left by ``leave``."""
        found: dict[str, Any] = dict.fromkeys(needs.context, current_task()) if needs.context else {}
        for name, provider in needs.provided:
            found[name] = await self._value(provider)
        return found

    async def leave(self, error: BaseException | None) -> BaseException | None:
        """Clean up, the last first; returns the error that the run ended with."""
        while self._exits:
            try:
                async with asyncio.timeout(CLEANUP_S):
                    await self._exits.pop()(error)
            except BaseException as other:  # noqa: BLE001  # the others must be left all the same
                error = other
        return error

    async def _value(self, provider: Provider) -> Any:
        function = provider.function
        if function not in self._made:
            meant = self._overrides.get(function, provider) if self._overrides else provider
            values = {} if meant.needs is None else await self.values(meant.needs)
            self._made[function] = await self._make(meant, values)
        return self._made[function]

    async def _make(self, provider: Provider, values: dict[str, Any]) -> Any:
        match provider.kind:
            case Kind.COROUTINE:
                return await provider.make(**values)
            case Kind.ASYNC_MANAGER:
                return await self._enter_async(provider.make(**values))
            case Kind.MANAGER:
                return await self._enter(provider, values)
        value = await self._in_thread(lambda: provider.make(**values))
        return await value if inspect.iscoroutine(value) else value

    async def _enter_async(self, manager: Any) -> Any:
        value = await manager.__aenter__()
        self._exits.append(lambda error: manager.__aexit__(*_words(error)))
        return value

    async def _enter(self, provider: Provider, values: dict[str, Any]) -> Any:
        manager: Any = None

        def enter() -> Any:
            nonlocal manager
            made = provider.make(**values)
            value = made.__enter__()
            manager = made
            return value

        def leave(error: BaseException | None) -> Awaitable[object]:
            return self._in_thread(lambda: manager.__exit__(*_words(error)))

        try:
            return await self._in_thread(enter)
        finally:
            # Also when the run was cancelled while the thread went on to enter it.
            if manager is not None:
                self._exits.append(leave)

    async def _in_thread(self, job: Callable[[], Any]) -> Any:
        """Run it in a thread, and end no sooner than it does."""
        context = contextvars.copy_context()
        thread = self._submit(lambda: context.run(job))
        cancelled: BaseException | None = None
        while not thread.done():
            try:
                await asyncio.wait([thread])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            cancelled.__cause__ = thread.exception()
            raise cancelled
        return thread.result()


def _words(error: BaseException | None) -> tuple[Any, Any, Any]:
    """What ``__exit__`` takes."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
