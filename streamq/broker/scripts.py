"""The Lua files of ``scripts/lua``: found, read once, named by their SHA-1.

An installed wheel carries them in ``streamq/lua``; an editable install has only the checkout's
``scripts/lua``, so the loader looks in the package first and in the checkout second.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "lua", _PACKAGE.parent / "scripts" / "lua")


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic transition. Redis knows it by ``sha``; ``source`` loads it there."""

    name: str
    source: bytes = field(repr=False)
    sha: bytes = field(repr=False)


@cache
def script(name: str) -> Script:
    """The script of that name.

    Raises FileNotFoundError when the installation lacks it.
    """
    for folder in _FOLDERS:
        path = folder / f"{name}.lua"
        if path.is_file():
            source = path.read_bytes()
            return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
    raise FileNotFoundError(f"StreamQ's script {name}.lua is missing from this installation")


def script_names() -> list[str]:
    """The names of every script shipped, sorted."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.lua")})
