"""The pages of the documentation and their fenced blocks. Reads, runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(`{3,}|~{3,})(.*)$")
_FILE_LINE = re.compile(r"^# ([a-z_]+(?:/[a-z_]+)*\.py)$")
_PROMISE = re.compile(r"^\s*print\(.*\)  # (.+)$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its tag, its text, and the line of the page where the text begins."""

    page: Path
    line: int
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name of the file that the block is, as its first line says."""
        found = _FILE_LINE.match(self.text.partition("\n")[0])
        return found[1] if found else None

    @property
    def promises(self) -> list[str]:
        """What ``print(...)  # text`` says will be printed, in order."""
        return [found[1] for line in self.text.splitlines() if (found := _PROMISE.match(line))]

    @property
    def commands(self) -> list[str]:
        """The commands of a console block: what stands after each ``$``, a line's ``\\`` joined."""
        joined = self.text.replace("\\\n", " ")
        return [line[2:].split("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]

    @property
    def shown(self) -> list[str]:
        """The output that a console block shows: all its other lines."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("$ ")]


def pages() -> list[Path]:
    """README.md and everything under docs/."""
    return [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks in order. Raises ValueError for a fence that does not end."""
    found: list[Block] = []
    fence: str | None = None
    tag, start, lines = "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        match = _FENCE.match(line.strip())
        if fence is None and match:
            fence, tag, start, lines = match[1], match[2].strip(), number + 1, []
        elif fence is not None and line.strip() == fence:
            found.append(Block(page, start, tag, "".join(f"{line}\n" for line in lines)))
            fence = None
        elif fence is not None:
            lines.append(line)
    if fence is not None:
        raise ValueError(f"{page}:{start}: the block does not end")
    return found
