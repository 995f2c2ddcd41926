"""The child's side of isolation: a process that runs one handler after another, told which by its worker.

It imports the app, enters its lifespan once, and says that it is ready. Then it reads one frame for
each run and answers with frames: progress, and the end. Nobody else reads its socket. It ends when the
worker closes the socket, and dies with the worker.

Sync handlers run in the main thread, where libraries expect to be, and where memory is counted without
a thread's own reserves.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from streamq.clock import monotonic_s
from streamq.codec import (
    FRAME_HEAD_BYTES,
    decode_frame,
    decode_payload,
    encode_frame,
    encode_result,
)
from streamq.errors import HandlerExited, HandlerNotFound, PayloadError, ResourceLimitExceeded, Steering
from streamq.model.definition import Definition
from streamq.model.isolation import Isolation
from streamq.model.limits import Limits
from streamq.worker.allowance import allowance
from streamq.worker.context import TaskContext, of_frame, set_current
from streamq.worker.held import Run
from streamq.worker.home import Home, load
from streamq.worker.outcome import caused_by
from streamq.worker.resolver import provide
from streamq.worker.teller import complain
from streamq.worker.threads import Threads

_PR_SET_PDEATHSIG = 1
_REPORT_EVERY_S = 0.05
"""Between two frames of progress. The worker writes more rarely anyway."""


def main() -> None:
    """What the child process runs: ``argv`` is the socket's number and the worker's process id."""
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    with socket.socket(fileno=number) as connection:
        connection.set_inheritable(False)
        _die_with(parent, number)
        _stand_signals()
        _work(Link(connection))


def _work(link: Link) -> None:
    start = link.receive()
    if start is None:
        return
    sys.argv[:] = start["argv"]
    try:
        with asyncio.Runner(loop_factory=_loop_factory(start["uvloop"])) as runner:
            runner.run(_serve(link, start))
    except BrokenPipeError:
        return  # The worker has gone, and waits for nothing any more.


async def _serve(link: Link, start: Mapping[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        try:
            app = load(Home.of_frame(start["home"]))
            definitions = app.definitions()
            if start["log"] is not None:  # as in the worker: what the app has set up itself wins
                logging.basicConfig(level=start["log"][0], format=start["log"][1])
            await stack.enter_async_context(app)
            state = None if app.lifespan is None else await stack.enter_async_context(app.lifespan())
        except BaseException as error:  # noqa: BLE001  # also sys.exit while importing: the worker must hear
            link.send({"kind": "unready", **_told(error)})
            return
        link.send({"kind": "ready"})
        limits, threads = Limits(**start["limits"]), Threads(1)
        while (frame := await link.next()) is not None:
            run = _Run(link, definitions, state, limits, threads, frame)
            link.send(await run.answer())


class Link:
    """The socket to the worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    def send(self, frame: Mapping[str, Any]) -> None:
        """Any thread may. Raises BrokenPipeError when the worker has gone."""
        data = encode_frame(frame)
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next frame; None at the end. Blocks."""
        head = self._exactly(FRAME_HEAD_BYTES)
        body = None if head is None else self._exactly(int.from_bytes(head, "big"))
        return None if body is None else decode_frame(body)

    async def next(self) -> dict[str, Any] | None:
        """As ``receive``, but the loop goes on until something comes. A frame comes in one go."""
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self._socket, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._socket)
        return self.receive()

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(count - len(parts))
            except ConnectionResetError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


class _Run:
    """One handler's run."""

    def __init__(
        self,
        link: Link,
        definitions: Mapping[str, Definition],
        state: Any,
        limits: Limits,
        threads: Threads,
        frame: Mapping[str, Any],
    ) -> None:
        self._link = link
        self._definition = definitions.get(frame["name"])
        self._state = state
        self._limits = limits
        self._threads = threads
        self._frame = frame
        self._current: TaskContext | None = None

    async def answer(self) -> dict[str, Any]:
        """Run the handler; the frame that tells its end."""
        definition = self._definition
        try:
            if definition is None or definition.isolation is None:
                raise HandlerNotFound(
                    f"no isolated handler for {self._frame['name']!r} in the child process; "
                    "register it whenever its module is imported"
                )
            result = await self._run(definition, definition.isolation)
        except BaseException as error:  # noqa: BLE001  # also SystemExit: it is the handler's, not the process's
            return {"kind": "failed", **_told(error, definition, self._current)}
        try:
            return {"kind": "done", "result": encode_result(result, self._limits)}
        except PayloadError as error:
            return {"kind": "unstorable", "problem": error.problem}

    async def _run(self, definition: Definition, isolation: Isolation) -> Any:
        args, kwargs = decode_payload(self._frame["payload"])
        reporter = _Reporter(self._link)
        call = partial(_held_to, isolation, definition)
        context = contextvars.copy_context()
        current, run = of_frame(self._frame["context"], definition, self._state, reporter.note)
        self._current = current
        context.run(set_current, current)
        if definition.needs is not None:
            submit = self._threads.submit
            call = partial(provide, run, submit, definition.needs, definition.overrides, call)
        try:
            return await _apart(context, call(*args, **kwargs))
        finally:
            reporter.close()


async def _held_to(isolation: Isolation, definition: Definition, /, *args: Any, **kwargs: Any) -> Any:
    """The handler within its limits; what is provided for it was not asked to keep them."""
    with allowance(isolation):
        result = definition.handler(*args, **kwargs)
        return await result if definition.is_async else result


async def _apart(context: contextvars.Context, work: Coroutine[Any, Any, Any]) -> Any:
    """Run it as a task of its own: what cancels that task, or exits in it, does not end this process."""
    ended: list[tuple[Any, BaseException | None]] = []

    async def run() -> None:
        try:
            ended.append((await work, None))
        except BaseException as error:  # noqa: BLE001
            ended.append((None, error))

    await asyncio.wait([asyncio.create_task(run(), context=context)])
    result, error = ended[0] if ended else (None, asyncio.CancelledError())
    if error is not None:
        raise error
    return result


class _Reporter:
    """Passes progress on, not more often than makes sense; what was said last is always passed on."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._latest: bytes | None = None
        self._sent_s = 0.0
        self._timer: threading.Timer | None = None
        self._closed = False

    def note(self, _run: Run, said: bytes) -> None:
        """Any thread may."""
        with self._lock:
            self._latest = said
            if self._timer is None and not self._closed:
                wait_s = self._sent_s + _REPORT_EVERY_S - monotonic_s()
                if wait_s <= 0 or not self._start_timer(wait_s):
                    self._send()

    def close(self) -> None:
        """Nothing more is said of this run."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _start_timer(self, wait_s: float) -> bool:
        timer = threading.Timer(wait_s, self._ring)
        timer.daemon = True
        try:
            timer.start()
        except (RuntimeError, MemoryError):  # No memory is left for a thread.
            return False
        self._timer = timer
        return True

    def _ring(self) -> None:
        with self._lock:
            self._timer = None
            if not self._closed:
                self._send()

    def _send(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            self._sent_s = monotonic_s()
            with suppress(OSError):  # The worker has gone; so does this process.
                self._link.send({"kind": "progress", "said": latest})


# Errors as plain values


def _told(
    error: BaseException, definition: Definition | None = None, current: TaskContext | None = None
) -> dict[str, Any]:
    """What of an error is said to the worker."""
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        exited = HandlerExited(f"the handler raised {type(error).__name__}")
        error = exited.with_traceback(error.__traceback__)
    return {
        "type": type(error).__name__,
        "text": _text(error),
        "traceback": _storable("".join(traceback.format_tb(error.__traceback__))),
        "is_failure": _is_failure(definition, current, error),
        "limit": isinstance(error, ResourceLimitExceeded),
        "steering": _steering(error),
    }


def _text(error: BaseException) -> str:
    try:
        return _storable(str(error))
    except BaseException:  # noqa: BLE001  # an error whose text cannot be had is still an error
        return "(its text cannot be shown)"


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _is_failure(definition: Definition | None, current: TaskContext | None, error: BaseException) -> bool:
    if definition is None or definition.is_failure is None or current is None:
        return True
    try:
        return bool(definition.is_failure(error))
    except BaseException as broken:  # noqa: BLE001  # the user's predicate: the task is taken to have failed
        complain("is_failure", current, broken)
        return True


def _steering(error: BaseException) -> dict[str, Any] | None:
    """What the handler steered its task to, if it did."""
    found = caused_by(error, Steering)
    if found is None:
        return None
    kind = next(kind for kind in type(found).__mro__ if kind.__module__ == Steering.__module__)
    facts = {name: _plain(value) for name, value in vars(found).items()}
    return {"kind": kind.__name__, "text": _text(found), "facts": facts, "itself": found is error}


def _plain(value: object) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if isinstance(value, int | float | str | None) else _storable(repr(value))


# Living and dying with the worker


def _die_with(parent: int, number: int) -> None:
    """However the worker ends. Linux sees to it; elsewhere a thread watches the socket."""
    try:
        set_here = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (OSError, AttributeError):
        set_here = False
    if os.getppid() != parent:
        os._exit(1)  # It died before it was asked for.
    if not set_here:
        threading.Thread(target=_watch, args=(parent, number), name="streamq-parent", daemon=True).start()


def _watch(parent: int, number: int) -> None:
    poll = select.poll()
    poll.register(number, 0)  # hang-up is told unasked
    while os.getppid() == parent:
        if poll.poll(1_000):
            time.sleep(0.1)  # It may also have closed the socket to let this process end.
    os.kill(os.getpid(), signal.SIGKILL)


def _stand_signals() -> None:
    """The worker decides when this process ends, whoever signals all of a group or service.

    Functions, not SIG_IGN: what the handler starts would inherit that.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTSTP):
        signal.signal(number, _ignore)
    with suppress(Exception):  # Standard error may be anything.
        faulthandler.enable()


def _ignore(_number: int, _frame: object) -> None:
    pass


def _loop_factory(wants_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:  # noqa: FBT001
    if not wants_uvloop:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _resolve(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
