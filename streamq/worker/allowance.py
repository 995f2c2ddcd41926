"""What one run in a child process may use: limits set for the kernel to hold, and lifted after the run.

Only the soft limits are changed, so that the next run can have others. They are no fence against a
handler that means harm: it could lift them itself.
"""

from __future__ import annotations

import errno
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamq.errors import ResourceLimitExceeded
from streamq.model.isolation import Isolation, shown_bytes


@contextmanager
def allowance(isolation: Isolation) -> Iterator[None]:
    """Hold the code inside to these limits. Raises ResourceLimitExceeded when it ran into one.

    One that uses too much of the processor is ended by the kernel, with SIGXCPU.
    """
    _check_room(isolation)
    before = {kind: resource.getrlimit(kind) for kind in _limits(isolation)}
    try:
        for kind, wished in _limits(isolation).items():
            _set(kind, wished, before[kind][1])
        yield
    except (MemoryError, OSError) as error:
        _lift(before)
        overrun = _overrun(isolation, error)
        if overrun is None:
            raise
        raise overrun from error
    finally:
        _lift(before)


def _limits(isolation: Isolation) -> dict[int, int]:
    wished = {}
    if isolation.memory is not None:
        wished[resource.RLIMIT_AS] = isolation.memory
    if isolation.cpu_s is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        wished[resource.RLIMIT_CPU] = math.ceil(used.ru_utime + used.ru_stime) + isolation.cpu_s
    if isolation.files is not None:
        wished[resource.RLIMIT_NOFILE] = isolation.files
    return wished


def _set(kind: int, wished: int, hard: int) -> None:
    soft = wished if hard == resource.RLIM_INFINITY else min(wished, hard)
    resource.setrlimit(kind, (soft, hard))


def _lift(before: dict[int, tuple[int, int]]) -> None:
    for kind, both in before.items():
        with suppress(ValueError, OSError):  # The handler has lowered the hard limit: so be it.
            resource.setrlimit(kind, both)


def _check_room(isolation: Isolation) -> None:
    """Below what the process has already, every allocation fails: better to say it."""
    taken = _address_space()
    if isolation.memory is not None and taken >= isolation.memory:
        raise ResourceLimitExceeded(
            f"memory limit of {shown_bytes(isolation.memory)}: the child process with what it has imported "
            f"takes {taken >> 20} MiB already; raise isolate.memory"
        )


def _address_space() -> int:
    """Bytes; 0 where the system does not tell (and does not hold anyone to RLIMIT_AS either)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


def _overrun(isolation: Isolation, error: BaseException) -> ResourceLimitExceeded | None:
    if isinstance(error, MemoryError) and isolation.memory is not None:
        return ResourceLimitExceeded(f"memory limit of {shown_bytes(isolation.memory)}")
    if isinstance(error, OSError) and isolation.memory is not None and error.errno == errno.ENOMEM:
        return ResourceLimitExceeded(f"memory limit of {shown_bytes(isolation.memory)}")
    if isinstance(error, OSError) and isolation.files is not None and error.errno == errno.EMFILE:
        return ResourceLimitExceeded(f"limit of {isolation.files} open files")
    return None
