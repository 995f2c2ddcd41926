"""Task definitions: a handler, its name and its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

from streamq.errors import OptionError, RegistrationError, UsageError
from streamq.model.call import TaskCall
from streamq.model.definition import Aggregate, Definition
from streamq.model.dependency import Provider, needs_of
from streamq.model.durations import duration_ms
from streamq.model.groups import Member
from streamq.model.hooks import NO_HOOKS, Hooks
from streamq.model.isolation import Isolation
from streamq.model.message import NO_TIMEOUT
from streamq.model.names import STAR, check_name, check_type
from streamq.model.options import UNSET, CallOptions, Options, Unset
from streamq.model.retry import DEFAULT_RETRY
from streamq.model.run_limits import RunLimit, key_reader
from streamq.worker.context import TaskContext
from streamq.worker.home import check_importable, main_free
from streamq.worker.middleware import Middleware

if TYPE_CHECKING:
    from streamq.app import StreamQ
    from streamq.client.handles import TaskHandle

P = ParamSpec("P")
R = TypeVar("R")

_NO_OVERRIDES: Mapping[Callable[..., Any], Provider] = MappingProxyType({})

IsFailure = Callable[[BaseException], bool]


class BoundTask(Generic[P, R]):
    """A task with options for the calls made through it: what ``task.options(...)`` returns."""

    def __init__(self, app: StreamQ, name: str, options: Options) -> None:
        self._app = app
        self._options = options
        self.name = name
        self._is_pattern = name.endswith(STAR)

    @property
    def app(self) -> StreamQ:
        """The app that it belongs to."""
        return self._app

    def call(self, *args: P.args, **kwargs: P.kwargs) -> TaskCall[R]:
        """A call to be enqueued later, alone or in an ``enqueue_many``."""
        if self._is_pattern:
            raise UsageError("name", f"{self.name!r} is a pattern; say which task: task.named('...')")
        return TaskCall(self.name, args, kwargs, self._options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Enqueue the task with these arguments, through the app's open client.

        Raises as Client.enqueue does, and UsageError when the app is not open or the name is a pattern.
        """
        return await self._app.client.enqueue(self.call(*args, **kwargs))

    def options(self, **options: Unpack[CallOptions]) -> BoundTask[P, R]:
        """The same task with further options; they win over those given before.

        Raises OptionError for a bad option.
        """
        return BoundTask(self._app, self.name, Options.of(options).over(self._options))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def in_group(self, group: str) -> BoundTask[P, R]:
        """The same task as a member of a group: ``index.in_group("user:42").enqueue(7)``.

        Raises OptionError for a bad name, and when it is enqueued where the task makes no batches.
        """
        return self.options(group=group)

    def named(self, name: str) -> BoundTask[P, R]:
        """The task under a name that its pattern takes: ``mail.named("email:welcome").enqueue(...)``.

        Raises OptionError for a name that does not fit.
        """
        if name != self.name:
            check_type("name", name)
        prefix = self.name.removesuffix(STAR)
        if not (name.startswith(prefix) if self._is_pattern else name == self.name):
            raise OptionError("name", f"{name!r} does not fit {self.name!r}")
        return BoundTask(self._app, name, self._options)


class Task(BoundTask[P, R]):
    """A registered task. Calling it runs the handler directly, without any queue."""

    def __init__(
        self,
        app: StreamQ,
        name: str,
        handler: Callable[P, Any],
        options: Options,
        is_failure: IsFailure | None = None,
        hooks: Hooks = NO_HOOKS,
        limits: tuple[RunLimit, ...] = (),
        isolation: Isolation | None = None,
        *,
        batch: bool = False,
        aggregate: Aggregate | None = None,
    ) -> None:
        super().__init__(app, name, options)
        self.isolation = isolation
        self.batch = batch
        self.aggregate = aggregate
        self.handler = handler
        self.is_failure = check_predicate(is_failure)
        self.hooks = hooks
        self.limits = limits
        self.needs = needs_of(handler, TaskContext)
        self.__doc__ = handler.__doc__
        self.__wrapped__ = handler

    @property
    def takes_groups(self) -> bool:
        """Calls of it may have a group."""
        return self.batch or self.aggregate is not None

    @property
    def parameters(self) -> tuple[str, ...] | None:
        """The names of the arguments that may be given by position, in order.

        None for a batch handler, whose own are not those that its tasks are enqueued with.
        """
        if self.batch:
            return None
        by_position = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        try:
            parameters = inspect.signature(self.handler).parameters.values()
        except (TypeError, ValueError):  # something built in, which tells nothing of itself
            return ()
        return tuple(item.name for item in parameters if item.kind in by_position)

    def definition(
        self,
        defaults: Options,
        *,
        is_failure: IsFailure | None = None,
        middleware: Sequence[Middleware] = (),
        overrides: Mapping[Callable[..., Any], Provider] = _NO_OVERRIDES,
    ) -> Definition:
        """What a worker needs to know, with the app's defaults where the task says nothing."""
        options = self._options.over(defaults)
        return Definition(
            name=self.name,
            handler=self.handler,
            is_async=is_async(self.handler),
            retry=DEFAULT_RETRY if isinstance(options.retry, Unset) else options.retry,
            timeout_ms=_milliseconds("timeout", options.timeout, otherwise=NO_TIMEOUT),
            retention_ms=_milliseconds("retention", options.retention, otherwise=0) or 0,
            is_failure=is_failure if self.is_failure is None else self.is_failure,
            hooks=self.hooks,
            middleware=tuple(middleware),
            limits=self.limits,
            needs=self.needs,
            overrides=overrides,
            isolation=self.isolation,
            batch=self.batch,
            aggregate=self.aggregate,
        )


class AsyncTask(Task[P, R]):
    """A task whose handler is a coroutine function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The handler's coroutine."""
        coroutine: Coroutine[Any, Any, R] = self.handler(*args, **kwargs)
        return coroutine


class SyncTask(Task[P, R]):
    """A task whose handler is a plain function; workers run it in a thread."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the handler returns."""
        result: R = self.handler(*args, **kwargs)
        return result


class _Registrar:
    """Turns functions into registered tasks, all with the same options."""

    def __init__(
        self,
        app: StreamQ,
        name: str | None,
        options: Options,
        is_failure: IsFailure | None,
        hooks: Hooks,
        limits: tuple[RunLimit, ...],
        isolation: Isolation | None,
        *,
        batch: bool = False,
        aggregate: Aggregate | None = None,
    ) -> None:
        if aggregate is not None and not callable(aggregate):
            raise RegistrationError("aggregate", "must be a function of the group and its members")
        if aggregate is not None and any(limit.key is not None for limit in limits):
            raise RegistrationError(
                "aggregate", "a limit by key has no one task whose arguments it could read"
            )
        self._app = app
        self._batch = batch
        self._aggregate = aggregate
        self._name = name
        self._options = options
        self._is_failure = is_failure
        self._hooks = hooks
        self._limits = limits
        self._isolation = isolation

    def _register(self, handler: Callable[..., Any]) -> Task[..., Any]:
        if not callable(handler):
            raise RegistrationError("handler", "must be a function")
        name = self._name
        if name is None:
            name = f"{main_free(handler.__module__)}.{handler.__qualname__}"
        check_name("name", name)
        if STAR in name[:-1]:
            raise RegistrationError("name", f"{name!r}: a star may stand at the end alone, as in 'email:*'")
        for limit in self._limits:
            if limit.key is not None:
                key_reader(limit.key, handler)
        if self._isolation is not None:
            check_importable(handler)
        kind = AsyncTask if is_async(handler) else SyncTask
        task: Task[..., Any] = kind(
            self._app,
            name,
            handler,
            self._options,
            self._is_failure,
            self._hooks,
            self._limits,
            self._isolation,
            batch=self._batch,
            aggregate=self._aggregate,
        )
        self._app.register(task)
        return task


class Decorator(_Registrar):
    """What ``app.task(...)`` returns: turns a function into a registered task."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine is also a result; the first match is meant
        self, handler: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, R]) -> SyncTask[P, R]: ...
    def __call__(self, handler: Callable[..., Any]) -> Task[..., Any]:
        """Register the handler. Raises RegistrationError, OptionError."""
        return self._register(handler)


class BatchDecorator(_Registrar):
    """What ``app.batch_task(...)`` returns: turns a function of a list of members into a registered task.

    Such a task is enqueued with the arguments of one member, whatever they are.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine is also a result; the first match is meant
        self, handler: Callable[Concatenate[list[Member], ...], Coroutine[Any, Any, R]]
    ) -> AsyncTask[..., R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[list[Member], ...], R]) -> SyncTask[..., R]: ...
    def __call__(self, handler: Callable[..., Any]) -> Task[..., Any]:
        """Register the handler. Raises RegistrationError, OptionError."""
        return self._register(handler)


def check_predicate(given: Any) -> IsFailure | None:
    """The same, if it can be one. Raises RegistrationError."""
    if given is not None and (not callable(given) or is_async(given)):
        raise RegistrationError("is_failure", "must be a plain function: it decides, it cannot wait")
    predicate: IsFailure | None = given
    return predicate


def is_async(handler: Callable[..., Any]) -> bool:
    """Also an object with an async ``__call__``."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _milliseconds(field: str, value: Any, *, otherwise: int) -> int | None:
    """None where nothing was said, ``otherwise`` where None was said."""
    if value is UNSET:
        return None
    return otherwise if value is None else duration_ms(field, value)
