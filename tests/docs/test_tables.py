"""Tables of the documentation that list what the code has: neither may have a row more than the other."""

from __future__ import annotations

import re

from streamq import errors
from streamq.broker.keys import Keys
from streamq.errors import ServerError
from streamq.model.message import FIELDS
from streamq.model.options import CallOptions, TaskOptions
from streamq.model.parked import Reason
from tests.docs.pages import CHECKOUT

DOCS = CHECKOUT / "docs"
TYPES = {"int": int, "str": str, "bytes": bytes, "list": list, "dict": dict}


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under that heading, but for its head."""
    section = re.split(r"^#+ ", (DOCS / page).read_text(), flags=re.MULTILINE)
    [body] = [part for part in section if part.partition("\n")[0] == heading]
    table = re.findall(r"^\|.*\|$", body, flags=re.MULTILINE)[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_wire_format_lists_every_field_of_a_message() -> None:
    told = {
        names(field)[0]: (names(key)[0], TYPES[kind])
        for key, field, kind, _ in rows("wire-format.md", "Message")
    }
    assert told == FIELDS


def test_the_wire_format_names_every_reason() -> None:
    text = (DOCS / "wire-format.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


def test_the_architecture_lists_every_key_of_a_queue() -> None:
    told = {
        name.removeprefix("sq:{q}")
        for cell, *_ in rows("architecture.md", "Storage")
        for name in names(cell)
        if name.startswith(("sq:{q}", ":"))
    }
    known = {key.decode().removeprefix("sq:{q}") for key in Keys().queue("q").every}
    assert told == known | {":stats:<YYYYMMDD>", ":limit:<name>", ":turn:<name>"}


def test_the_guide_says_where_each_option_may_stand() -> None:
    told = {
        option: (task == app == "✓", call == "✓")
        for cell, _, app, task, call in rows("guides/tasks.md", "Options")
        for option in names(cell)
    }
    of_tasks = set(TaskOptions.__annotations__)
    assert told == {
        option: (option in of_tasks, True) for option in {*of_tasks, *CallOptions.__annotations__}
    }


def test_the_guide_has_a_remedy_for_every_error_of_a_server() -> None:
    told = [names(cell)[0] for cell, *_ in rows("guides/connecting.md", "Errors, and what to do")]
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ServerError) and kind is not ServerError
    }
    assert sorted(told) == sorted(kinds)
