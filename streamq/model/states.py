"""The states of a task, and the one table of its allowed edges.

Each edge belongs to one script of ``scripts/lua``; a test compares this table with the headers of
the scripts and with the command builders.

            enqueue ──► ready ──fetch──► active ──complete──► gone
               │          ▲               │ │ └────retain───► completed ──purge──► gone
               ▼          │ forward       │ └──────archive──► archived ──purge──► gone
           scheduled ─────┤               │
               retry ─────┘ ◄────retry────┘  (release and recover: active ──► ready)

            enqueue, or forward when due ──► aggregating ──flush_group──► part of a batch, which is ready
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a task is in its life. Each task is in exactly one state."""

    READY = "ready"
    """In a lane, not delivered to a worker yet."""
    ACTIVE = "active"
    """Delivered to a worker, which holds its lease."""
    SCHEDULED = "scheduled"
    """Waits for the time it was enqueued for."""
    AGGREGATING = "aggregating"
    """Waits in a group to become part of a batch."""
    RETRY = "retry"
    """Waits for its next attempt after a failure or a crash."""
    COMPLETED = "completed"
    """Succeeded; kept, with its result, until its retention is over."""
    ARCHIVED = "archived"
    """Dead letter: failed for good, crashed too often or could not be read. Kept for inspection."""


class Edge(StrEnum):
    """The ends of an edge that are not states: before a task is stored, after it is deleted, and astray."""

    NEW = "new"
    GONE = "gone"
    LOST = "lost"
    """Stored, but where nothing would find it: somebody changed the data by hand."""


Ends = State | Edge

EDGES: dict[str, frozenset[tuple[Ends, Ends]]] = {
    "enqueue": frozenset(
        {
            (Edge.NEW, State.READY),
            (Edge.NEW, State.SCHEDULED),
        }
    ),
    "enqueue_checked": frozenset(
        {
            (Edge.NEW, State.READY),
            (Edge.NEW, State.SCHEDULED),
            (Edge.NEW, State.AGGREGATING),
            (State.READY, Edge.GONE),
            (State.SCHEDULED, Edge.GONE),
            (State.RETRY, Edge.GONE),
            (State.AGGREGATING, Edge.GONE),
            (State.COMPLETED, Edge.GONE),
            (State.ARCHIVED, Edge.GONE),
        }
    ),
    "complete": frozenset({(State.ACTIVE, Edge.GONE)}),
    "retain": frozenset({(State.ACTIVE, State.COMPLETED)}),
    "retry": frozenset({(State.ACTIVE, State.RETRY)}),
    "give_back": frozenset({(State.RETRY, State.READY)}),
    "archive": frozenset({(State.ACTIVE, State.ARCHIVED)}),
    "release": frozenset({(State.ACTIVE, State.READY)}),
    "recover": frozenset(
        {
            (State.ACTIVE, State.READY),
            (State.ACTIVE, State.RETRY),
            (State.ACTIVE, State.ARCHIVED),
            (State.ACTIVE, Edge.GONE),
        }
    ),
    "discard": frozenset({(State.ACTIVE, Edge.GONE)}),
    "cancel": frozenset(
        {
            (State.READY, State.ARCHIVED),
            (State.READY, Edge.GONE),
            (State.READY, State.RETRY),
            (State.SCHEDULED, State.ARCHIVED),
            (State.SCHEDULED, Edge.GONE),
            (State.RETRY, State.ARCHIVED),
            (State.RETRY, Edge.GONE),
            (State.AGGREGATING, State.ARCHIVED),
            (State.AGGREGATING, Edge.GONE),
            (State.AGGREGATING, State.SCHEDULED),
            (State.ARCHIVED, Edge.GONE),
        }
    ),
    "forward": frozenset(
        {
            (State.SCHEDULED, State.READY),
            (State.RETRY, State.READY),
            (State.SCHEDULED, State.AGGREGATING),
            (State.RETRY, State.AGGREGATING),
            (State.SCHEDULED, State.ARCHIVED),
            (State.RETRY, State.ARCHIVED),
        }
    ),
    "flush_group": frozenset({(State.AGGREGATING, State.READY)}),
    "settle_batch": frozenset(
        {
            (State.ACTIVE, Edge.GONE),
            (State.ACTIVE, State.COMPLETED),
            (State.ACTIVE, State.ARCHIVED),
        }
    ),
    "audit_lane": frozenset({(Edge.LOST, State.READY), (Edge.LOST, State.ARCHIVED)}),
    "audit_behind": frozenset({(Edge.LOST, State.SCHEDULED)}),
    "audit_entries": frozenset({(Edge.LOST, State.READY), (Edge.LOST, State.ARCHIVED)}),
    "audit_groups": frozenset({(State.AGGREGATING, Edge.GONE)}),
    "audit_parked": frozenset({(Edge.LOST, State.ARCHIVED), (Edge.LOST, State.AGGREGATING)}),
    "audit_sets": frozenset(
        {
            (State.SCHEDULED, Edge.GONE),
            (State.RETRY, Edge.GONE),
            (State.COMPLETED, Edge.GONE),
            (State.ARCHIVED, Edge.GONE),
        }
    ),
    "tidy": frozenset(
        {
            (State.SCHEDULED, State.READY),
            (State.SCHEDULED, Edge.GONE),
            (State.READY, Edge.GONE),
            (State.RETRY, Edge.GONE),
        }
    ),
    "purge": frozenset({(State.COMPLETED, Edge.GONE), (State.ARCHIVED, Edge.GONE)}),
    "remove": frozenset(
        {
            (State.READY, Edge.GONE),
            (State.SCHEDULED, Edge.GONE),
            (State.RETRY, Edge.GONE),
            (State.AGGREGATING, Edge.GONE),
            (State.COMPLETED, Edge.GONE),
            (State.ARCHIVED, Edge.GONE),
        }
    ),
    "delete": frozenset(
        {
            (State.READY, Edge.GONE),
            (State.SCHEDULED, Edge.GONE),
            (State.AGGREGATING, Edge.GONE),
            (State.RETRY, Edge.GONE),
            (State.COMPLETED, Edge.GONE),
            (State.ARCHIVED, Edge.GONE),
        }
    ),
}
"""Script name -> the edges it may take a task along. Delivery (ready -> active) is native XREADGROUP."""
