"""Names: queues, task types, task ids and namespaces are checked before they become part of keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.errors import OptionError
from streamq.model.limits import MAX_NAME_BYTES
from streamq.model.names import check_key_name, check_name, check_task_id

CHECKS: list[Callable[[object], str]] = [
    lambda name: check_name("task_id", name),
    lambda name: check_key_name("task_id", name),
    check_task_id,
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["a", "Mail", "email:send", "日本", "a-b_c.d/e", "x" * MAX_NAME_BYTES])
def test_ordinary_names_pass_as_they_are(check: Callable[[object], str], name: str) -> None:
    """A9: case is kept."""
    assert check(name) == name


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\t\n",
        " a",
        "a ",
        "a\nb",
        "a\x00",
        "a\x7f",
        "\u200b",
        "x" * 201,
        "é" * 101,
        None,
        5,
        b"a",
        ["a"],
    ],
)
def test_other_names_are_refused_by_field(check: Callable[[object], str], name: object) -> None:
    """A19."""
    with pytest.raises(OptionError) as caught:
        check(name)
    assert caught.value.field == "task_id"


@pytest.mark.parametrize("name", ["{", "}", "a{b}c", "{default}"])
def test_a_name_in_keys_has_no_braces(name: str) -> None:
    """They would give the queue another hash tag, and split it over the slots of a cluster."""
    assert check_name("f", name) == name
    with pytest.raises(OptionError, match="hash tag"):
        check_key_name("queue", name)


def test_a_task_id_has_no_spaces() -> None:
    """The scripts' answers are words, with spaces between."""
    assert check_name("type", "send mail") == "send mail"
    with pytest.raises(OptionError, match="spaces"):
        check_task_id("a b")


@given(st.text(max_size=300))
def test_what_passes_is_safe_in_a_key_and_in_a_log(name: str) -> None:
    try:
        checked = check_task_id(name)
    except OptionError:
        return
    assert checked == name
    assert name.split() == [name]
    assert name.isprintable()
    assert 0 < len(name.encode()) <= MAX_NAME_BYTES
