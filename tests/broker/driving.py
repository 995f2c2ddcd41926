"""Drives what is written as steps: each command is sent, each reply handed in."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from streamq.broker.auditing import audit as audit_steps
from streamq.broker.command import Command
from streamq.broker.sweeping import sweep as sweep_steps
from streamq.broker.working import Tidied
from streamq.model.info import Audit
from tests.broker.stage import Stage

T = TypeVar("T")


def drive(stage: Stage, steps: Generator[Command[Any], Any, T]) -> T:
    command = next(steps)
    while True:
        try:
            command = steps.send(stage.run(command))
        except StopIteration as done:
            brought: T = done.value
            return brought


def audit(stage: Stage) -> Audit:
    """One whole audit, with its sweep."""
    return drive(stage, audit_steps(stage.queue, stage.now_ms()))


def sweep(stage: Stage) -> Tidied:
    """One whole sweep."""
    return drive(stage, sweep_steps(stage.queue, stage.now_ms()))
