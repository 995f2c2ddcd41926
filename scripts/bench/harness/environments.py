"""Where peers run: a virtual environment each, and a binary for Asynq, all under one cache directory.

The cache ignores itself in git. An environment is made anew when its packages or its interpreter change.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.peers import BENCH, CHECKOUT, Peer

CACHE = CHECKOUT / ".bench"
LOGS = CACHE / "logs"
_NEWEST_FIRST = ("python3.13", "python3.12", "python3.11")
_INSTALL_LIMIT_S = 900
_VERSION_SCRIPT = """
import importlib.metadata as metadata, json
print(json.dumps({d.name.lower().replace("_", "-"): d.version for d in metadata.distributions()}))
"""
_SHOWN = ("redis", "hiredis", "uvloop", "coredis")


class EnvironmentFailed(Exception):
    """A peer could not be installed or built; the others go on."""


@dataclass(frozen=True)
class Environment:
    """How to start one peer's adapter, and what is in it."""

    command: tuple[str, ...]
    directory: Path
    versions: dict[str, str]
    own_variables: dict[str, str] = field(default_factory=dict)

    def variables(self, redis_url: str, board: Path) -> dict[str, str]:
        """The environment variables of an adapter: this process's, plus where Redis and the board are."""
        told = dict(os.environ)
        told.pop("VIRTUAL_ENV", None)
        told["PATH"] = f"{Path(self.command[0]).parent}{os.pathsep}{told.get('PATH', '')}"
        told["PYTHONPATH"] = os.pathsep.join((str(BENCH), str(self.directory)))
        told["PYTHONDONTWRITEBYTECODE"] = "1"
        told["BENCH_REDIS_URL"] = redis_url
        told["BENCH_BOARD"] = str(board)
        return told | self.own_variables


def prepare_cache() -> None:
    """Make the cache directory, hidden from git."""
    LOGS.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")


def find_python(wanted: str | None) -> str:
    """The interpreter for the environments: the wanted one, or the newest of 3.11 to 3.13 that runs."""
    candidates = [wanted] if wanted else [*_NEWEST_FIRST, sys.executable]
    for candidate in candidates:
        path = shutil.which(candidate)
        if path and python_version(path):
            return path
    raise SystemExit(f"no working Python among {', '.join(candidates)}")


def python_version(path: str) -> str:
    """Its version; empty when it does not run, as a version manager's stand-in may not."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        code = "import platform, venv; print(platform.python_version())"
        return subprocess.run(
            [path, "-c", code], capture_output=True, check=True, text=True, timeout=20
        ).stdout.strip()
    return ""


def make_environment(peer: Peer, python: str) -> Environment:
    """Install or build one peer, or find it done. Raises EnvironmentFailed with the tool's last line."""
    if peer.language == "go":
        return _build_go(peer)
    return _make_venv(peer, python)


def _make_venv(peer: Peer, python: str) -> Environment:
    version = python_version(python)
    directory = CACHE / "venvs" / f"{peer.name}-{version}"
    interpreter = directory / "bin" / "python"
    packages = [package.replace("CHECKOUT", str(peer.checkout)) for package in peer.packages]
    stamp, wanted = directory / "installed.json", json.dumps([packages, _project_digest(peer)])
    if not stamp.exists() or stamp.read_text() != wanted:
        _run([python, "-m", "venv", "--clear", str(directory)], "venv")
        _run([str(interpreter), "-m", "pip", "install", "--quiet", *_pip_words(packages)], "pip")
        stamp.write_text(wanted)
    return Environment(
        command=(str(interpreter), str(peer.directory / "adapter.py")),
        directory=peer.directory,
        versions={"python": version, **_installed(interpreter, packages[0])},
        own_variables=peer.variables,
    )


def _pip_words(packages: Sequence[str]) -> list[str]:
    words: list[str] = []
    for package in packages:
        words += ["--editable", package] if os.sep in package else [package]
    return words


def _project_digest(peer: Peer) -> str:
    """Of the checkout's pyproject.toml where it is what is installed: its dependencies may have changed."""
    if not any("CHECKOUT" in package for package in peer.packages):
        return ""
    return hashlib.sha256((peer.checkout / "pyproject.toml").read_bytes()).hexdigest()


def check_out(revision: str) -> Path:
    """The project as it was at that revision of git, in the cache. Raises EnvironmentFailed."""
    git = ["git", "-C", str(CHECKOUT)]
    try:
        told = subprocess.run(
            [*git, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        raise EnvironmentFailed(f"git knows no revision {revision}") from None
    commit = told.stdout.strip()
    directory = CACHE / "revisions" / commit
    if not directory.exists():
        packed = subprocess.run([*git, "archive", commit], capture_output=True, check=True).stdout
        partial = directory.with_name(f"{commit}.part")
        partial.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(directory)
    return directory


def _installed(interpreter: Path, first: str) -> dict[str, str]:
    told = subprocess.run(
        [str(interpreter), "-c", _VERSION_SCRIPT], capture_output=True, check=True, text=True
    )
    found: dict[str, str] = json.loads(told.stdout)
    name = "streamq" if os.sep in first else first.partition("[")[0]
    return {key: found[key] for key in (name, *_SHOWN) if key in found}


def _build_go(peer: Peer) -> Environment:
    go = shutil.which("go")
    if go is None:
        raise EnvironmentFailed("no Go toolchain on PATH")
    binary = CACHE / "bin" / peer.name
    binary.parent.mkdir(parents=True, exist_ok=True)
    _run([go, "build", "-o", str(binary), "."], "go build", cwd=peer.directory)
    return Environment(command=(str(binary),), directory=peer.directory, versions=_go_versions(go, binary))


def _go_versions(go: str, binary: Path) -> dict[str, str]:
    told = subprocess.run(
        [go, "version", "-m", str(binary)], capture_output=True, check=True, text=True
    ).stdout
    versions = {"go": told.split(": ", 1)[1].split()[0].removeprefix("go")}
    for line in told.splitlines():
        words = line.split()
        if words[0] == "dep" and words[1].split("/")[-1] in ("asynq", "v9"):
            versions["asynq" if words[1].endswith("asynq") else "go-redis"] = words[2]
    return versions


def _run(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    try:
        subprocess.run(
            command,
            cwd=cwd,
            check=True,
            text=True,
            timeout=_INSTALL_LIMIT_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stdout.strip().splitlines() or ["no output"]
        raise EnvironmentFailed(f"{what}: {lines[-1][:300]}") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFailed(f"{what}: not done within {_INSTALL_LIMIT_S} s") from None
