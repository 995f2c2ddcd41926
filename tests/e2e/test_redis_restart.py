"""Redis is killed and comes back in the middle of the work. Neither workers nor producers are restarted."""

from __future__ import annotations

import pytest

from tests.conftest import PrivateServer
from tests.e2e.conftest import SceneOn

pytestmark = [pytest.mark.processes, pytest.mark.slow]

MANY = 20_000
SLOTS = 50


def test_redis_killed_among_many_tasks_loses_none_and_the_workers_go_on(
    scene_on: SceneOn, private_server: PrivateServer
) -> None:
    """F8, I1, I3, A129: with AOF always, every acknowledged task ends, also those enqueued meanwhile."""
    scene = scene_on(private_server(aof=True, fsync="always"))
    words = ("--concurrency", str(SLOTS), "--lease", "2")

    with scene.enqueuing("work", MANY), scene.worker(*words) as one, scene.worker(*words) as other:
        one.until_started()
        other.until_started()
        scene.until_ended(MANY // 10)
        scene.server.kill()
        ended = len(scene.ended())
        assert ended < MANY, "the work was done before Redis was killed"
        scene.server.start()
        scene.until_ended(MANY)
        scene.until_drained()
        assert (one.stop(), other.stop()) == (0, 0)

    verdict = scene.verdict()
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected
    assert verdict.duplicated <= 2 * SLOTS * 2
    assert verdict.most_attempts == 1
    assert scene.counters().get("failed", 0) == 0
