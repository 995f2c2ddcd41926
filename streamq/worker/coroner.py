"""Tells the hooks of tasks that recovery archived, because too many workers died while they ran them.

No handler of this process had them: what their hooks are told is read from the archive. That is done
only where somebody wants to hear it, and once: what cannot be read now is not told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamq.broker.inspecting import Found, find
from streamq.broker.keys import QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import Entry
from streamq.clock import ServerClock
from streamq.codec import decode_message
from streamq.errors import StoredDataError, StreamQError
from streamq.model.definition import Definition
from streamq.model.parked import Parked, Reason
from streamq.worker.context import UNREADABLE, TaskContext
from streamq.worker.held import Run, Source
from streamq.worker.routes import Routes, unknown
from streamq.worker.teller import Teller

log = logging.getLogger("streamq.coroner")


class Coroner:
    """Looks the archived up, and has them told."""

    def __init__(
        self,
        runner: AsyncRunner,
        clock: ServerClock,
        teller: Teller,
        definitions: Mapping[str, Definition],
        state: Callable[[], Any] = lambda: None,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._teller = teller
        self._routes = Routes(definitions)
        self._state = state
        self._wanted = any(teller.wants("on_archive", one) for one in (None, *definitions.values()))

    async def report(self, queue: QueueKeys, task_ids: Sequence[bytes]) -> None:
        """These tasks of the queue were archived for their crashes. Never raises."""
        if not self._wanted:
            return
        try:
            answers = await self._runner.run_all(
                [find(queue, task_id.decode("utf-8", "replace")) for task_id in task_ids]
            )
        except StreamQError as error:
            log.error("hooks were not called for crashed tasks count=%d error=%s", len(task_ids), error)
            return
        for task_id, found in zip(task_ids, answers, strict=True):
            if isinstance(found, Found) and found.parked and found.parked.reason is Reason.CRASHED:
                self._tell(queue, task_id, found.parked)

    def _tell(self, queue: QueueKeys, task_id: bytes, parked: Parked) -> None:
        entry = Entry(parked.lane, b"", task_id, parked.message, parked.lane, parked.crashes)
        run = Run(Source(queue, parked.lane), entry)
        definition: Definition | None = None
        try:
            message = decode_message(parked.message)
            definition = self._routes[message.type]
        except StoredDataError:
            message = UNREADABLE
        context = TaskContext(
            run, message, definition or unknown(message.type), self._clock.now_ms(), self._state()
        )
        self._teller.tell_later("on_archive", context, definition, Reason.CRASHED)
