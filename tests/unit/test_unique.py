"""Unique tasks: what the option means, and which calls have the same key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from streamq.client.dedup import KeyMaker
from streamq.errors import OptionError, PayloadError
from streamq.model.unique import Unique, as_unique


@pytest.mark.parametrize(
    "value, meant",
    [
        (True, Unique()),
        ("debounce", Unique("debounce")),
        (Unique(key="x"), Unique(key="x")),
        (None, None),
        (False, None),
    ],
)
def test_the_option_may_be_said_in_short(value: object, meant: Unique | None) -> None:
    assert as_unique(value) == meant


@pytest.mark.parametrize(
    "given, field",
    [
        ({"mode": "forever"}, "unique"),
        ({"mode": "window"}, "unique.ttl"),
        ({"mode": "window", "ttl": 0}, "unique.ttl"),
        ({"mode": "window", "ttl": -1}, "unique.ttl"),
        ({"ttl": 5}, "unique.ttl"),
        ({"on_conflict": "ignore"}, "unique.on_conflict"),
        ({"key": ""}, "unique.key"),
        ({"key": ()}, "unique.key"),
        ({"key": 7}, "unique.key"),
        ({"key": ["a", 1]}, "unique.key"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(given: Any, field: str) -> None:
    """A19."""
    with pytest.raises(OptionError) as caught:
        Unique(**given)
    assert caught.value.field == field


def test_a_mode_has_a_letter_and_archived_ones_a_capital() -> None:
    assert [Unique(mode).letter for mode in ("until_start", "until_done", "debounce", "keep_last")] == [
        "s", "d", "b", "k",
    ]  # fmt: skip
    window = Unique("window", ttl=timedelta(minutes=1), keep_when_archived=True)
    assert (window.letter, window.window_ms) == ("W", 60_000)


def key(
    *args: Any,
    task: str = "t",
    by: Any = None,
    parameters: tuple[str, ...] | None = ("a", "b"),
    secret: bytes | None = None,
    **kwargs: Any,
) -> str:
    return KeyMaker(Unique(key=by), task, parameters, secret).make(args, kwargs).decode()


def test_a_key_is_short_printable_and_tells_nothing() -> None:
    made = key("secret argument")
    assert len(made) == 20
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made


def test_the_task_and_each_argument_make_the_key() -> None:
    """A31: another type or payload is no duplicate. (Another queue has other keys in Redis.)"""
    keys = [key(1), key(2), key(1, 2), key(1, task="u"), key("1"), key(1.0), key(True), key(None), key([1])]
    assert len(set(keys)) == len(keys)
    assert key(1) == key(1)


def test_the_order_in_which_a_map_was_filled_does_not_matter() -> None:
    """A32: the serialiser is canonical, at every depth, for maps and sets."""
    assert key({"x": 1, "yy": [{"a": 1, "b": 2}]}) == key({"yy": [{"b": 2, "a": 1}], "x": 1})
    assert key({"x": 1}) != key({"x": 2})
    assert key(frozenset("abc")) == key(frozenset("cba"))
    assert key((1, 2)) == key([1, 2]), "a worker gets a list either way"


def test_moments_are_the_same_when_they_are() -> None:
    """As far as they read the same: a moment in another zone is another argument."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert key(noon) == key(datetime(2026, 1, 1, 12, tzinfo=UTC))
    assert key(noon) != key(noon.astimezone(timezone(timedelta(hours=1))))


def test_it_does_not_matter_how_an_argument_was_passed() -> None:
    assert key(1, 2) == key(1, b=2) == key(a=1, b=2) == key(b=2, a=1)
    assert key(1, 2, 3) != key(1, 2)
    assert key(a=1, b=2, parameters=None) == key(1, 2), "by name, from a producer without the handler"
    assert key(1, 2, parameters=None) != key(2, 1, parameters=None)


def test_some_arguments_alone_may_make_the_key() -> None:
    assert key(1, "now", by=["a"]) == key(a=1, b="later", by=("a",))
    assert key(1, by=["a"]) != key(2, by=["a"])
    assert key(1, by=["a"]) != key(1), "all arguments and one of them are different keys"


def test_a_misspelt_argument_is_refused_rather_than_ignored() -> None:
    """Else all tasks would have one key."""
    with pytest.raises(OptionError, match="no argument 'user'"):
        key(1, by=["user"])


def test_a_text_is_the_key_whatever_the_arguments() -> None:
    assert key(1, by="nightly") == key(2, by="nightly") != key(1, by="hourly")
    assert key(1, by="nightly") != key(1, by="nightly", task="u")


def test_a_function_of_the_arguments_makes_the_key() -> None:
    def owner(a: Any, b: Any = None) -> Any:
        return {"owner": a["owner"]}

    assert key({"owner": 1, "n": 1}, by=owner) == key(a={"owner": 1, "n": 2}, b=5, by=owner)
    assert key({"owner": 1}, by=owner) != key({"owner": 2}, by=owner)


def test_a_function_that_fails_is_named_with_its_cause_and_without_its_text() -> None:
    with pytest.raises(OptionError, match=r"^unique.key: the function raised KeyError$") as caught:
        key({}, by=lambda a: a["secret name"])
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("value", [object(), datetime(2026, 1, 1)])  # noqa: DTZ001  # no zone is the point
def test_what_a_function_returns_must_be_plain(value: object) -> None:
    with pytest.raises(PayloadError):
        key(1, by=lambda _: value)


def test_a_secret_makes_another_key_that_none_can_try_out() -> None:
    assert key(1, secret=b"one") == key(1, secret=b"one")
    assert len({key(1, secret=b"one"), key(1, secret=b"two"), key(1)}) == 3
    assert len(key(1, secret=b"one")) == 20
