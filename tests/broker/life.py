"""A small model of the life of tasks: what the scripts must answer, and where each task must be.

It knows nothing of Redis. A task waits (in whatever way), is active, is finished or has ended; a task in
a batch is what its batch is. A lock stands while its task waits or is active, and no longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WAITS, ACTIVE, COMPLETED, ARCHIVED, ENDED = "waits", "active", "completed", "archived", "ended"
LIVES = frozenset({WAITS, ACTIVE})
FINISHED = frozenset({COMPLETED, ARCHIVED})


@dataclass
class Known:
    """One task that was accepted."""

    id: str
    message: bytes
    state: str = WAITS
    batch: str = ""
    """The batch that it went into."""


@dataclass
class Life:
    """Every task that was ever accepted, and who holds which lock."""

    tasks: dict[str, Known] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    """Lock -> task id; by the mode's letter, since each mode has one lock here."""
    behind: str = ""
    """The task that waits behind the holder of the keep-last lock."""

    def state(self, id_: str) -> str:
        """Where the task is; what never was has ended."""
        task = self.tasks.get(id_)
        if task is None:
            return ENDED
        return self.state(task.batch) if task.batch else task.state

    def in_state(self, *states: str) -> list[str]:
        """Ids of the tasks there that are tasks of their own, in no batch."""
        return [id_ for id_, task in self.tasks.items() if not task.batch and task.state in states]

    def move(self, id_: str, state: str) -> None:
        self.tasks[id_].state = state
        if id_ == self.behind and state != WAITS:
            self.behind = ""

    def accept(self, id_: str, message: bytes) -> None:
        self.tasks[id_] = Known(id_, message)

    # What enqueue answers

    def enqueue(self, id_: str, message: bytes, conflict: str, first: str) -> str:
        """A task with an id of the caller's choice. ``first`` is what a new one is told."""
        state = self.state(id_)
        if state in LIVES or (state in FINISHED and conflict != "p"):
            return "exists" if conflict == "r" else "conflict"
        self.accept(id_, message)
        return first

    def lock(self, mode: str, id_: str, message: bytes, clash: str, first: str) -> str:
        """A task with the lock of that mode: d until done, s until it starts, b debounce, k keep the last."""
        if mode == "k":
            return self._keep_last(id_, message, first)
        holder = self.holders.get(mode, "")
        state = self.state(holder)
        if mode in "sb" and state == ACTIVE:
            state = ENDED
        if state in LIVES:
            if mode == "b":
                self.tasks[holder].message = message
                return f"merged:{holder}"
            waits_alone = state == WAITS and not self.tasks[holder].batch
            if clash != "p" or not waits_alone:
                return f"{'existing' if clash == 'r' else 'duplicate'}:{holder}"
            self.move(holder, ENDED)
        self.accept(id_, message)
        self.holders[mode] = id_
        return first

    def _keep_last(self, id_: str, message: bytes, first: str) -> str:
        holder = self.holders.get("k", "")
        state = self.state(holder)
        if self.behind and state != ACTIVE:
            # The one that ran has ended or waits again: the newest wins over it.
            if state == WAITS:
                self.move(holder, ENDED)
            holder = self.holders["k"] = self.behind
            self.behind, state = "", WAITS
        if state == ACTIVE:
            if not self.behind:
                self.accept(id_, message)
                self.behind = id_
                return "scheduled"
            holder = self.behind
        elif state != WAITS:
            self.accept(id_, message)
            self.holders["k"] = id_
            return first
        self.tasks[holder].message = message
        return f"merged:{holder}"

    # What ends, and what tidying up then does

    def tidied(self) -> None:
        """Who waits behind a keep-last lock has it, unless its holder runs."""
        if self.behind and self.state(self.holders["k"]) != ACTIVE:
            if self.state(self.holders["k"]) == WAITS:
                self.move(self.holders["k"], ENDED)
            self.holders["k"], self.behind = self.behind, ""

    def locks(self) -> dict[str, str]:
        """The locks that stand when everything has been tidied up."""
        standing = {mode: id_ for mode, id_ in self.holders.items() if self.state(id_) in LIVES}
        return {**standing, **({"+k": self.behind} if self.behind else {})}

    def delete(self, id_: str) -> str:
        """The answer to a delete."""
        state, task = self.state(id_), self.tasks.get(id_)
        if task and task.batch and state != ENDED:
            return f"batched:{task.batch}"
        if state in {ENDED, ACTIVE}:
            return "missing" if state == ENDED else "active"
        self.move(id_, ENDED)
        return "ok"

    def cancel(self, id_: str, outcome: str) -> str:
        """The answer to a cancel of a task that is not active."""
        state, task = self.state(id_), self.tasks.get(id_)
        if state == ENDED:
            return "missing"
        if task and task.batch:
            return f"batch:{task.batch}" if state in LIVES else "finished"
        if state in FINISHED and not (state == ARCHIVED and outcome == "delete"):
            return "finished"
        if outcome != "retry":
            self.move(id_, ARCHIVED if outcome == "archive" else ENDED)
        return "ok"
