"""The app: where tasks are registered, and the way to clients, workers and the inspector.

It holds settings and definitions and delegates everything else. Nothing is global: two apps in one
process know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, overload
from zoneinfo import ZoneInfo

from streamq.broker.address import Address, as_address
from streamq.client.client import Client, ClientConfig
from streamq.client.crons import Crons
from streamq.client.crontab import DEFAULT_POLL_S, Crontab
from streamq.client.escort import EnqueueMiddleware
from streamq.client.handles import TaskHandle
from streamq.client.semaphore import Semaphore
from streamq.client.sync_client import SyncClient
from streamq.errors import OptionError, RegistrationError, UsageError
from streamq.inspector import Inspector
from streamq.model.call import TaskCall, as_call
from streamq.model.definition import Aggregate, Definition
from streamq.model.dependency import Provider, provider_of
from streamq.model.durations import Duration, duration_ms
from streamq.model.groups import Member
from streamq.model.hooks import Hooks
from streamq.model.isolation import Isolation, as_isolation
from streamq.model.limits import DEFAULT_LIMITS, Limits
from streamq.model.names import check_key_name, longest_pattern
from streamq.model.options import TASK_OPTION_NAMES, CallOptions, Options, TaskOptions
from streamq.model.run_limits import RunLimit, check_limits
from streamq.model.schedule import DEFAULT_MISFIRE, DEFAULT_OWNER, Cron, CronSource, FireHook, Gone, Misfire
from streamq.model.semaphores import DEFAULT_LEASE_S, SemaphoreOptions
from streamq.task import (
    AsyncTask,
    BatchDecorator,
    Decorator,
    IsFailure,
    SyncTask,
    Task,
    check_predicate,
    is_async,
)
from streamq.worker.config import (
    Lifespan,
    OnArchive,
    OnError,
    OnHealth,
    OnSuccess,
    WorkerConfig,
    WorkerSettings,
)
from streamq.worker.context import TaskContext
from streamq.worker.home import Home, home_of, refuse_in_import
from streamq.worker.middleware import Middleware
from streamq.worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Middleware)
E = TypeVar("E", bound=EnqueueMiddleware)
F = TypeVar("F", bound=FireHook)
S = TypeVar("S", bound=CronSource)


class StreamQ:
    """One application: a namespace on one Redis, its tasks and their defaults.

    ``url`` may also be an Address, for what a URL should not carry. ``defaults`` are options for
    tasks that say nothing themselves. ``enqueue_timeout`` bounds how long an enqueue waits for Redis.
    ``lifespan`` is entered by each worker; what it yields is ``current_task().state``. Workers call
    ``on_error`` after each attempt that raised, ``on_success`` after each that returned, and
    ``on_archive`` when a task was archived, and ``on_health`` after each heartbeat.
    ``is_failure`` holds for tasks that have none of their own. ``cron_owner`` keeps apps that serve one
    queue from removing each other's schedules; ``cron_gone`` says what becomes of those that the code no
    longer has.

    ``async with app`` opens its client; inside, tasks can be enqueued. ``app.sync()`` does the same
    for blocking code.

    Raises AddressError, OptionError and RegistrationError for settings that make no sense.
    """

    def __init__(
        self,
        url: str | Address = "redis://localhost:6379/0",
        *,
        namespace: str | None = None,
        defaults: TaskOptions | None = None,
        limits: Limits = DEFAULT_LIMITS,
        enqueue_timeout: Duration = 10.0,
        lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
        on_success: OnSuccess | None = None,
        on_archive: OnArchive | None = None,
        is_failure: IsFailure | None = None,
        on_health: OnHealth | None = None,
        cron_owner: str = DEFAULT_OWNER,
        cron_gone: Gone = "remove",
    ) -> None:
        if namespace is not None:
            check_key_name("namespace", namespace)
        if not isinstance(limits, Limits):
            raise OptionError("limits", f"must be a Limits, not {type(limits).__name__}")
        for name, given in (("lifespan", lifespan), ("on_health", on_health)):
            if given is not None and not callable(given):
                raise RegistrationError(name, f"must be a function, not {type(given).__name__}")
        self.address = as_address(url)
        self.defaults = Options.of(defaults or {}, TASK_OPTION_NAMES)
        self.lifespan = lifespan
        self.hooks = Hooks(on_error, on_success, on_archive)
        self.on_health = on_health
        self.is_failure = check_predicate(is_failure)
        self._middleware: list[Middleware] = []
        self._enqueue_middleware: list[EnqueueMiddleware] = []
        self._overrides: dict[Callable[..., Any], Provider] = {}
        self.tasks: dict[str, Task[..., Any]] = {}
        self.crontab = Crontab(cron_owner, cron_gone)
        self.config = ClientConfig(
            namespace=namespace,
            defaults=self.defaults,
            limits=limits,
            enqueue_timeout_s=duration_ms("enqueue_timeout", enqueue_timeout) / 1000,
            parameters=self._parameters,
            takes_groups=self._takes_groups,
            middleware=self._enqueue_middleware,
        )
        self._client: Client | None = None
        self._users = 0

    def __repr__(self) -> str:
        return f"<StreamQ {self.address} namespace={self.config.namespace!r}>"

    # Tasks

    @overload
    def task(  # type: ignore[overload-overlap]  # a coroutine is also a result; the first match is meant
        self, handler: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, handler: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        is_failure: IsFailure | None = None,
        on_error: OnError | None = None,
        on_success: OnSuccess | None = None,
        on_archive: OnArchive | None = None,
        limits: Iterable[RunLimit] = (),
        isolate: bool | Isolation = False,
        aggregate: Aggregate | None = None,
        **options: Unpack[TaskOptions],
    ) -> Decorator: ...
    def task(  # type: ignore[misc]  # mypy does not match a TypedDict's keywords with themselves here
        self,
        handler: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        is_failure: IsFailure | None = None,
        on_error: OnError | None = None,
        on_success: OnSuccess | None = None,
        on_archive: OnArchive | None = None,
        limits: Iterable[RunLimit] = (),
        isolate: bool | Isolation = False,
        aggregate: Aggregate | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Register the decorated function as a task: ``@app.task``, or ``@app.task(...)`` with options.

        ``name`` is the function's module and name unless given; ``email:*`` stands for all types that
        begin with ``email:`` and have no task or longer pattern of their own. ``is_failure`` tells errors
        that count as failures from those after which the task is simply tried again. The hooks are called
        before those of the app. ``limits`` say how many may run at once, or start in a time; a task that
        they do not let start is put back. ``isolate`` runs the handler in a child process, with limits
        if given. ``aggregate`` makes one call of the members of a group, so that the task may be
        enqueued with ``group``.

        Raises OptionError for bad options, RegistrationError for a name that is taken.
        """
        hooks = Hooks(on_error, on_success, on_archive)
        checked = Options.of(options, TASK_OPTION_NAMES)
        decorator = Decorator(
            self,
            name,
            checked,
            is_failure,
            hooks,
            check_limits(limits),
            as_isolation(isolate),
            aggregate=aggregate,
        )
        return decorator if handler is None else decorator(handler)

    @overload
    def batch_task(  # type: ignore[overload-overlap]  # a coroutine is also a result; the first match is meant
        self, handler: Callable[Concatenate[list[Member], ...], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[..., R]: ...
    @overload
    def batch_task(self, handler: Callable[Concatenate[list[Member], ...], R], /) -> SyncTask[..., R]: ...
    @overload
    def batch_task(
        self,
        *,
        name: str | None = None,
        is_failure: IsFailure | None = None,
        on_error: OnError | None = None,
        on_success: OnSuccess | None = None,
        on_archive: OnArchive | None = None,
        limits: Iterable[RunLimit] = (),
        **options: Unpack[TaskOptions],
    ) -> BatchDecorator: ...
    def batch_task(  # type: ignore[misc]  # as in ``task``
        self,
        handler: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        is_failure: IsFailure | None = None,
        on_error: OnError | None = None,
        on_success: OnSuccess | None = None,
        on_archive: OnArchive | None = None,
        limits: Iterable[RunLimit] = (),
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Register a function that runs many tasks at once: it takes a list of ``Member``.

        Its tasks are enqueued one by one, with the arguments of each and a ``group``; one without a
        group is a batch of its own. The rest is as for ``task``.

        Raises OptionError for bad options, RegistrationError for a name that is taken.
        """
        hooks = Hooks(on_error, on_success, on_archive)
        checked = Options.of(options, TASK_OPTION_NAMES)
        decorator = BatchDecorator(
            self, name, checked, is_failure, hooks, check_limits(limits), None, batch=True
        )
        return decorator if handler is None else decorator(handler)

    def register(self, task: Task[..., Any]) -> None:
        """Add a task; ``task`` does this. Raises RegistrationError."""
        if task.name in self.tasks:
            raise RegistrationError(task.name, "a handler is registered under this name already")
        self.tasks[task.name] = task

    def definitions(self) -> dict[str, Definition]:
        """What a worker needs to know of each task."""
        return {
            name: task.definition(
                self.defaults,
                is_failure=self.is_failure,
                middleware=self._middleware,
                overrides=self._overrides,
            )
            for name, task in self.tasks.items()
        }

    def middleware(self, function: M) -> M:
        """Put a coroutine function around every run of a task; those given earlier stand further out.

        It is called as ``function(context, call_next)`` and awaits ``call_next()`` for the result. What
        it returns and raises counts as the handler's. Add it before the worker is made.

        Raises RegistrationError for what is no coroutine function.
        """
        if not is_async(function):
            raise RegistrationError("middleware", "must be an async function of (context, call_next)")
        self._middleware.append(function)
        return function

    def enqueue_middleware(self, make: E) -> E:
        """Let every call that is enqueued pass through a context manager; those given earlier stand outside.

        It is made as ``make(call)``; what it yields is enqueued. It is left when the task is stored, or
        with the error. The same one serves the async and the blocking client, and ``enqueue_many``.

        Raises RegistrationError for what is no plain function.
        """
        given: Any = make
        if not callable(given) or is_async(given):
            raise RegistrationError(
                "enqueue_middleware", "must be a plain function of the call that returns a context manager"
            )
        self._enqueue_middleware.append(make)
        return make

    @contextmanager
    def override(self, provider: Callable[..., Any], stand_in: Callable[..., Any]) -> Iterator[None]:
        """Let ``stand_in`` provide what ``provider`` provides, for tests, in this process.

        It holds for runs that start inside the with block. Raises RegistrationError for a stand-in
        that cannot provide, or that itself wants what it stands in for.
        """
        for name, given in (("provider", provider), ("stand_in", stand_in)):
            if not callable(given):
                raise RegistrationError(name, f"must be a function, not {type(given).__name__}")
        before = self._overrides.get(provider)
        self._overrides[provider] = provider_of(stand_in, TaskContext, (provider,))
        try:
            yield
        finally:
            if before is None:
                del self._overrides[provider]
            else:
                self._overrides[provider] = before

    def _takes_groups(self, name: str) -> bool:
        """Whether calls of this type may have a group; where its task is not known here, they may."""
        task = self._task_of(name)
        return task is None or task.takes_groups

    def _parameters(self, name: str) -> tuple[str, ...] | None:
        task = self._task_of(name)
        return None if task is None else task.parameters

    def _task_of(self, name: str) -> Task[..., Any] | None:
        return self.tasks.get(name) or self.tasks.get(longest_pattern(name, self.tasks) or "")

    def home(self) -> Home | None:
        """Where child processes find this app; None when no task wants one.

        Raises RegistrationError when they could not find it.
        """
        isolated = [task for task in self.tasks.values() if task.isolation is not None]
        return home_of(self, isolated) if isolated else None

    # Schedules

    def cron(
        self,
        id: str,  # noqa: A002  # the field's name everywhere else
        spec: str | timedelta,
        call: TaskCall[Any],
        *,
        tz: str | ZoneInfo = "UTC",
        jitter: Duration = 0,
        start: datetime | None = None,
        end: datetime | None = None,
        misfire: Misfire = DEFAULT_MISFIRE,
    ) -> None:
        """Enqueue ``call`` at each tick of a schedule; Cron says what its fields mean.

        Workers of this app store it when they start. An equal entry once more changes nothing.

        Raises OptionError, PayloadError, and RegistrationError where another entry has this id.
        """
        cron = Cron(id, spec, call, tz=tz, jitter=jitter, start=start, end=end, misfire=misfire)
        self.crontab.add(cron, self.config.encoder())

    @overload
    def cron_provider(self, source: S, /) -> S: ...
    @overload
    def cron_provider(self, *, every: Duration = DEFAULT_POLL_S) -> Callable[[S], S]: ...
    def cron_provider(  # type: ignore[misc]  # mypy wants a type of the decorator that is returned
        self, source: CronSource | None = None, /, *, every: Duration = DEFAULT_POLL_S
    ) -> Any:
        """Let a function say which schedules there should be; workers ask it again and again.

        It returns Cron entries, or is a coroutine function that does. When it raises, its entries stay
        as they are.

        Bare, or with ``every``: seconds or a timedelta between two looks.

        Raises OptionError, and RegistrationError for what is no function.
        """

        def provide(source: S) -> S:
            self.crontab.provide(source, self.config.encoder(), every)
            return source

        return provide if source is None else provide(source)

    def before_fire(self, hook: F) -> F:
        """Call this with a CronEvent before a tick is enqueued. What it raises is logged and changes nothing.

        Workers that come too late call theirs as well. Raises RegistrationError.
        """
        self.crontab.before(hook)
        return hook

    def after_fire(self, hook: F) -> F:
        """Call this with what came of a tick: a task, a refusal, or the error that kept Redis away.

        What it raises is logged and changes nothing. Raises RegistrationError.
        """
        self.crontab.after(hook)
        return hook

    @property
    def crons(self) -> Crons:
        """The schedules in Redis: add, change, pause, remove, list. Used while the app is open."""
        return self.client.crons

    # Producing

    @property
    def client(self) -> Client:
        """The open client. Raises UsageError outside of ``async with app``."""
        if self._client is None:
            raise UsageError(
                "app", "is not open; enqueue inside 'async with app:' (or 'with app.sync() as q:')"
            )
        return self._client

    def new_client(self) -> Client:
        """A client of its own, closed by its user."""
        return Client(self.address, self.config)

    async def __aenter__(self) -> Self:
        if self._client is None:
            self._client = self.new_client()
        self._users += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._users -= 1
        if self._users == 0 and self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    @overload
    async def enqueue(self, task: TaskCall[R], /, **options: Unpack[CallOptions]) -> TaskHandle[R]: ...
    @overload
    async def enqueue(
        self, task: str, arguments: Mapping[str, Any] | None = None, /, **options: Unpack[CallOptions]
    ) -> TaskHandle[Any]: ...
    async def enqueue(
        self, task: TaskCall[Any] | str, arguments: Mapping[str, Any] | None = None, /, **options: Any
    ) -> TaskHandle[Any]:
        """Enqueue a call, or a task by name for producers that do not share the worker's code.

        ``arguments`` are the handler's keyword arguments. Raises as Client.enqueue does.
        """
        return await self.client.enqueue(as_call(task, arguments, options))

    def call(
        self, task: str, arguments: Mapping[str, Any] | None = None, /, **options: Unpack[CallOptions]
    ) -> TaskCall[Any]:
        """A call of a task by its name, for ``enqueue_many``. Raises OptionError, PayloadError."""
        return as_call(task, arguments, options)

    async def enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        """Enqueue many calls in few round trips. Raises BatchError when some were not enqueued."""
        return await self.client.enqueue_many(calls)

    @contextmanager
    def sync(self) -> Iterator[SyncClient]:
        """A blocking client for the length of a with block."""
        with SyncClient(self.address, self.config) as client:
            yield client

    def semaphore(
        self,
        name: str,
        *,
        limit: int,
        lease: Duration = DEFAULT_LEASE_S,
        timeout: Duration | None = None,
    ) -> Semaphore:
        """A semaphore of that name; see Client.semaphore. Used while the app is open, made at any time."""
        return Semaphore(lambda: self.client, SemaphoreOptions.of(name, limit, lease, timeout))

    # Working and looking

    def worker(self, **settings: Unpack[WorkerSettings]) -> Worker:
        """A worker for this app's tasks.

        Raises OptionError for settings that make no sense, RegistrationError for isolated tasks that a
        child process could not find.
        """
        refuse_in_import()
        config = WorkerConfig.of(
            settings,
            namespace=self.config.namespace,
            limits=self.config.limits,
            lifespan=self.lifespan,
            home=self.home(),
            timetable=self.crontab.timetable(),
            on_health=self.on_health,
            on_error=self.hooks.on_error,
            on_success=self.hooks.on_success,
            on_archive=self.hooks.on_archive,
        )
        return Worker(self.address, self.definitions(), config)

    def inspector(self) -> Inspector:
        """Looks at and steers queues, tasks and workers. Close it after use, or use ``async with``."""
        return Inspector(self.address, namespace=self.config.namespace)
