"""A call of a task that has not been enqueued yet: what to run, with which arguments and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from streamq.errors import PayloadError
from streamq.model.names import check_name
from streamq.model.options import Options

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class TaskCall(Generic[R_co]):
    """What ``enqueue`` and ``enqueue_many`` take. ``R_co`` is the type of the task's result."""

    type: str
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    options: Options = field(default_factory=Options)


def as_call(
    task: TaskCall[Any] | str, arguments: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> TaskCall[Any]:
    """The call that ``enqueue`` means: a call as it is, or a task by its name.

    Raises OptionError for a bad name or option, PayloadError for arguments that are no map.
    """
    if isinstance(task, TaskCall):
        if arguments is not None:
            raise PayloadError("arguments", "the call has its arguments already")
        return replace(task, options=Options.of(options).over(task.options)) if options else task
    if arguments is not None and not isinstance(arguments, Mapping):
        raise PayloadError("arguments", f"must be a map of keyword arguments, not {type(arguments).__name__}")
    for name in arguments or ():
        if not isinstance(name, str):
            raise PayloadError("arguments", "names of arguments must be text")
    return TaskCall(check_name("task", task), (), dict(arguments or {}), Options.of(options))
