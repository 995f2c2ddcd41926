"""The checker itself: what it calls lost, unexpected and duplicated."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.checker import Journal, judge


def test_the_checker_tells_lost_unexpected_recovered_and_duplicated_tasks_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write("attempt", "well", "lost", "twice", "unsure", "refused")
    journal.write("ok", "well", "lost", "twice")
    journal.write("unknown", "unsure")
    journal.write("fail", "refused")
    for task_id in ("well", "twice", "unsure", "stranger", "refused"):
        journal.write("start", task_id, attempt=1)
        journal.write("end", task_id, attempt=1)
    journal.write("start", "lost", attempt=1)
    journal.write("start", "twice", attempt=1, crashes=1)
    journal.write("end", "twice", attempt=1, crashes=1)

    verdict = judge(journal.read())
    journal.close()

    assert verdict.lost == {"lost"}
    assert verdict.unexpected == {"stranger"}
    assert verdict.recovered == {"unsure"}
    assert verdict.refused == {"refused"}
    assert verdict.duplicated == 1
    assert (verdict.most_attempts, verdict.most_crashes) == (1, 1)
    assert journal.count("end") == 6
