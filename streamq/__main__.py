"""``python -m streamq``: the command line without its script on PATH."""

from __future__ import annotations

from streamq.cli.main import main

main()
