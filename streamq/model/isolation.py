"""What a handler that runs in a child process may use, and for how many runs its process serves."""

from __future__ import annotations

from dataclasses import dataclass

from streamq.errors import OptionError
from streamq.model.durations import Duration, duration_ms

DEFAULT_RUNS = 1_000
"""Often enough that starting costs nothing, rarely enough that what leaks in a handler ends some day."""
MIN_MEMORY = 16 << 20
MIN_FILES = 16
"""A child process needs some for itself: its standard streams, its event loop, its pipe to the worker."""
_MIB = 1 << 20


def _check(field: str, value: object, least: int) -> None:
    if value is not None and (type(value) is not int or value < least):
        raise OptionError(field, f"must be a whole number from {least:,} on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Limits of one task's handler in its child process; None: as the worker's own.

    The time that a run may take is the task's ``timeout``. Raises OptionError for a limit without
    meaning.
    """

    memory: int | None = None
    """Bytes of address space, those of the child process itself included."""
    cpu: Duration | None = None
    """Time on the processor, of one run; counted in whole seconds."""
    files: int | None = None
    """Open files at once, with those that the child process itself holds."""
    runs: int = DEFAULT_RUNS
    """A process that has run so many tasks is replaced; 1 gives each run a new one."""

    def __post_init__(self) -> None:
        if self.cpu is not None and duration_ms("isolate.cpu", self.cpu) < 1_000:
            raise OptionError("isolate.cpu", "must be at least 1 s: it is counted in whole seconds")
        _check("isolate.memory", self.memory, MIN_MEMORY)
        _check("isolate.files", self.files, MIN_FILES)
        _check("isolate.runs", self.runs, 1)

    @property
    def cpu_s(self) -> int | None:
        """The processor time, rounded up."""
        return None if self.cpu is None else -(-duration_ms("isolate.cpu", self.cpu) // 1_000)


PLAIN = Isolation()
"""What ``isolate=True`` means."""


def as_isolation(value: object) -> Isolation | None:
    """The limits that ``isolate=`` asks for; None: no child process. Raises OptionError."""
    if isinstance(value, bool):
        return PLAIN if value else None
    if value is None or isinstance(value, Isolation):
        return value
    raise OptionError("isolate", f"must be True, False or an Isolation, not {type(value).__name__}")


def shown_bytes(count: int) -> str:
    """In MiB where that says it, else in bytes."""
    return f"{count} bytes" if count % _MIB else f"{count // _MIB} MiB"
