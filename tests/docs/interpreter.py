"""Runs a page's Python blocks, in a process of its own: one namespace, one event loop, in order.

Reads one JSON object per line, {"source", "place", "line"}, and answers each with {"printed", "problem"}.
``await`` may stand outside of functions, as in ``python -m asyncio``.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import json
import sys
import traceback
from contextlib import redirect_stdout
from typing import Any


def main() -> None:
    namespace: dict[str, Any] = {"__name__": "__page__"}
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            json.dump(_run(json.loads(line), namespace, runner), sys.stdout)
            sys.stdout.write("\n")
            sys.stdout.flush()


def _run(block: dict[str, Any], namespace: dict[str, Any], runner: asyncio.Runner) -> dict[str, str | None]:
    printed, problem = io.StringIO(), None
    source = "\n" * (block["line"] - 1) + block["source"]  # so that tracebacks name the page's lines
    try:
        with redirect_stdout(printed):
            code = compile(source, block["place"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            result = eval(code, namespace)  # the documentation is ours
            if inspect.iscoroutine(result):
                runner.run(result)
    except BaseException:  # noqa: BLE001  # sys.exit, too, is something that an example must not do
        problem = traceback.format_exc()
    return {"printed": printed.getvalue(), "problem": problem}


if __name__ == "__main__":
    main()
