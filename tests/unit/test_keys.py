"""Keys: all of one queue carry one hash tag, and no two queues or namespaces meet."""

from __future__ import annotations

import re

import pytest

from streamq.broker.keys import Keys
from streamq.errors import OptionError
from streamq.model.lanes import LANES


def test_all_keys_of_a_queue_share_one_hash_tag() -> None:
    """One slot in Redis Cluster, so that one script may touch them all."""
    queue = Keys("shop").queue("mail")
    keys = [*queue.every, queue.stats_of("20260102"), queue.done("id"), queue.hints.encode()]
    assert {tuple(re.findall(rb"\{([^}]*)\}", key)) for key in keys} == {(b"mail",)}
    assert len(set(keys)) == len(keys)


def test_the_lanes_come_in_the_order_in_which_they_are_emptied() -> None:
    assert tuple(Keys().queue("q").lanes) == LANES


def test_namespaces_and_queues_do_not_meet() -> None:
    """A9: neither by case, nor by clever names."""
    families = [Keys(), Keys("a"), Keys("A"), Keys("a:b"), Keys("queues")]
    seen: dict[bytes, str] = {}
    for keys in families:
        own = [keys.queues, keys.workers, keys.serving, keys.worker("w"), keys.worker("s")]
        for name in ("a", "A", "a:b", "default", "index", "queues"):
            own += keys.queue(name).every
        for key in own:
            assert key not in seen, f"{key!r} belongs to {seen[key]} and {keys.prefix}"
            seen[key] = keys.prefix


def test_keys_are_short() -> None:
    """With each delivered entry they are copied into the append-only file and to the replicas."""
    assert Keys().queue("q").lanes[LANES[0]] == b"sq:{q}:front"
    assert Keys("ns").queue("q").index == b"sq:ns:{q}:index"


@pytest.mark.parametrize("name", ["", "{x}", "a\n", 5, None, "x" * 201])
def test_a_bad_name_makes_no_key(name: object) -> None:
    with pytest.raises(OptionError, match="queue"):
        Keys().queue(name)  # type: ignore[arg-type]
    if name is not None:
        with pytest.raises(OptionError, match="namespace"):
            Keys(name)  # type: ignore[arg-type]


def test_the_same_queue_is_the_same_object() -> None:
    """It is compared by identity on hot paths."""
    assert Keys("a").queue("q") is Keys("a").queue("q")
    assert Keys("a").queue("q") is not Keys("b").queue("q")
