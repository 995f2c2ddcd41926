"""Acquire, renew and free: permits of a semaphore, each with a lease by Redis's clock."""

from __future__ import annotations

import pytest

from streamq.broker import semaphores
from tests.broker.stage import LONG_MS, Stage


class Held:
    """One semaphore, asked by hand."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.key = stage.keys.semaphore("report")

    def acquire(self, token: str, *, limit: int = 2, lease_ms: int = LONG_MS) -> int:
        return self.stage.run(semaphores.acquire(self.key, token, limit, lease_ms))

    def renew(self, token: str, lease_ms: int = LONG_MS) -> bool:
        return self.stage.run(semaphores.renew(self.key, token, lease_ms))

    def free(self, token: str) -> bool:
        return self.stage.run(semaphores.free(self.key, token))

    def run_out(self, token: str, *, ago_ms: int = 1) -> None:
        """Let this holder's lease have ended."""
        assert self.stage.redis.zadd(self.key, {token: self.stage.now_ms() - ago_ms}, xx=True, ch=True)

    def holders(self) -> set[str]:
        return set(self.stage.members(self.key))


@pytest.fixture
def held(stage: Stage) -> Held:
    return Held(stage)


def test_permits_are_given_up_to_the_limit(held: Held) -> None:
    """A145: below the limit yes, at the limit no, with the time until the first lease ends."""
    assert [held.acquire("a", lease_ms=60_000), held.acquire("b")] == [0, 0]
    assert 50_000 <= held.acquire("c") <= 60_000
    assert held.holders() == {"a", "b"}


def test_a_permit_that_was_freed_can_be_taken(held: Held) -> None:
    """A145"""
    held.acquire("a", limit=1)
    assert held.free("a") is True
    assert held.acquire("b", limit=1) == 0
    assert held.free("a") is False
    assert held.holders() == {"b"}


def test_asking_again_takes_no_second_permit(held: Held) -> None:
    """A reply was lost: the same token asks once more."""
    assert [held.acquire("a", limit=1), held.acquire("a", limit=1)] == [0, 0]
    assert held.holders() == {"a"}
    assert held.acquire("b", limit=1) > 0


def test_the_permit_of_a_holder_that_died_is_reclaimed(held: Held) -> None:
    """A146: after its lease, by Redis's clock; other holders keep theirs."""
    held.acquire("alive")
    held.acquire("dead")
    held.run_out("dead")
    assert held.acquire("new") == 0
    assert held.holders() == {"alive", "new"}


def test_renewing_begins_the_lease_anew(held: Held) -> None:
    held.acquire("a", lease_ms=60_000)
    assert held.renew("a", 120_000) is True
    left_ms = held.stage.members(held.key)["a"] - held.stage.now_ms()
    assert 110_000 <= left_ms <= 120_000


def test_a_lost_permit_cannot_be_renewed(held: Held) -> None:
    """A146: its place belongs to another holder."""
    held.acquire("a", limit=1)
    held.run_out("a")
    held.acquire("b", limit=1)
    assert held.renew("a") is False
    assert held.holders() == {"b"}


def test_a_late_renewal_counts_as_long_as_nobody_took_the_place(held: Held) -> None:
    held.acquire("a", limit=1)
    held.run_out("a")
    assert held.renew("a") is True
    assert held.acquire("b", limit=1) > 0


def test_a_semaphore_lives_as_long_as_its_longest_lease(held: Held) -> None:
    """An idle one leaves nothing behind, and a short lease does not end a long one."""
    held.acquire("long", lease_ms=LONG_MS)
    held.acquire("short", lease_ms=10)
    assert LONG_MS - 10_000 <= held.stage.redis.pttl(held.key) <= LONG_MS
    held.renew("short", 10)
    held.renew("long", 2 * LONG_MS)
    assert held.stage.redis.pttl(held.key) > LONG_MS
    held.renew("long")
    assert LONG_MS - 10_000 <= held.stage.redis.pttl(held.key) <= LONG_MS
    held.free("long")
    held.free("short")
    assert not held.stage.all_keys()


def test_a_dead_holder_leaves_nothing_behind(held: Held) -> None:
    """A146"""
    held.acquire("a", lease_ms=10)
    held.stage.until(lambda: not held.stage.all_keys())
