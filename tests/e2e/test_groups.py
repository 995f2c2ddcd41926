"""Groups while workers are killed: every member is in exactly one batch, and none is lost."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

import pytest

from tests.e2e.checker import Record
from tests.e2e.scenes import Scene

pytestmark = [pytest.mark.processes, pytest.mark.slow]

ROUNDS = 4
OF_A_ROUND = 2_000
GROUPS = 100
WORKER = ("--lease", "1.5", "--concurrency", "10", "--crash-limit", "50")

Batches = dict[str, list[frozenset[str]]]
"""Batch -> the members of each of its runs."""


def batches_in(records: list[Record]) -> Batches:
    """A run writes all of its members at once, under its own process id, attempt and crashes."""
    runs: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    for record in records:
        if record.kind.startswith("in:"):
            runs[record.kind, record.pid, record.crashes].add(record.task_id)
    batches: Batches = defaultdict(list)
    for (kind, _, _), members in runs.items():
        batches[kind.removeprefix("in:")].append(frozenset(members))
    return batches


def test_every_member_is_in_one_batch_however_often_workers_are_killed(scene: Scene) -> None:
    """B13, B14, I1: kill -9 while thousands of members come into a hundred groups and these become batches.

    A member may run again after a kill, but only as part of the same batch, with the same others.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(scene.worker(*WORKER)) for _ in range(2)]
        for turn in range(ROUNDS):
            with scene.enqueuing("gather", OF_A_ROUND, groups=GROUPS):
                scene.until_ended(turn * OF_A_ROUND + OF_A_ROUND // 4)
                workers[turn % 2].kill()
            workers[turn % 2] = stack.enter_context(scene.worker(*WORKER))
        scene.until_ended(ROUNDS * OF_A_ROUND)
        scene.until_drained()

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    batches = batches_in(scene.journal.read())
    homes: dict[str, set[str]] = defaultdict(set)
    for batch, runs in batches.items():
        assert len(set(runs)) == 1, f"{batch} was run with different members"
        assert 1 <= len(runs[0]) <= 25
        for member in runs[0]:
            homes[member].add(batch)
    assert len(homes) == ROUNDS * OF_A_ROUND
    assert {len(places) for places in homes.values()} == {1}
    assert any(len(runs) > 1 for runs in batches.values()), "no kill hit a batch"
    assert verdict.most_attempts == 1  # a kill spends no retry
    assert scene.counters()["processed"] == len(batches)  # each was settled once
