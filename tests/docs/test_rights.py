"""The lists of ACL rights in the guide on connecting, held to what StreamQ really sends."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from streamq.broker.scripts import script, script_names
from tests.docs.pages import CHECKOUT, blocks
from tests.servers import Server

GUIDE = CHECKOUT / "docs" / "guides" / "connecting.md"
PRODUCERS_SCRIPTS = {"enqueue", "enqueue_checked", "find"}
WORKERS_COMMANDS = (
    "producing", "working", "moving", "presence", "auditing", "sweeping", "scheduling", "ordering",
)  # fmt: skip
CONTAINERS = {"XGROUP", "XINFO", "CLIENT"}
ARGUMENTS = {"BLOCK"}
"""Words of commands that stand where a command's name would."""


def listed() -> dict[str, list[str]]:
    """User -> the words of its ACL SETUSER."""
    [block] = [block for block in blocks(GUIDE) if block.tag == "redis"]
    lines = block.text.replace("\\\n", " ").splitlines()
    return {words[2]: words for words in map(shlex.split, lines)}


def called_in(name: str) -> set[str]:
    """The commands that a script may call, as rights."""
    calls = re.findall(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?", script(name).source.decode())
    return {
        f"+{command}|{then}".lower() if command in CONTAINERS else f"+{command}".lower()
        for command, then in calls
    }


def sent_by(module: str) -> list[str]:
    """The native commands that a module of the broker builds, as rights."""
    source = (CHECKOUT / "streamq" / "broker" / f"{module}.py").read_text()
    built = re.findall(r"""\(\s*"([A-Z]+)"(?:, "([A-Z]+)")?""", source)
    return [
        f"+{command}|{then}".lower() if command in CONTAINERS else f"+{command}".lower()
        for command, then in built
        if command not in ARGUMENTS
    ]


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_the_listed_rights_cover_every_command_of_the_users_scripts(user: str) -> None:
    names = PRODUCERS_SCRIPTS if user == "producer" else set(script_names())
    missing = {name: called_in(name) - set(listed()[user]) for name in names}
    assert not any(missing.values()), missing


def test_the_listed_rights_cover_the_commands_that_a_worker_sends_itself() -> None:
    words = [word for name in WORKERS_COMMANDS for word in sent_by(name)]
    assert set(words) - set(listed()["worker"]) == set()


def test_a_worker_may_all_that_a_producer_may() -> None:
    rights = listed()
    assert set(rights["producer"]) - set(rights["worker"]) == {"producer"}


def test_each_server_takes_the_lists_as_they_are(any_server: Server) -> None:
    client: Any = any_server.client()
    for user, words in listed().items():
        try:
            client.execute_command(*words)
        finally:
            client.execute_command("ACL", "DELUSER", user)
