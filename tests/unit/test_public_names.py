"""The public names are a promise: whoever adds or drops one changes this list on purpose."""

from __future__ import annotations

import importlib.resources
import inspect
import tomllib
from pathlib import Path

import streamq

PUBLIC = {
    "Address",
    "StreamQ",
    "Task",
    "TaskCall",
    "Retry",
    "Exponential",
    "Fixed",
    "Listed",
    "Limits",
    "GroupRule",
    "Unique",
    "Concurrency",
    "TokenBucket",
    "SlidingWindow",
    "Cron",
    "CronEvent",
    "CronInfo",
    "CronTick",
    "CallNext",
    "Depends",
    "INJECTED",
    "Isolation",
    "current_task",
    "TaskContext",
    "Member",
    "RetryAfter",
    "Release",
    "SkipRetry",
    "Drop",
    "Client",
    "SyncClient",
    "TaskHandle",
    "SyncTaskHandle",
    "Semaphore",
    "SyncSemaphore",
    "Permit",
    "SyncPermit",
    "Inspector",
    "Reason",
    "State",
    "TaskInfo",
    "Progress",
    "QueueInfo",
    "GroupInfo",
    "QueueLimits",
    "WorkerInfo",
    "Audit",
    "Worker",
    "StreamQError",
}


def test_the_public_names_are_these() -> None:
    assert set(streamq.__all__) == PUBLIC
    assert len(streamq.__all__) == len(PUBLIC)


def test_each_is_there_and_documented() -> None:
    for name in streamq.__all__:
        assert inspect.getdoc(getattr(streamq, name)), name


def test_nothing_else_shows_but_modules() -> None:
    shown = {name for name in vars(streamq) if not name.startswith("_")}
    assert {name for name in shown - PUBLIC if not inspect.ismodule(getattr(streamq, name))} == set()


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert streamq.__version__ == project["version"]


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert importlib.resources.files("streamq").joinpath("py.typed").is_file()
