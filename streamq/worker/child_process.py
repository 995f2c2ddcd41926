"""One child process as its worker sees it: started, given one run at a time, killed.

It is started afresh (spawned), never forked: a fork of a process with threads and connections may
hang, and would share them. It has a process group of its own, so that what its handler has started
is killed with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from streamq import errors
from streamq.codec import FRAME_HEAD_BYTES, decode_frame, decode_result, encode_frame
from streamq.errors import (
    AttemptError,
    ChildFailed,
    HandlerFailed,
    MessageError,
    PayloadError,
    ResourceLimitExceeded,
    Steering,
)
from streamq.model.isolation import Isolation

log = logging.getLogger("streamq.isolation")

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from streamq.worker.child import main; main()"
_EXIT_S = 1.0
"""A child that has closed its socket is about to end. After so long it is killed."""

OnProgress = Callable[[bytes], None]
"""Called with what the handler says, packed."""


class ChildProcess:
    """Made on the loop that it belongs to; ``ready`` has no result until the app is loaded."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(theirs.fileno())
            except OSError:
                ours.close()
                raise
        self._reaping = threading.Lock()
        self.runs = 0
        self.idle_since_s = 0.0
        """When it was last given back; set by who keeps it."""
        self.ready: asyncio.Future[None] = loop.create_future()
        self.dead: asyncio.Future[int] = loop.create_future()
        """Its exit code."""
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._on_progress: OnProgress | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._talk = loop.create_task(self._listen(ours, start), name="streamq-child")
        self.dead.add_done_callback(self._hang_up)
        threading.Thread(
            target=self._wait, args=(loop,), name=f"streamq-child-{self.pid}", daemon=True
        ).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def run(self, frame: bytes, isolation: Isolation, on_progress: OnProgress) -> Any:
        """Have it run a handler; what that returned. Raises what it raised, as AttemptError or Steering.

        When it is cancelled, or raises anything but HandlerFailed and Steering, kill the child.
        """
        if self._writer is None:
            raise ChildFailed("the child process is not ready")
        self.runs += 1
        self._on_progress = on_progress
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame)
            answer = await self._answer
        finally:
            self._answer = self._on_progress = None
        if answer["kind"] == "ended":
            raise _end(answer["code"], isolation)
        return _result(answer)

    def close(self) -> None:
        """Let it leave the app's lifespan and end."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()

    def kill(self) -> None:
        """End it and what it has started, now."""
        self._closed = True
        with self._reaping:
            if self._process.returncode is None:
                self._kill_group()

    async def gone(self) -> None:
        """Wait until it is dead and nothing here deals with it any more. Kill it first, or close it."""
        await asyncio.wait([self._talk])

    # Listening

    async def _listen(self, ours: socket.socket, start: Mapping[str, Any]) -> None:
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            if self._closed:
                self._writer.close()
            self._writer.write(encode_frame(start))
            while True:
                head = await reader.readexactly(FRAME_HEAD_BYTES)
                self._hear(decode_frame(await reader.readexactly(int.from_bytes(head, "big"))))
        except (asyncio.IncompleteReadError, OSError, MessageError):
            pass  # It ends, or has ended: how, its exit code says.
        finally:
            if self._writer is not None:
                self._writer.close()
        await self._tell_end()

    async def _tell_end(self) -> None:
        """Answer for the child that cannot any more."""
        await asyncio.wait([self.dead], timeout=_EXIT_S)
        if not self.dead.done() and not self._closed:
            self.kill()
        code = await asyncio.shield(self.dead)
        if not self.ready.done():
            self.ready.set_exception(ChildFailed(f"{told_code(code)} before it was ready"))
            self.ready.exception()  # A spare one may have nobody who asks.
        if self._answer is not None and not self._answer.done():
            self._answer.set_result({"kind": "ended", "code": code})

    def _hear(self, frame: Mapping[str, Any]) -> None:
        kind = frame["kind"]
        if kind == "progress":
            if self._on_progress is not None:
                self._on_progress(frame["said"])
        elif kind == "ready":
            self.ready.set_result(None)
        elif kind == "unready":
            why = f"{frame['type']}: {frame['text']}"
            failed = ChildFailed(f"the child process cannot load the app: {why}{_remedy(frame['text'])}")
            self.ready.set_exception(failed)
            self.ready.exception()
            log.error("child process cannot load the app error=%s: %s", frame["type"], frame["text"])
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(dict(frame))

    def _hang_up(self, _dead: asyncio.Future[int]) -> None:
        """What it forked may hold its end of the socket: then no end would be read, ever."""
        if self._writer is not None:
            asyncio.get_running_loop().call_later(_EXIT_S, self._writer.transport.abort)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: wait for its end, and end what it has left behind."""
        if not hasattr(os, "waitid"):
            self._process.wait()
        else:
            # Not reaped yet, so its number, which is that of its group too, is not given to another.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with self._reaping:
                self._kill_group()
                self._process.wait()
        with suppress(RuntimeError):  # The loop is closed: nobody asks any more.
            loop.call_soon_threadsafe(self.dead.set_result, self._process.returncode)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _spawn(number: int) -> subprocess.Popen[bytes]:
    """Start a child with this end of a socket.

    The thread that does it lives as long as the worker: the kernel kills the child when it ends.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001  # what multiprocessing uses
    return subprocess.Popen(
        [sys.executable, *flags, "-c", _BOOT, str(number), str(os.getpid()), *sys.path],
        stdin=subprocess.DEVNULL,
        pass_fds=(number,),
        process_group=0,
    )


# What a child says, as results and errors


def _remedy(problem: str) -> str:
    """For a script that runs its program while it is imported, which asyncio refuses in words of its own."""
    return "; keep it under 'if __name__ == \"__main__\":'" if "asyncio.run()" in problem else ""


def _result(answer: Mapping[str, Any]) -> Any:
    match answer["kind"]:
        case "done":
            return decode_result(answer["result"])
        case "unstorable":
            raise PayloadError("result", answer["problem"])
        case "failed" if answer["limit"]:
            raise ResourceLimitExceeded(answer["text"])
        case "failed":
            raise _raised(answer)
    raise ChildFailed("the child process said something that this version does not know")


def _raised(answer: Mapping[str, Any]) -> Exception:
    """What the handler raised: what steers its task as itself, all else by its name and text."""
    failed = HandlerFailed(
        answer["text"], answer["type"], answer["traceback"], is_failure=answer["is_failure"]
    )
    if answer["steering"] is None:
        return failed
    steering = _steering(answer["steering"])
    if answer["steering"]["itself"]:
        steering.__cause__ = failed
        return steering
    failed.__cause__ = steering
    return failed


def _steering(told: Mapping[str, Any]) -> Steering:
    kind: type[Steering] = getattr(errors, told["kind"])
    steering = kind.__new__(kind)
    steering.args = (told["text"],) if told["text"] else ()
    vars(steering).update(told["facts"])
    return steering


def _end(code: int, isolation: Isolation) -> AttemptError:
    """The error of a run whose process has ended."""
    if code == -signal.SIGXCPU and isolation.cpu_s is not None:
        return ResourceLimitExceeded(f"cpu limit of {isolation.cpu_s} s")
    return ChildFailed(told_code(code))


def told_code(code: int) -> str:
    """The exit code in words."""
    if code >= 0:
        return f"the child process exited with code {code}"
    try:
        return f"the child process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the child process was killed by signal {-code}"
