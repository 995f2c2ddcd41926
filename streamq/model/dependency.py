"""What a handler wants beside its arguments, read from its annotations when it is registered.

A parameter ``db: Annotated[Db, Depends(get_db)]`` is given what ``get_db`` provides; one annotated as
the task's context is given that. Functions that provide may want things themselves. Everything that
can be wrong is found here, once, and is an error of the registration.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

from streamq.errors import RegistrationError, UsageError


class Depends:
    """In an annotation: the parameter is given what ``provider`` provides, fresh for each run.

    ``provider`` is a function, a coroutine function, a class, or yields the value once as a generator
    or context manager and cleans up after the run. Within one run it is asked once.
    """

    __slots__ = ("provider",)

    def __init__(self, provider: Callable[..., Any]) -> None:
        given: Any = provider
        if not callable(given) or not isinstance(given, Hashable):
            raise RegistrationError("Depends", f"takes a function, not {type(provider).__name__}")
        self.provider = provider

    def __repr__(self) -> str:
        return f"Depends({_name(self.provider)})"


class Injected:
    """The type of INJECTED: a default for parameters that a worker provides.

    With it a type checker lets callers leave the parameter out. Who calls the handler directly gives
    the value by hand; using the default raises UsageError.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError("INJECTED", "a worker provides this value; give it by hand when you call directly")

    def __repr__(self) -> str:
        return "INJECTED"


INJECTED: Any = Injected()


class Kind(Enum):
    """How a value is had from what a provider's ``make`` returns."""

    VALUE = "plain function"
    COROUTINE = "coroutine function"
    MANAGER = "context manager"
    ASYNC_MANAGER = "async context manager"


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider, ready to be asked."""

    function: Callable[..., Any]
    """As the user named it: its identity within a run, and for overrides."""
    make: Callable[..., Any]
    kind: Kind
    needs: Needs | None


@dataclass(frozen=True, slots=True)
class Needs:
    """The parameters of one function that are provided."""

    context: tuple[str, ...]
    """Those that get the task's context."""
    provided: tuple[tuple[str, Provider], ...]
    names: frozenset[str]


def needs_of(function: Callable[..., Any], context_type: type) -> Needs | None:
    """What this handler wants; None for nothing. Raises RegistrationError."""
    return _read(function, context_type, ())


def provider_of(
    function: Callable[..., Any], context_type: type, above: tuple[Callable[..., Any], ...] = ()
) -> Provider:
    """The function as a provider. Raises RegistrationError, also for functions that want each other.

    ``above`` are those on whose behalf it is asked.
    """
    if function in above:
        ring = " -> ".join(map(_name, (*above, function)))
        raise RegistrationError(_name(function), f"these dependencies want each other: {ring}")
    make, kind = _how(function)
    return Provider(function, make, kind, _read(function, context_type, (*above, function)))


def _read(
    function: Callable[..., Any], context_type: type, above: tuple[Callable[..., Any], ...]
) -> Needs | None:
    context: list[str] = []
    provided: list[tuple[str, Provider]] = []
    for parameter in _parameters(function):
        annotation = _annotation(function, parameter, context_type)
        depends = _depends(function, parameter, annotation)
        if depends is not None:
            provided.append((parameter.name, provider_of(depends.provider, context_type, above)))
        elif annotation is context_type:
            context.append(parameter.name)
        else:
            _check_given(function, parameter, is_provider=bool(above))
            continue
        if parameter.kind not in _BY_NAME:
            raise _wrong(function, parameter, "is provided, so it must be possible to give it by name")
    if not context and not provided:
        return None
    return Needs(tuple(context), tuple(provided), frozenset([*context, *(name for name, _ in provided)]))


_BY_NAME = frozenset({inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})
_REST = frozenset({inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})


def _check_given(function: Callable[..., Any], parameter: inspect.Parameter, *, is_provider: bool) -> None:
    """A parameter that nothing provides: a handler's comes from the producer, a provider's from nowhere."""
    if isinstance(parameter.default, Injected):
        raise _wrong(function, parameter, "is INJECTED, but its annotation has no Depends(...)")
    if is_provider and parameter.default is parameter.empty and parameter.kind not in _REST:
        raise _wrong(function, parameter, "has no Depends(...), no default, and is not the TaskContext")


# How it provides


def _how(function: Callable[..., Any]) -> tuple[Callable[..., Any], Kind]:
    if inspect.isclass(function):
        # Made for this run alone, so it may be entered and left. What a function returns may be shared.
        if hasattr(function, "__aenter__"):
            return function, Kind.ASYNC_MANAGER
        return function, Kind.MANAGER if hasattr(function, "__enter__") else Kind.VALUE
    code = _code(function)
    if inspect.isasyncgenfunction(code):
        return asynccontextmanager(function), Kind.ASYNC_MANAGER
    if inspect.isgeneratorfunction(code):
        return contextmanager(function), Kind.MANAGER
    if inspect.iscoroutinefunction(code):
        return function, Kind.COROUTINE
    # What contextlib's decorators made of a generator.
    inside = inspect.unwrap(code)
    if inspect.isasyncgenfunction(inside):
        return function, Kind.ASYNC_MANAGER
    if inspect.isgeneratorfunction(inside):
        return function, Kind.MANAGER
    return function, Kind.VALUE


def _code(function: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when it is called: inside a partial, or an object's ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    if inspect.isroutine(function):
        return function
    return type(function).__call__


# Annotations


def _parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    try:
        if sys.version_info >= (3, 14):
            import annotationlib

            forward = annotationlib.Format.FORWARDREF
            signature = inspect.signature(function, annotation_format=forward)
        else:
            signature = inspect.signature(function)
    except (ValueError, TypeError):
        return iter(())  # a builtin that does not tell
    return iter(signature.parameters.values())


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter, context_type: type) -> Any:
    """The annotation, evaluated where it is text; ``empty`` where that is impossible and does not matter."""
    annotation = parameter.annotation
    globals_, locals_ = _namespaces(function)
    holder: Any = SimpleNamespace(__annotations__={parameter.name: annotation})
    try:
        found = typing.get_type_hints(holder, globals_, locals_, include_extras=True)[parameter.name]
    except Exception as error:
        text = getattr(annotation, "__forward_arg__", None) or str(annotation)
        meant = re.search(r"\bDepends\b", text) or text.rpartition(".")[2] == context_type.__name__
        if meant or isinstance(parameter.default, Injected):
            raise _wrong(
                function,
                parameter,
                f"its annotation cannot be evaluated ({error}); names in it must be global in the module",
            ) from error
        return parameter.empty
    # ``type X = Annotated[...]`` of Python 3.12.
    while type(found).__name__ == "TypeAliasType":
        found = found.__value__
    return found


def _namespaces(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The globals of the function, and those outer variables that it uses."""
    target: Any = inspect.unwrap(function)
    target = vars(target).get("__init__") if inspect.isclass(target) else _code(target)
    target = getattr(target, "__func__", target)
    cells = getattr(target, "__closure__", None) or ()
    names = target.__code__.co_freevars if cells else ()
    outer = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            outer[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    return getattr(target, "__globals__", {}), outer


def _depends(function: Callable[..., Any], parameter: inspect.Parameter, annotation: Any) -> Depends | None:
    if typing.get_origin(annotation) is Annotated:
        if Depends in annotation.__metadata__:
            raise _wrong(function, parameter, "names no function: write Depends(get_it)")
        found = [item for item in annotation.__metadata__ if isinstance(item, Depends)]
        if len(found) > 1:
            raise _wrong(function, parameter, "has more than one Depends(...)")
        if found:
            return found[0]
    if isinstance(annotation, Depends) or isinstance(parameter.default, Depends):
        raise _wrong(function, parameter, "write it as Annotated[Type, Depends(get_it)]")
    if any(_mentions_depends(part) for part in typing.get_args(annotation)):
        raise _wrong(
            function, parameter, "its Depends(...) must stand outermost: Annotated[..., Depends(...)]"
        )
    return None


def _mentions_depends(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Annotated:
        return any(isinstance(item, Depends) for item in annotation.__metadata__)
    return any(_mentions_depends(part) for part in typing.get_args(annotation))


def _wrong(function: Callable[..., Any], parameter: inspect.Parameter, problem: str) -> RegistrationError:
    return RegistrationError(f"{_name(function)}.{parameter.name}", problem)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
