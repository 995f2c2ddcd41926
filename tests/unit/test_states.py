"""The state table: every state can be reached and left, and nothing goes where it must not."""

from __future__ import annotations

from streamq.model.states import EDGES, Edge, Ends, State

# Delivery is Redis's own: XREADGROUP makes a ready entry an active one.
DELIVERY: tuple[Ends, Ends] = (State.READY, State.ACTIVE)
ALL = frozenset({DELIVERY}.union(*EDGES.values()))


def reachable(start: Ends) -> set[Ends]:
    found: set[Ends] = {start}
    while True:
        more = {to for come, to in ALL if come in found} - found
        if not more:
            return found
        found |= more


def test_every_state_can_be_reached_from_a_new_task() -> None:
    assert reachable(Edge.NEW) == {*State, *Edge} - {Edge.LOST}


def test_what_is_lost_is_found_in_some_state_again() -> None:
    """B3: nothing leads there, since only hands that change the data do."""
    assert not [edge for edge in ALL if edge[1] is Edge.LOST]
    assert {to for come, to in ALL if come is Edge.LOST} <= set(State)


def test_every_state_ends_some_day() -> None:
    for state in State:
        assert Edge.GONE in reachable(state)


def test_a_task_that_is_gone_stays_gone() -> None:
    assert not [edge for edge in ALL if edge[0] is Edge.GONE or edge[1] is Edge.NEW]


def test_only_delivery_makes_a_task_active() -> None:
    """So that nothing runs without a lease."""
    assert [edge for edge in ALL if edge[1] is State.ACTIVE] == [DELIVERY]


def test_a_running_task_cannot_be_deleted_or_purged() -> None:
    """A114: only settling ends an active task."""
    for script in ("delete", "purge", "forward", "enqueue"):
        assert State.ACTIVE not in {come for come, _ in EDGES[script]}


def test_finished_tasks_come_back_by_no_script() -> None:
    for state in (State.COMPLETED, State.ARCHIVED):
        assert {to for come, to in ALL if come is state} == {Edge.GONE}
