"""``python -m streamq``: the command line without its script on PATH."""

from __future__ import annotations

from streamq.cli.main import main

if __name__ == "__main__":  # Also imported by child processes that multiprocessing spawns.
    main()
