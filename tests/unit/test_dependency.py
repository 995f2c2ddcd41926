"""What a handler wants, read from its annotations: found out, or refused, when it is registered."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Optional, Self, cast

import pytest

from streamq import INJECTED, Depends, StreamQ, TaskContext
from streamq.errors import RegistrationError, UsageError
from streamq.model.dependency import Kind, Needs, needs_of, provider_of

if TYPE_CHECKING:
    from decimal import Decimal

    DependsOnPrice = Decimal


class Db:
    """Something to be had."""


class Session:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None: ...


class AsyncSession:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...


def get_db() -> Db:
    return Db()


async def get_db_async() -> Db:
    return Db()


def db_generator() -> Iterator[Db]:
    yield Db()


async def db_async_generator() -> AsyncIterator[Db]:
    yield Db()


class Getter:
    def __call__(self, context: TaskContext) -> Db:
        return Db()


class AsyncGetter:
    async def __call__(self, context: TaskContext) -> Db:
        return Db()


DbDep = Annotated[Db, "other metadata", Depends(get_db)]


def read(function: Callable[..., Any]) -> Needs | None:
    return needs_of(function, TaskContext)


# What is found


def test_a_handler_without_dependencies_wants_nothing() -> None:
    """Nor does one whose annotations cannot be evaluated and do not matter here."""

    def handler(
        number: int, price: Decimal, kind: DependsOnPrice, *rest: Any, db: Db | None = None, **more: Any
    ) -> None: ...

    for plain in (handler, print, len, dict.get, functools.partial(handler, 1)):
        assert read(plain) is None, plain


def test_dependencies_and_the_context_are_found_by_annotation() -> None:
    def handler(
        number: int,
        alias: DbDep = INJECTED,
        *,
        db: Annotated[Db, Depends(get_db_async)],
        context: TaskContext = INJECTED,
    ) -> None: ...

    needs = read(handler)
    assert needs is not None
    assert needs.context == ("context",)
    assert [(name, provider.function) for name, provider in needs.provided] == [
        ("alias", get_db),
        ("db", get_db_async),
    ]
    assert needs.names == {"alias", "db", "context"}


@pytest.mark.parametrize(
    "function, kind",
    [
        (get_db, Kind.VALUE),
        (Db, Kind.VALUE),
        (Getter(), Kind.VALUE),
        (functools.partial(get_db), Kind.VALUE),
        (functools.lru_cache(get_db), Kind.VALUE),
        (get_db_async, Kind.COROUTINE),
        (AsyncGetter(), Kind.COROUTINE),
        (functools.partial(get_db_async), Kind.COROUTINE),
        (db_generator, Kind.MANAGER),
        (contextmanager(db_generator), Kind.MANAGER),
        (Session, Kind.MANAGER),
        (db_async_generator, Kind.ASYNC_MANAGER),
        (functools.partial(db_async_generator), Kind.ASYNC_MANAGER),
        (asynccontextmanager(db_async_generator), Kind.ASYNC_MANAGER),
        (AsyncSession, Kind.ASYNC_MANAGER),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else type(value).__name__,
)
def test_every_kind_of_provider_is_known(function: Callable[..., Any], kind: Kind) -> None:
    """Also inside of partials, objects and what contextlib makes."""
    assert provider_of(function, TaskContext).kind is kind


def test_what_a_function_returns_is_not_entered() -> None:
    """It may be shared: a pool that is also a context manager must not be closed after a run."""
    pool = Session()
    assert provider_of(lambda: pool, TaskContext).kind is Kind.VALUE


def test_dependencies_are_nested_and_local_names_work_where_the_function_uses_them() -> None:
    def local_db() -> Db:
        return Db()

    def get_user(context: TaskContext, db: Annotated[Db, Depends(local_db)], limit: int = 3) -> str:
        return str(local_db)

    async def handler(user: Annotated[str, Depends(get_user)] = INJECTED) -> str:
        return str(get_user)

    needs = read(handler)
    assert needs is not None
    [(_, user)] = needs.provided
    assert user.needs is not None
    assert (user.needs.context, [name for name, _ in user.needs.provided]) == (("context",), ["db"])


# What is refused


def no_function(db: Annotated[Db, Depends]) -> None: ...
def two(db: Annotated[Db, Depends(get_db), Depends(get_db_async)]) -> None: ...
def bare(db: Depends(get_db)) -> None: ...  # type: ignore[valid-type]
def as_default(db: Any = Depends(get_db)) -> None: ...  # noqa: B008
def inside(db: Optional[Annotated[Db, Depends(get_db)]] = None) -> None: ...  # noqa: UP045
def deep(dbs: list[Annotated[Db, Depends(get_db)]]) -> None: ...
def positional(db: Annotated[Db, Depends(get_db)], /) -> None: ...
def starred(*dbs: Annotated[Db, Depends(get_db)]) -> None: ...
def undefined(db: Annotated[Db, Depends(nobody)]) -> None: ...  # noqa: F821
def only_for_types(price: Decimal = INJECTED) -> None: ...
def injected(number: int = INJECTED) -> None: ...
def wants_a_url(url: str) -> Db:
    return Db()


def through_another(db: Annotated[Db, Depends(wants_a_url)]) -> None: ...


@pytest.mark.parametrize(
    "handler, problem",
    [
        (no_function, r"no_function\.db: names no function"),
        (two, r"two\.db: has more than one"),
        (bare, r"bare\.db: write it as Annotated"),
        (as_default, r"as_default\.db: write it as Annotated"),
        (inside, r"inside\.db: its Depends\(\.\.\.\) must stand outermost"),
        (deep, r"deep\.dbs: its Depends\(\.\.\.\) must stand outermost"),
        (positional, r"positional\.db: is provided, so it must be possible to give it by name"),
        (starred, r"starred\.dbs: is provided, so it must be possible"),
        (undefined, r"undefined\.db: its annotation cannot be evaluated \(name 'nobody' is not defined\)"),
        (only_for_types, r"only_for_types\.price: its annotation cannot be evaluated"),
        (injected, r"injected\.number: is INJECTED, but its annotation has no Depends"),
        (through_another, r"wants_a_url\.url: has no Depends\(\.\.\.\), no default"),
    ],
)
def test_a_bad_annotation_is_an_error_of_the_registration(handler: Callable[..., Any], problem: str) -> None:
    app = StreamQ()
    with pytest.raises(RegistrationError, match=problem):
        app.task(name="x")(handler)
    assert app.tasks == {}


def hen(egg: Annotated[Any, Depends(lambda: None)]) -> None: ...
def egg(hen: Annotated[Any, Depends(hen)]) -> None: ...
def itself(value: Annotated[Any, Depends(lambda: None)]) -> None: ...


def test_dependencies_that_want_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hen.__annotations__, "egg", Annotated[Any, Depends(egg)])
    monkeypatch.setitem(itself.__annotations__, "value", Annotated[Any, Depends(itself)])

    def handler(hen: Annotated[Any, Depends(egg)]) -> None: ...

    with pytest.raises(RegistrationError, match="want each other: egg -> hen -> egg"):
        read(handler)
    with pytest.raises(RegistrationError, match="want each other: itself -> itself"):
        provider_of(itself, TaskContext)


@pytest.mark.parametrize("provider", [None, 5, "get_db"], ids=repr)
def test_depends_takes_a_function(provider: Any) -> None:
    with pytest.raises(RegistrationError, match="Depends: takes a function"):
        Depends(provider)


# INJECTED


def test_the_default_says_what_is_missing_when_somebody_calls_the_handler_directly() -> None:
    app = StreamQ()

    @app.task(name="x")
    def handler(db: Annotated[dict[str, int], Depends(dict)] = INJECTED) -> int:
        return cast("int", db.get("a"))

    assert handler({"a": 5}) == 5
    with pytest.raises(UsageError, match="INJECTED: a worker provides this value"):
        handler()
    assert repr(INJECTED) == "INJECTED"
