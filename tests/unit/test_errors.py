"""The tree of errors: as documented, one root, each safe to send between processes."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from streamq import errors
from streamq.errors import (
    BatchError,
    CronError,
    EnqueueRateExceeded,
    QueueError,
    RetryAfter,
    SemaphoreError,
    StreamQError,
    TaskError,
    TaskNotFound,
    UsageError,
    WorkerError,
)

CLASSES = sorted(
    (kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == "streamq.errors"),
    key=lambda kind: kind.__name__,
)


def sample(kind: type[StreamQError]) -> StreamQError:
    if issubclass(kind, UsageError):
        return kind("field", "has a problem")
    if issubclass(kind, TaskError | CronError):
        return kind("queue", "id-1", "has a problem")
    if issubclass(kind, EnqueueRateExceeded):
        return kind("queue", 1.5)
    if issubclass(kind, QueueError | SemaphoreError):
        return kind("queue", "has a problem")
    if issubclass(kind, WorkerError):
        return kind("w1", "has a problem")
    if issubclass(kind, BatchError):
        return kind([1, TaskNotFound("q", "a", "no such task"), 2])
    if issubclass(kind, RetryAfter):
        return kind(1.5, "a problem", spend=False)
    return kind("a problem")


def drawn() -> dict[str, str]:
    """Class -> parent, as the module's docstring draws them."""
    tree: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([ │]*(?:[├└]── )?)([A-Z]\w+)(  |$)", line)
        if found is None or not (above or found[2] == "StreamQError"):
            continue
        depth = len(found[1])
        above = [(at, name) for at, name in above if at < depth]
        tree[found[2]] = above[-1][1] if above else ""
        above.append((depth, found[2]))
    return tree


def test_the_documented_tree_is_the_tree() -> None:
    actual = {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}
    actual["StreamQError"] = ""
    assert drawn() == actual


def test_there_is_one_root() -> None:
    assert all(issubclass(kind, StreamQError) for kind in CLASSES)
    assert len(CLASSES) > 30


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_what_it_is(kind: type[StreamQError]) -> None:
    assert kind.__doc__ is not None
    assert kind.__doc__[0].isupper()


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_pickling(kind: type[StreamQError]) -> None:
    """Errors cross processes: a pool's, a supervisor's, a user's own."""
    error = sample(kind)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert str(again) == str(error)
        shown: dict[str, Any] = {k: str(v) for k, v in vars(again).items()}
        assert shown == {k: str(v) for k, v in vars(error).items()}


@pytest.mark.parametrize(
    "kind, builtin",
    [
        (errors.UsageError, ValueError),
        (errors.Unavailable, ConnectionError),
        (errors.ServerTimeout, TimeoutError),
        (errors.ResultTimeout, TimeoutError),
        (errors.AttemptTimeout, TimeoutError),
    ],
)
def test_errors_are_also_what_python_calls_them(kind: type, builtin: type) -> None:
    """Code that knows nothing of StreamQ catches them where it catches its like."""
    assert issubclass(kind, builtin)


def test_a_usage_error_names_its_field() -> None:
    error = errors.OptionError("timeout", "must not be negative")
    assert str(error) == "timeout: must not be negative"
    assert (error.field, error.problem) == ("timeout", "must not be negative")


def test_a_task_error_names_its_task() -> None:
    error = errors.TaskFailed("mail", "id-1", "ValueError: x")
    assert str(error) == "task id-1 in queue mail: ValueError: x"
    assert (error.queue, error.task_id, error.problem) == ("mail", "id-1", "ValueError: x")


def test_a_batch_error_carries_every_result_and_shows_the_first_failure() -> None:
    """A26."""
    first, second = TaskNotFound("q", "a", "x"), TaskNotFound("q", "b", "y")
    error = BatchError([1, first, second])
    assert error.results == [1, first, second]
    assert str(error) == f"2 of 3 tasks were not enqueued; the first: {first}"
    assert str(BatchError([])) == "0 of 0 tasks were not enqueued"
