"""Threads for sync handlers. They are daemons: a handler that never ends cannot keep the process alive."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = tuple["asyncio.AbstractEventLoop", "asyncio.Future[Any]", Callable[[], Any]]

_IDLE_S = 60.0
"""A thread without work for so long ends."""


class Threads:
    """At most ``size`` threads, started as they are needed.

    Every job gets a thread of its own at once, as long as there are no more than ``size``: a job may
    wait for another one.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = 0
        self._unfinished = 0

    def submit(self, job: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``job`` in a thread; the future, of the running loop, gets what it returns or raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._unfinished += 1
            if self._unfinished > self._alive and self._alive < self._size:
                self._alive += 1
                threading.Thread(target=self._work, name="streamq-handler", daemon=True).start()
        self._jobs.put((loop, answer, job))
        return answer

    def _work(self) -> None:
        while True:
            try:
                loop, answer, job = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    # A job that was just submitted counts on this thread.
                    if self._unfinished < self._alive:
                        self._alive -= 1
                        return
                continue
            try:
                _run(loop, answer, job)
            finally:
                with self._lock:
                    self._unfinished -= 1
            del loop, answer, job


def _run(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], job: Callable[[], Any]) -> None:
    result: Any = None
    error: BaseException | None = None
    try:
        result = job()
    except StopIteration as stopped:
        # A future cannot carry StopIteration: it would end the coroutine that awaits it.
        error = RuntimeError("the handler raised StopIteration")
        error.__cause__ = stopped
    except BaseException as failed:  # noqa: BLE001  # also SystemExit: it is the handler's, not the thread's
        error = failed
    try:
        loop.call_soon_threadsafe(_answer, answer, result, error)
    except RuntimeError:
        return  # The loop is closed: the worker has gone without this handler.


def _answer(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
