"""Workers as processes, as a user starts them: ``python -m streamq worker``. None is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

import streamq
from tests.e2e import workload
from tests.e2e.checker import Journal

ROOT = Path(streamq.__file__).parents[1]
WITHIN_S = 60.0
"""Catches "never"; how fast something is, is the benchmark's business."""


def environment(**more: str) -> dict[str, str]:
    """This process's, with the package and the tests found from anywhere."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def wait_until(fact: Callable[[], object], what: str, *, within_s: float = WITHIN_S) -> None:
    """Ask until it is so; fail the test when it is not in time."""
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)


class WorkerProcess:
    """One ``streamq worker``; ``with`` it. ``words`` are further words of its command line."""

    def __init__(self, url: str, namespace: str, journal: Journal, folder: Path, *words: str) -> None:
        self._words = [sys.executable, "-m", "streamq", "worker", "tests.e2e.workload:app", *words]
        self._environment = environment(
            **{workload.URL: url, workload.NAMESPACE: namespace, workload.JOURNAL: str(journal.path)}
        )
        self._log = folder / f"worker-{time.monotonic_ns()}.log"
        self._journal = journal
        self._known: list[psutil.Process] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        everyone = [*self.children, *self._known]
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for child in everyone:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everyone, timeout=10)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def children(self) -> list[psutil.Process]:
        """The supervisor's children that live."""
        try:
            found = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        living = [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
        self._known += [child for child in living if child not in self._known]
        return living

    def until_started(self, count: int = 1) -> None:
        """Wait until this many workers have said that they work."""
        wait_until(
            lambda: self.log.count("worker started") >= count, f"the worker starts\n{self.log[-2000:]}"
        )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def ended(self, *, within_s: float = WITHIN_S) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end within {within_s} s\n{self.log[-3000:]}") from None

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        self.signal(signal.SIGTERM)
        return self.ended()
