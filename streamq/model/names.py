"""The names that users give: queues, task types, task ids, namespaces. Each is checked here, once."""

from __future__ import annotations

from collections.abc import Iterable

from streamq.errors import OptionError
from streamq.model.limits import MAX_NAME_BYTES

STAR = "*"
"""At the end of a task's name: it is a pattern, for all types that begin with what stands before."""

_KEY_SYNTAX = frozenset("{}")


def check_name(field: str, name: object) -> str:
    """A name that can be stored: text, not blank, printable, without spaces at its ends, not overlong.

    Raises OptionError naming ``field``.
    """
    if not isinstance(name, str):
        raise OptionError(field, f"must be text, not {type(name).__name__}")
    if not name.strip():
        raise OptionError(field, "must not be blank")
    if not name.isprintable() or name != name.strip():
        raise OptionError(field, "must be printable, without spaces around it")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise OptionError(field, f"must be at most {MAX_NAME_BYTES} bytes of UTF-8")
    return name


def check_type(field: str, name: object) -> str:
    """The name of a task that is to be enqueued: a name, and no pattern. Raises OptionError."""
    checked = check_name(field, name)
    if checked.endswith(STAR):
        raise OptionError(field, f"{checked!r} is a pattern; say which task: a name that it takes")
    return checked


def longest_pattern(name: str, patterns: Iterable[str]) -> str | None:
    """Of the patterns that take this name the longest; None when there is none."""
    fitting = [one for one in patterns if one.endswith(STAR) and name.startswith(one.removesuffix(STAR))]
    return max(fitting, key=len, default=None)


def check_key_name(field: str, name: object) -> str:
    """A name that becomes part of Redis keys: also free of braces, which mark the hash tag."""
    checked = check_name(field, name)
    if _KEY_SYNTAX.intersection(checked):
        raise OptionError(field, "must not contain { or }, which Redis Cluster reads as a hash tag")
    return checked


def check_task_id(task_id: object) -> str:
    """A task id of the caller's choice: a name without any space."""
    checked = check_name("task_id", task_id)
    if " " in checked:
        raise OptionError("task_id", "must not contain spaces")
    return checked
