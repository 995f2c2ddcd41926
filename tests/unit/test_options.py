"""Options: who wins, what is refused, and which words the refusal has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamq.errors import OptionError, PayloadError, StreamQError
from streamq.model.options import TASK_OPTION_NAMES, UNSET, CallOptions, Options, TaskOptions
from streamq.model.retry import MAX_RETRIES, Fixed, Retry
from streamq.model.unique import Unique

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_nothing_is_set_unless_it_is_said() -> None:
    """Not given and None are different things."""
    assert Options.of({}) == Options()
    assert Options().timeout is UNSET
    assert Options.of({"timeout": None}).timeout is None
    assert repr(UNSET) == "UNSET"


def test_every_option_is_typed_and_checked() -> None:
    """The typed dictionaries that users see are the options there are."""
    names = set(Options.__dataclass_fields__)
    assert set(CallOptions.__annotations__) | set(TaskOptions.__annotations__) == names
    assert {name for name, _ in BAD} | {"retry"} == names
    assert names > TASK_OPTION_NAMES


# Precedence


def test_what_is_said_last_wins() -> None:
    """A7: the same option twice."""
    first = Options.of({"queue": "a", "priority": "low", "retention": 60})
    assert Options.of({"queue": "b"}).over(first) == Options.of(
        {"queue": "b", "priority": "low", "retention": 60}
    )


def test_the_task_gives_defaults_and_the_call_overrides_them() -> None:
    """A14, A15: call over task over app, option by option."""
    app = Options.of({"queue": "app", "retry": 1, "retention": 10})
    task = Options.of({"queue": "task", "retry": 2})
    call = Options.of({"queue": "call"})
    won = call.over(task.over(app))
    assert (won.queue, won.retry, won.retention) == ("call", Retry(2), 10)
    assert call.over(task).over(app) == won
    assert Options().over(task.over(app)).queue == "task"


@pytest.mark.parametrize(
    "name", ["timeout", "retention", "delay", "deadline", "expires", "task_id", "unique"]
)
def test_none_switches_a_limit_off_that_somebody_else_set(name: str) -> None:
    """B22: an explicit None is a choice, not a gap."""
    set_value: Any = {"deadline": NOW, "task_id": "x", "unique": Unique()}.get(name, 10)
    base = Options.of({name: set_value})
    assert getattr(Options.of({name: None}).over(base), name) is None
    assert getattr(Options().over(base), name) == set_value


def test_headers_are_merged_and_the_nearer_win() -> None:
    """A20: header by header."""
    base = Options.of({"headers": {"a": "1", "b": "1"}})
    near = Options.of({"headers": {"b": "2", "c": "2"}})
    assert near.over(base).headers == {"a": "1", "b": "2", "c": "2"}
    assert Options.of({"headers": None}).over(base).headers == {"a": "1", "b": "1"}
    assert Options.of({"headers": {}}).over(base).headers == {"a": "1", "b": "1"}


def test_a_new_delay_replaces_an_old_moment_and_the_other_way_round() -> None:
    """A7."""
    delayed, moment = Options.of({"delay": 5}), Options.of({"at": NOW})
    assert (delayed.over(moment).delay, delayed.over(moment).at) == (5, UNSET)
    assert (moment.over(delayed).delay, moment.over(delayed).at) == (UNSET, NOW)


def test_a_delay_and_a_moment_at_once_have_no_meaning() -> None:
    with pytest.raises(OptionError, match="either delay or at") as caught:
        Options.of({"delay": 5, "at": NOW})
    assert caught.value.field == "delay"
    assert Options.of({"delay": None, "at": NOW}).at == NOW


def test_the_callers_headers_are_copied() -> None:
    """A22: the caller may go on changing its own map."""
    mine = {"a": "1"}
    options = Options.of({"headers": mine})
    mine["a"] = "2"
    mine["b"] = "3"
    assert options.headers == {"a": "1"}


# Refusals: nothing is written, the error names the option

BAD: list[tuple[str, Any]] = [
    ("timeout", 0),
    ("queue", ""),
    ("queue", "   "),
    ("queue", " a"),
    ("queue", "a\n"),
    ("queue", "a\x00b"),
    ("queue", "{a}"),
    ("queue", "x" * 201),
    ("queue", "é" * 101),
    ("queue", None),
    ("queue", b"bytes"),
    ("queue", 5),
    ("priority", "urgent"),
    ("priority", None),
    ("priority", 1),
    ("priority", "f"),
    ("on_expiry", "delete"),
    ("on_expiry", None),
    ("delay", -1),
    ("delay", -0.001),
    ("delay", timedelta(seconds=-1)),
    ("delay", float("nan")),
    ("delay", float("inf")),
    ("delay", "5"),
    ("delay", True),
    ("delay", 60 * 60 * 24 * 366 * 101),
    ("at", datetime(2026, 1, 2)),  # noqa: DTZ001  # no time zone is the point
    ("at", 1_700_000_000),
    ("at", "2026-01-02"),
    ("at", datetime(1969, 12, 31, tzinfo=UTC)),
    ("timeout", -5),
    ("timeout", "30"),
    ("timeout", timedelta(days=-1)),
    ("deadline", datetime(2026, 1, 2)),  # noqa: DTZ001
    ("deadline", 30),
    ("expires", -1),
    ("expires", datetime(2026, 1, 2)),  # noqa: DTZ001
    ("expires", "soon"),
    ("retention", -1),
    ("retention", "a day"),
    ("task_id", ""),
    ("task_id", "a b"),
    ("task_id", " "),
    ("task_id", "x" * 201),
    ("task_id", 7),
    ("on_conflict", "ignore"),
    ("on_conflict", None),
    ("headers", ["a"]),
    ("headers", "a"),
    ("headers", {"a": 1}),
    ("headers", {"a": None}),
    ("headers", {"a": b"1"}),
    ("headers", {1: "a"}),
    ("headers", {"": "a"}),
    ("headers", {"a\n": "a"}),
    ("unique", "until_friday"),
    ("unique", "window"),
    ("unique", 1),
    ("unique", {"mode": "debounce"}),
    ("group", ""),
    ("group", "a\x00b"),
    ("group", 7),
    ("group_rule", 5),
    ("group_rule", {"grace": 1}),
]


@pytest.mark.parametrize("name, value", BAD, ids=[f"{name}-{value!r:.20}" for name, value in BAD])
def test_a_value_without_meaning_is_refused_by_name(name: str, value: Any) -> None:
    """A19: blank, negative, overlong or of a wrong type."""
    with pytest.raises((OptionError, PayloadError)) as caught:
        Options.of({name: value})
    assert caught.value.field.partition(".")[0] == name
    assert str(caught.value).startswith((f"{name}: ", f"{name}."))


@pytest.mark.parametrize("retry", [-1, -2, MAX_RETRIES + 1])
def test_a_negative_number_of_retries_is_refused(retry: int) -> None:
    """A6: Asynq stores 0. StreamQ refuses: a negative number is a mistake, and 0 or None say "no retry"."""
    with pytest.raises(OptionError, match="max_retries"):
        Options.of({"retry": retry})


@pytest.mark.parametrize("retry", ["3", 2.5, True, [1], object()])
def test_retry_is_a_policy_or_a_number(retry: object) -> None:
    with pytest.raises(OptionError) as caught:
        Options.of({"retry": retry})
    assert caught.value.field.startswith("retry")


def test_the_short_ways_to_say_retry() -> None:
    """A5."""
    assert Options.of({"retry": 3}).retry == Retry(max_retries=3)
    assert Options.of({"retry": None}).retry == Retry(max_retries=0)
    assert Options.of({"retry": Retry(2, delay=5)}).retry == Retry(2, delay=Fixed(5))


@pytest.mark.parametrize(
    "wrong, meant",
    [("time_out", "timeout"), ("retries", "retry"), ("Queue", "queue"), ("task-id", "task_id")],
)
def test_a_misspelt_option_is_refused_and_the_right_one_suggested(wrong: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"did you mean {meant}") as caught:
        Options.of({wrong: 1})
    assert caught.value.field == wrong


def test_an_unknown_option_is_refused_with_all_there_are() -> None:
    with pytest.raises(OptionError, match="there are at, deadline, delay"):
        Options.of({"zzz": 1})


def test_a_task_cannot_set_what_belongs_to_one_call() -> None:
    for name in ("delay", "at", "task_id", "deadline", "expires", "on_conflict"):
        with pytest.raises(OptionError, match=rf"unknown option of a task.*task.options\({name}=...\)"):
            Options.of({name: None}, TASK_OPTION_NAMES)


def test_a_call_cannot_set_what_belongs_to_the_handler() -> None:
    for name in ("isolate", "limits", "aggregate", "on_error"):
        with pytest.raises(OptionError, match=rf"unknown option here.*app.task\({name}=...\)"):
            Options.of({name: None})


def test_a_refusal_never_shows_the_value() -> None:
    """Headers may carry tokens, and a wrong option may be anything."""
    secret = "hunter2-" * 40
    for given in ({"headers": {"a": [secret]}}, {"queue": secret}, {"task_id": secret}, {"retry": secret}):
        with pytest.raises(StreamQError) as caught:
            Options.of(given)
        assert "hunter2" not in str(caught.value)
