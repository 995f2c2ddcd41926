"""The board: a memory-mapped file on which handlers count, so that watching a drain costs Redis nothing.

Layout: little-endian 64-bit integers. The first is the number of slots claimed. Slot ``i`` starts at integer
``8 + 4 * i`` and holds: process id, tasks handled, time of the first (CLOCK_MONOTONIC, ns), nothing yet.
Every *thread* that runs handlers claims a slot of its own, hence no lock is needed to count.

Beside it lies ``<board>.samples``: signed 64-bit nanoseconds, one per ``stamp`` task, appended.

The Go adapter writes the same layout.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import struct
import threading
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

ENVIRONMENT_VARIABLE = "BENCH_BOARD"
SLOTS = 1024
_FIRST_SLOT = 8
_WORDS_A_SLOT = 4
SIZE_BYTES = 8 * (_FIRST_SLOT + SLOTS * _WORDS_A_SLOT)

_PID, _COUNT, _FIRST, _UNUSED = range(_WORDS_A_SLOT)


class Reading(NamedTuple):
    """The board at one moment."""

    taken_ns: int
    processes: int
    tasks: int
    first_ns: int


class Board:
    """The harness's side: makes the file, reads the sums."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples_path = Path(f"{path}.samples")
        self.clear()
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), SIZE_BYTES)).cast("q")

    def clear(self) -> None:
        """Start anew. The file keeps its inode, so that the harness's own mapping stays good."""
        mode = "r+b" if self.path.exists() else "w+b"
        with self.path.open(mode) as file:
            file.write(bytes(SIZE_BYTES))
        self.samples_path.write_bytes(b"")

    def read(self) -> Reading:
        """Sum the slots. Counts of other processes may be a few tasks old; never ahead."""
        taken_ns = monotonic_ns()
        end = _FIRST_SLOT + self._words[0] * _WORDS_A_SLOT
        columns = [
            self._words[_FIRST_SLOT + word : end : _WORDS_A_SLOT].tolist() for word in range(_WORDS_A_SLOT)
        ]
        busy = [slot for slot in zip(*columns, strict=True) if slot[_COUNT]]
        return Reading(
            taken_ns=taken_ns,
            processes=len({slot[_PID] for slot in busy}),
            tasks=sum(slot[_COUNT] for slot in busy),
            first_ns=min((slot[_FIRST] for slot in busy), default=0),
        )

    def samples_ns(self) -> list[int]:
        """Every delay that ``stamp`` has recorded so far."""
        data = self.samples_path.read_bytes()
        return [value for (value,) in struct.iter_unpack("<q", data[: len(data) // 8 * 8])]


class _Mine(threading.local):
    """This thread's count, as a view of one integer on the board; None before its first task."""

    count: memoryview | None = None


class _Mapping:
    """This process's view of the board, made by its first task."""

    mine = _Mine()
    words = memoryview(b"")
    samples_fd = -1


# The loop thread's own count and counter: global names are the cheapest thing a handler can reach.
_loop_count: memoryview | None = None
_next = itertools.count(1).__next__


def _forget_slots() -> None:
    global _loop_count, _next
    _Mapping.mine, _loop_count, _next = _Mine(), None, itertools.count(1).__next__


os.register_at_fork(after_in_child=_forget_slots)


def tick() -> None:
    """Count one finished task of the thread that runs the event loop. About 0.15 us, whoever is measured."""
    if _loop_count is None:
        begin()
    _loop_count[0] = _next()  # type: ignore[index]  # begin() has set it


def tick_in_thread() -> None:
    """Count one finished task of a worker thread."""
    count = _Mapping.mine.count or _claim()
    count[0] += 1


def begin() -> None:
    """Claim a slot for the loop's thread now, which also notes the time: before the first task, not after."""
    global _loop_count  # noqa: PLW0603 - see above
    if _loop_count is None:
        _loop_count = _claim()


def begin_in_thread() -> None:
    """The same for a worker thread."""
    if _Mapping.mine.count is None:
        _claim()


def sample(delay_ns: int) -> None:
    """Record one delay. Eight bytes in one append are never torn."""
    os.write(_samples_fd(), struct.pack("<q", delay_ns))


def _samples_fd() -> int:
    if _Mapping.samples_fd < 0:
        _Mapping.samples_fd = os.open(f"{_path()}.samples", os.O_WRONLY | os.O_APPEND)
    return _Mapping.samples_fd


def _path() -> Path:
    return Path(os.environ[ENVIRONMENT_VARIABLE])


def _claim() -> memoryview:
    with _path().open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            count = _take_slot(file.fileno())
        finally:
            # By hand: the mapping keeps a duplicate of the descriptor, and with it the lock, past the close.
            fcntl.flock(file, fcntl.LOCK_UN)
    _Mapping.mine.count = count
    return count


def _take_slot(fd: int) -> memoryview:
    if not _Mapping.words:
        _Mapping.words = memoryview(mmap.mmap(fd, SIZE_BYTES)).cast("q")
    words = _Mapping.words
    number: int = words[0]
    if number >= SLOTS:
        raise RuntimeError("the board is full: a peer runs each task in a new thread")
    start = _FIRST_SLOT + number * _WORDS_A_SLOT
    words[start + _PID] = os.getpid()
    words[start + _FIRST] = monotonic_ns()
    words[0] = number + 1
    return words[start + _COUNT : start + _COUNT + 1]
