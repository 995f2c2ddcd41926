"""Records outcomes in Redis: in batches, again and again until each is settled or its entry is lost.

Outcomes of finished handlers join the next round while one is under way; there is no timer. A
round is one write: a script call per queue, lane and kind of outcome. Settling is safe to repeat,
because an entry can be acknowledged only once: so after an outage, rounds are simply sent again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamq.broker import working
from streamq.broker.command import Command
from streamq.broker.keys import QueueKeys
from streamq.broker.limiting import MAX_GIVEN_BACK, GivenBack, give_back
from streamq.broker.runner import AsyncRunner
from streamq.broker.working import MAX_SETTLE_TASKS, Settle, Tidied
from streamq.clock import ServerClock, utc_day
from streamq.codec import encode_message
from streamq.errors import ServerError
from streamq.model.cancelling import Cancel
from streamq.model.message import Message
from streamq.model.parked import Parked, Reason
from streamq.worker.complaints import Complaints
from streamq.worker.held import Held, Run, Source
from streamq.worker.outcome import (
    Archive,
    Complete,
    Discard,
    Outcome,
    Postpone,
    PutBack,
    Release,
    Retain,
    RetryLater,
    SetAside,
    after_cancel,
)

log = logging.getLogger("streamq.settler")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_MAX_SETTLE_BYTES = 1 << 20
_CANCELLED = b"cancelled:"

_RETRIED = frozenset({RetryLater, Postpone, PutBack})

_Kind = type[Outcome]
_Bucket = tuple[_Kind, Source]
_Item = tuple[Run, Outcome]


@dataclass(slots=True, eq=False)
class _Batch:
    """One script call and the runs that it settles."""

    command: Command[list[bytes]]
    runs: list[Run]
    after: list[Command[Any]]
    """What is sent right behind it. Nothing depends on it: it only lets others go on sooner."""
    sent: bool = False
    """It went out before without an answer, so "lost" may mean that it was settled then."""


class Settler:
    """Outcomes on their way to Redis. Lives on one event loop."""

    def __init__(
        self, runner: AsyncRunner, held: Held, clock: ServerClock, *, archive_size: int, archive_age_ms: int
    ) -> None:
        self._runner = runner
        self._held = held
        self._clock = clock
        self._archive_size = archive_size
        self._archive_age_ms = archive_age_ms
        self._waiting: dict[_Bucket, list[_Item]] = {}
        self._unanswered: list[_Batch] = []
        self._loop_task: asyncio.Task[None] | None = None
        self._complaints = Complaints(log)
        self.unsettled = 0
        """Outcomes taken that Redis has not confirmed."""
        self.settled = 0
        self.lost = 0

    def settle(self, run: Run, outcome: Outcome) -> None:
        """Take an outcome; it goes out with the next round."""
        run.outcome_recorded = True
        bucket = (type(outcome), run.source)
        items = self._waiting.get(bucket)
        if items is None:
            items = self._waiting[bucket] = []
        items.append((run, outcome))
        self.unsettled += 1
        if self._loop_task is None:
            self._loop_task = asyncio.get_running_loop().create_task(self.run(), name="streamq-settler")

    async def drain(self) -> None:
        """Wait until everything taken so far is settled or lost."""
        while self._loop_task is not None:
            await asyncio.wait([self._loop_task])

    async def abandon(self) -> None:
        """Stop trying. What is not settled stays active in Redis and will be recovered."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])

    async def run(self) -> None:
        """Rounds until nothing waits."""
        pause_s = _FIRST_PAUSE_S
        try:
            while self._waiting or self._unanswered:
                try:
                    await self.run_once()
                    pause_s = _FIRST_PAUSE_S
                    self._complaints.clear()
                except ServerError as error:
                    self._complaints.note("outcomes wait for redis", error)
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                except Exception:
                    # A fault of ours must not end the only one who settles.
                    log.exception("settling failed, trying again unsettled=%d", self.unsettled)
                    await asyncio.sleep(_LONGEST_PAUSE_S)
        finally:
            self._loop_task = None

    async def run_once(self) -> int:
        """Settle what waits now, with one write; returns how many tasks were settled.

        Raises ServerError when Redis did not do all of it; the rest waits as before.
        """
        fresh = [batch for chunk in self._take_chunks() for batch in self._packed(*chunk)]
        batches = self._unanswered + fresh
        # Whatever happens from here on, cancellation included, is held until it is confirmed.
        self._unanswered = batches
        if not batches:
            return 0
        try:
            commands = [batch.command for batch in batches]
            after = [command for batch in batches for command in batch.after]
            replies = (await self._runner.run_all(commands + after))[: len(commands)]
        except ServerError:
            for batch in batches:
                batch.sent = True
            raise
        self._unanswered = []
        before, failure = self.settled, None
        for batch, reply in zip(batches, replies, strict=True):
            if isinstance(reply, BaseException):
                batch.sent, failure = True, reply
                self._unanswered.append(batch)
            else:
                self._confirm(batch, reply)
        if failure is not None:
            raise failure
        return self.settled - before

    def _confirm(self, batch: _Batch, words: list[bytes]) -> None:
        lost = cancelled = 0
        for run, word in zip(batch.runs, words, strict=True):
            if word == b"ok":
                self._held.remove(run)
            elif word.startswith(_CANCELLED):
                # Nobody had told this worker yet. Nothing was done: what the cancel asked for is.
                cancelled += 1
                run.cancel = Cancel.unpack(word.removeprefix(_CANCELLED))
                self.settle(run, after_cancel(run.cancel))
            else:
                self._held.remove(run)
                lost += 1
        self.unsettled -= len(batch.runs)
        self.settled += len(batch.runs) - lost - cancelled
        if lost and not batch.sent:
            self.lost += lost
            log.warning(
                "outcomes refused, their leases were lost count=%d queue=%s",
                lost,
                batch.runs[0].source.queue.name,
            )

    # Batches

    def _take_chunks(self) -> Iterator[tuple[_Bucket, list[_Item]]]:
        """What waits, by bucket, in pieces that one call may carry."""
        waiting, self._waiting = self._waiting, {}
        for bucket, items in waiting.items():
            chunk: list[_Item] = []
            size = 0
            most = 1 if bucket[0] is SetAside else MAX_SETTLE_TASKS
            for item in items:
                size += _size(*item)
                if chunk and (len(chunk) >= most or size > _MAX_SETTLE_BYTES):
                    yield bucket, chunk
                    chunk, size = [], _size(*item)
                chunk.append(item)
            yield bucket, chunk

    def _packed(self, bucket: _Bucket, items: list[_Item]) -> list[_Batch]:
        """One call for all. What cannot be packed must not hold up the rest, nor stay active for ever."""
        try:
            return [self._batch(bucket, items)]
        except Exception:
            if len(items) > 1:
                return [batch for item in items for batch in self._packed(bucket, [item])]
            [(run, _)] = items
            log.exception("outcome cannot be stored; archived as it was id=%s", run.entry.task_id)
            return [self._batch((Archive, run.source), [(run, Archive(None, Reason.FAILED))])]

    def _batch(self, bucket: _Bucket, items: list[_Item]) -> _Batch:
        kind, source = bucket
        runs = [run for run, _ in items]
        after: list[Command[Any]] = [*_given_back(source, runs), *_tidying(source.queue, runs)]
        return _Batch(self._command(kind, source, items), runs, after)

    def _command(self, kind: _Kind, source: Source, items: list[_Item]) -> Command[list[bytes]]:
        queue, lane = source.queue, source.lane
        day = utc_day(self._clock.now_ms())
        entry_ids = [run.entry.entry_id for run, _ in items]
        if kind is Complete:
            return working.complete(queue, lane, day, entry_ids, [run.entry.task_id for run, _ in items])
        if kind is Release:
            return working.release(queue, lane, entry_ids)
        if kind is SetAside:
            return _settle_batch(source, day, *items[0])
        tasks = [_words(run, outcome) for run, outcome in items]
        if kind is Discard:
            return working.discard(queue, lane, day, tasks)
        if kind is Retain:
            return working.retain(queue, lane, day, tasks)
        if kind in _RETRIED:
            return working.retry(queue, lane, day, tasks)
        return working.archive(queue, lane, day, tasks, self._archive_size, self._archive_age_ms)


def _given_back(source: Source, runs: list[Run]) -> Iterator[Command[GivenBack]]:
    """The tokens of tasks with limits, so that others may start at once."""
    tokens = [pair for run in runs if run.tokens for pair in run.tokens]
    for start in range(0, len(tokens), MAX_GIVEN_BACK):
        yield give_back(source.queue, tokens[start : start + MAX_GIVEN_BACK])


def _tidying(queue: QueueKeys, runs: list[Run]) -> Iterator[Command[Tidied]]:
    """What frees the locks of tasks that have ended; should it fail, the janitor does the same later."""
    ids = [id_ for run in runs if run.beside for id_ in run.beside]
    for start in range(0, len(ids), MAX_SETTLE_TASKS):
        yield working.tidy(queue, ids[start : start + MAX_SETTLE_TASKS])


def _settle_batch(source: Source, day: str, run: Run, outcome: Any) -> Command[list[bytes]]:
    retain = outcome.batch if isinstance(outcome.batch, Retain) else None
    words = (
        run.entry.entry_id,
        run.entry.task_id,
        0 if retain is None else retain.retention_ms,
        b"" if retain is None else _parked(run, retain.message),
    )
    aside = [(one.task_id, Parked(run.entry.home, 0, one.stored, one.reason).pack()) for one in outcome.aside]
    return working.settle_batch(source.queue, source.lane, day, Settle(words), aside)


def _words(run: Run, outcome: Any) -> Settle:
    """What the script of this outcome takes for one task."""
    entry_id, task_id = run.entry.entry_id, run.entry.task_id
    match outcome:
        case Retain(message, retention_ms):
            return Settle((entry_id, task_id, retention_ms, _parked(run, message)))
        case RetryLater(message, delay_ms, failed):
            return Settle((entry_id, task_id, delay_ms, int(failed), _parked(run, message)))
        case PutBack(message, delay_ms):
            return Settle((entry_id, task_id, delay_ms, 0, _parked(run, message, Reason.LIMITED)))
        case Postpone(delay_ms):
            return Settle((entry_id, task_id, delay_ms, "c", _parked(run, None)))
        case Archive(message, reason):
            return Settle((entry_id, task_id, _parked(run, message, reason)))
        case Discard(reason):
            return Settle((entry_id, task_id, reason.value))
    raise TypeError(f"{type(outcome).__name__} has no words")


def _parked(run: Run, message: Message | None, reason: Reason | None = None) -> bytes:
    stored = run.entry.message if message is None else encode_message(message)
    return Parked(run.entry.home, run.entry.crashes, stored, reason).pack()


def _size(run: Run, outcome: Any) -> int:
    """About the bytes that this outcome adds to a call, beyond its ids."""
    if isinstance(outcome, Complete | Release | Discard | SetAside):
        return 0
    message = getattr(outcome, "message", None)
    if message is None:
        return len(run.entry.message)
    return len(message.payload) + len(message.result or b"")
