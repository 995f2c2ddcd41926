"""Makes stored schedules follow the code: once at the start, and providers again and again.

Every worker of an app does so; what another one has written already is not written again. Removed is
only what belongs to the same owner, and only in queues that this worker serves: whoever serves a queue
has its code.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable

from streamq.broker.keys import Keys, QueueKeys
from streamq.broker.runner import AsyncRunner
from streamq.broker.timetable import follow
from streamq.clock import monotonic_s
from streamq.errors import ServerError
from streamq.model.schedule import CronEntry, CronProvider, Timetable
from streamq.worker.complaints import Complaints

log = logging.getLogger("streamq.deployer")

_RETRY_S = 5.0
_POLL_S = 60.0
"""How long a provider may take; the others wait."""
_FOREVER_S = 366 * 86_400.0


class Deployer:
    """Deploys the timetable of one worker's app."""

    def __init__(
        self, runner: AsyncRunner, keys: Keys, queues: Collection[QueueKeys], timetable: Timetable
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._served = [queue.name for queue in queues]
        self._timetable = timetable
        self._complaints = Complaints(log)
        self._told: set[tuple[str, str]] = set()
        self._deployed = False
        self._next_s = {provider.owner: 0.0 for provider in timetable.providers}
        """When each provider is asked again."""

    async def run(self) -> None:
        """Deploy, and poll until cancelled. What fails is logged and tried again."""
        while True:
            try:
                await self.run_once()
                self._complaints.clear()
                pause_s = min(self._next_s.values(), default=monotonic_s() + _FOREVER_S) - monotonic_s()
            except ServerError as error:
                self._complaints.note("cannot deploy schedules", error)
                pause_s = _RETRY_S * random.uniform(0.5, 1.5)
            await asyncio.sleep(max(0.0, pause_s))

    async def run_once(self) -> int:
        """Deploy what has not been, ask the providers whose time has come; returns how many entries changed.

        Raises ServerError.
        """
        changed = 0
        if not self._deployed:
            changed += await self._deploy()
            self._deployed = True
        for provider in self._timetable.providers:
            if self._next_s[provider.owner] <= monotonic_s():
                changed += await self._poll(provider)
        return changed

    async def _deploy(self) -> int:
        told = self._timetable
        return await self._follow(
            told.owner, told.entries, lambda owner: told.gone == "remove" and told.owns(owner)
        )

    async def _poll(self, provider: CronProvider) -> int:
        self._next_s[provider.owner] = monotonic_s() + provider.every_ms / 1000
        try:
            async with asyncio.timeout(_POLL_S):
                wished = await provider.poll()
        except Exception:
            # It said nothing, which is not the same as saying that there should be no entries.
            log.exception(
                "a provider of schedules failed; its entries stay as they are owner=%s", provider.owner
            )
            return 0
        return await self._follow(provider.owner, wished, lambda owner: owner == provider.owner)

    async def _follow(self, owner: str, wished: Iterable[CronEntry], is_gone: Callable[[str], bool]) -> int:
        done = await self._runner.walk(follow(self._keys, self._served, owner, wished, is_gone))
        if done.written or done.removed:
            log.info("schedules deployed owner=%s written=%d removed=%d", owner, done.written, done.removed)
        for entry_id in done.refused:
            if (owner, entry_id) not in self._told:
                self._told.add((owner, entry_id))
                log.error(
                    "a schedule was not deployed: its id belongs to another owner id=%s owner=%s",
                    entry_id,
                    owner,
                )
        return done.written + done.removed
