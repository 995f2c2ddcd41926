"""A call of a task that has not been enqueued yet: what to run, with which arguments and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar, Unpack

from streamq.errors import OptionError, PayloadError
from streamq.model.names import check_type
from streamq.model.options import CallOptions, Options

R_co = TypeVar("R_co", covariant=True)

_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
_NO_OPTIONS = Options()


class TaskCall(Generic[R_co]):
    """What ``enqueue`` and ``enqueue_many`` take. ``R_co`` is the type of the task's result.

    Not to be changed once made. A plain class, because a frozen dataclass takes three times as long
    to make, and one is made for every task.
    """

    __slots__ = ("args", "kwargs", "options", "type")

    def __init__(
        self,
        type: str,  # noqa: A002  # the field's name everywhere else
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = _NO_ARGUMENTS,
        options: Options = _NO_OPTIONS,
    ) -> None:
        self.type = type
        self.args = args
        self.kwargs = kwargs
        self.options = options

    @property
    def headers(self) -> Mapping[str, str]:
        """Those given with this call and its task; not the app's defaults."""
        headers = self.options.headers
        return headers if isinstance(headers, Mapping) else _NO_ARGUMENTS

    def with_options(self, **options: Unpack[CallOptions]) -> TaskCall[R_co]:
        """The same call with further options; headers are added to those it has. Raises OptionError."""
        return TaskCall(self.type, self.args, self.kwargs, Options.of(options).over(self.options))

    def __repr__(self) -> str:
        # Without the arguments: a repr ends up in logs.
        return f"<TaskCall {self.type!r}>"


def check_calls(calls: object) -> Iterable[Any]:
    """What ``enqueue_many`` may go through. Raises OptionError, before it has taken anything."""
    if isinstance(calls, str) or not isinstance(calls, Iterable):
        raise OptionError("calls", f"must be many calls, as in a list, not {type(calls).__name__}")
    return calls


def as_call(
    task: TaskCall[Any] | str, arguments: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> TaskCall[Any]:
    """The call that ``enqueue`` means: a call as it is, or a task by its name.

    Raises OptionError for a bad name or option, PayloadError for arguments that are no map.
    """
    if isinstance(task, TaskCall):
        if arguments is not None:
            raise PayloadError("arguments", "the call has its arguments already")
        if not options:
            return task
        return task.with_options(**options)
    if not isinstance(task, str):
        raise OptionError(
            "task", f"must be a task's name or a call such as task.call(...), not {type(task).__name__}"
        )
    if arguments is not None and not isinstance(arguments, Mapping):
        raise PayloadError("arguments", f"must be a map of keyword arguments, not {type(arguments).__name__}")
    for name in arguments or ():
        if not isinstance(name, str):
            raise PayloadError("arguments", "names of arguments must be text")
    return TaskCall(check_type("task", task), (), dict(arguments or {}), Options.of(options))
