"""Limits over workers that are processes, one of which is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.checker import Record
from tests.e2e.processes import wait_until
from tests.e2e.scenes import Scene

pytestmark = [pytest.mark.processes, pytest.mark.slow]

LEASE = ("--lease", "1.5", "--concurrency", "10")
LIMIT = 2


def most_at_once(records: list[Record], dead: int) -> int:
    """The most handlers that ran at a time, by the order of the records; what the dead left open is over."""
    ended = {(record.pid, record.task_id) for record in records if record.kind == "end"}
    running: set[tuple[int, str]] = set()
    most = 0
    for record in records:
        one = record.pid, record.task_id
        if record.kind == "start" and (record.pid != dead or one in ended):
            running.add(one)
        elif record.kind == "end":
            running.discard(one)
        most = max(most, len(running))
    return most


def test_a_killed_workers_places_come_back_and_the_limit_holds_all_the_while(
    scene: Scene, tmp_path: Path
) -> None:
    """I10: it held all places. Until its tasks are recovered nobody starts, then never more than two."""
    gate = tmp_path / "gate"
    scene.enqueue("pair", LIMIT, until=str(gate))
    with scene.worker(*LEASE) as victim:
        scene.until_started(LIMIT)
        scene.enqueue("pair", 20, until=str(gate))
        with scene.worker(*LEASE) as one, scene.worker(*LEASE) as other:
            one.until_started()
            other.until_started()
            wait_until(lambda: scene.queue().retry == 20, "all others are put back")
            assert scene.journal.count("start") == LIMIT
            victim.kill()
            scene.until_started(2 * LIMIT)
            gate.touch()
            scene.until_ended(LIMIT + 20)
            scene.until_drained()

    records = scene.journal.read()
    assert most_at_once(records, victim.process.pid) == LIMIT
    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert (verdict.most_attempts, verdict.most_crashes) == (1, 1)
    assert scene.counters().get("failed", 0) == 0
