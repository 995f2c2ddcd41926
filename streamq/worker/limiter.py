"""Asks whether a task may start, by the limits of its type, before its handler is called.

Limits of this worker alone are counted here; the others in Redis, where one call asks for all tasks
that came meanwhile. A task that may not start is not kept waiting in its slot: it is put back.
Whatever goes wrong while asking counts as "not now", so no outage lets tasks run unlimited.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

from streamq.broker.keys import QueueKeys
from streamq.broker.limiting import (
    LONGEST_WAIT_MS,
    MAX_ADMIT_TASKS,
    MAX_GIVEN_BACK,
    Admission,
    Ask,
    GivenBack,
    Rule,
    admit,
    give_back,
    token,
)
from streamq.broker.runner import AsyncRunner
from streamq.codec import encode_key
from streamq.errors import Unavailable
from streamq.model.definition import Definition
from streamq.model.run_limits import Concurrency, RunLimit, key_reader, limiter_names
from streamq.worker.complaints import Complaints
from streamq.worker.held import Run, Stop
from streamq.worker.outcome import NotAdmitted

log = logging.getLogger("streamq.limiter")

_OUTAGE_MS = 1000
"""How soon at most a task comes back for which Redis could not be asked."""

_Reader = Callable[[Sequence[Any], Mapping[str, Any]], object]
_Waiting = tuple[Ask, "asyncio.Future[int]"]
Place = tuple[QueueKeys, str]
"""What is counted in this worker alone: a limit of the tasks of one queue."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit of a task type."""

    name: str
    limit: RunLimit
    read_key: _Reader | None

    @property
    def places_here(self) -> int | None:
        """How many it lets run in this worker; None where Redis counts."""
        limit = self.limit
        return limit.limit if isinstance(limit, Concurrency) and limit.scope == "worker" else None

    def name_for(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """What counts these arguments. The key's value is stored as a digest: it may be personal, or long."""
        if self.read_key is None:
            return self.name
        key = encode_key(self.read_key(args, kwargs), "limits")
        return f"{self.name}:{blake2b(key, digest_size=12).hexdigest()}"


class Limiter:
    """The limits of all task types in one worker. Lives on one event loop."""

    def __init__(self, runner: AsyncRunner, worker_id: str) -> None:
        self._runner = runner
        self._worker_id = worker_id
        self._limits: dict[str, list[_Limit]] = {}
        self._running_here: Counter[Place] = Counter()
        self._refused_here: Counter[Place] = Counter()
        """How often a place was refused to tasks that may still wait for it."""
        self._waiting: dict[QueueKeys, list[_Waiting]] = {}
        self._asking: set[QueueKeys] = set()
        self._freed: dict[QueueKeys, list[tuple[str, bytes]]] = {}
        self._complaints = Complaints(log)
        self.asked = 0
        """Calls to Redis that asked for tasks."""

    async def admit(
        self, run: Run, definition: Definition, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Place]:
        """Return when the task may start; what it returns is handed to ``leave`` when its handler has ended.

        Raises NotAdmitted, and whatever the user's key function raises.
        """
        queue = run.source.queue
        here: list[Place] = []
        full: list[Rule] = []
        rules: list[Rule] = []
        for limit in self._of(definition):
            place = queue, limit.name_for(args, kwargs)
            places = limit.places_here
            if places is None:
                rules.append(Rule.of(place[1], limit.limit))
            elif self._running_here[place] >= places:
                self._refused_here[place] += 1
                full.append(Rule.full(self._name_here(place)))
            else:
                here.append(place)
        if full:
            # Redis is told all the same: it keeps who waits, wherever it waits.
            await self._ask(run, full)
            raise NotAdmitted(0)
        self._running_here.update(here)
        try:
            if rules:
                await self._ask(run, rules)
        except BaseException:
            self.leave(here)
            raise
        return here

    def leave(self, places: list[Place]) -> None:
        """A handler has ended: its places in this worker are free."""
        for place in places:
            self._running_here[place] -= 1
            if not self._running_here[place]:
                del self._running_here[place]
            if self._refused_here[place]:
                self._rouse(place[0], [(self._name_here(place), b"")])

    def _name_here(self, place: Place) -> str:
        return f"{place[1]}@{self._worker_id}"

    def _of(self, definition: Definition) -> list[_Limit]:
        limits = self._limits.get(definition.name)
        if limits is None:
            limits = self._limits[definition.name] = [
                _Limit(name, limit, None if limit.key is None else key_reader(limit.key, definition.handler))
                for name, limit in zip(
                    limiter_names(definition.name, definition.limits), definition.limits, strict=True
                )
            ]
        return limits

    # Asking

    async def _ask(self, run: Run, rules: list[Rule]) -> None:
        mine = token(run.entry)
        # Noted before the answer: a token that was taken while nobody listened is given back as well.
        run.tokens = [(rule.name, mine) for rule in rules if rule.kind == "c" and rule.first]
        try:
            wait_ms = await self._submit(run.source.queue, Ask(mine, run.entry.task_id, rules))
        except Exception as error:  # whatever it is, it is not the task's fault
            self._complaints.note("cannot ask whether tasks may start", error)
            raise NotAdmitted(_OUTAGE_MS) from error
        except asyncio.CancelledError:
            if run.stop is Stop.TIMEOUT:
                # The time went by before the handler was called. That is no failure of the task.
                raise NotAdmitted(_OUTAGE_MS) from None
            raise
        self._complaints.clear()
        if wait_ms:
            run.tokens = ()
            raise NotAdmitted(abs(wait_ms), known=0 < wait_ms < LONGEST_WAIT_MS)

    def _submit(self, queue: QueueKeys, ask: Ask) -> asyncio.Future[int]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self._waiting.setdefault(queue, []).append((ask, answer))
        if queue not in self._asking:
            self._asking.add(queue)
            # Not at once: tasks that were fetched together are started together, and ask in one call.
            loop.call_soon(self._send, queue)
        return answer

    def _send(self, queue: QueueKeys) -> None:
        """Ask for those that wait. While this call is in flight the next ones gather."""
        waiting = [item for item in self._waiting.pop(queue, ()) if not item[1].done()]
        batch, rest = waiting[:MAX_ADMIT_TASKS], waiting[MAX_ADMIT_TASKS:]
        if rest:
            self._waiting[queue] = rest
        if not batch:
            self._asking.discard(queue)
            return
        self.asked += 1
        reply = self._runner.post(admit(queue, [ask for ask, _ in batch]))
        reply.add_done_callback(partial(self._answer, queue, batch))

    def _answer(self, queue: QueueKeys, batch: list[_Waiting], reply: asyncio.Future[Admission]) -> None:
        error = Unavailable("the question was not answered") if reply.cancelled() else reply.exception()
        if error is None and reply.result().freed:
            self._rouse(queue, reply.result().freed)
        for place, (_, answer) in enumerate(batch):
            if answer.done():
                continue
            if error is None:
                answer.set_result(reply.result().waits_ms[place])
            else:
                answer.set_exception(error)
        self._send(queue)

    # Rousing

    def _rouse(self, queue: QueueKeys, free: list[tuple[str, bytes]]) -> None:
        """Let tasks ask again that wait for these places. Should it fail, they do so by themselves, later."""
        if queue not in self._freed:
            self._freed[queue] = []
            asyncio.get_running_loop().call_soon(self._send_freed, queue)
        self._freed[queue] += free

    def _send_freed(self, queue: QueueKeys) -> None:
        free = self._freed.pop(queue)
        refused = dict(self._refused_here)
        for start in range(0, len(free), MAX_GIVEN_BACK):
            page = free[start : start + MAX_GIVEN_BACK]
            reply = self._runner.post(give_back(queue, page))
            reply.add_done_callback(partial(self._roused, queue, {name for name, _ in page}, refused))

    def _roused(
        self, queue: QueueKeys, names: set[str], refused: dict[Place, int], reply: asyncio.Future[GivenBack]
    ) -> None:
        """Where nobody waited, nobody need be roused until a place is refused again."""
        if reply.cancelled() or reply.exception() is not None or any(reply.result()):
            return
        for place, count in refused.items():
            if place[0] is queue and self._name_here(place) in names and self._refused_here[place] == count:
                del self._refused_here[place]
