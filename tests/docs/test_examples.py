"""Every fenced block of README.md and docs/ is run, or checked in another way for a reason given here.

The blocks of one page belong together: they run in order, in one folder, one namespace and beside one
server of their own, which takes the place of ``localhost:6379``.

    python    run; one whose first line is a file's name, such as ``# tasks.py``, is written to that file
              instead. What ``print(...)  # text`` says must be what is printed ("..." stands for anything)
    console   each line after ``$`` is run; lines without it are the output to be seen
    redis     each line is sent to the server
    ini       a unit file: read, and its command held to the help of ``streamq``
    yaml      an excerpt: must stand in compose.yaml as it is
    text      drawings, layouts and formats: nothing that could run
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from streamq.broker import embedded_guard as guard
from tests.conftest import PrivateServer
from tests.docs.pages import CHECKOUT, Block, blocks, pages
from tests.servers import Server

WITHIN_S = 30.0
"""How long one command may take on a busy machine."""
DOCUMENTED_ADDRESS = "localhost:6379"
PAGES = [page for page in pages() if blocks(page)]


def name_of(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


@pytest.mark.processes
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_of_the_page_do_what_it_says(
    page: Path, short_tmp: Path, private_server: PrivateServer
) -> None:
    server = private_server()
    with Stage(short_tmp, server) as stage:
        for block in blocks(page):
            stage.perform(block)
    denied = server.client().acl_log()
    assert not denied, f"the rights that the page lists do not suffice: {denied}"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_block_has_a_tag_that_says_what_to_do_with_it(page: Path) -> None:
    unknown = [f"{block}: {block.tag!r}" for block in blocks(page) if block.tag not in PERFORMERS]
    assert not unknown


def test_a_block_that_does_not_end_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n")
    with pytest.raises(ValueError, match="does not end"):
        blocks(page)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [target for target in links(page) if not leads_somewhere(page, target)]
    assert not broken


def test_the_index_lists_every_page() -> None:
    docs = CHECKOUT / "docs"
    listed = {(docs / target.partition("#")[0]).resolve() for target in links(docs / "index.md")}
    assert [page for page in docs.rglob("*.md") if page.name != "index.md" and page not in listed] == []


# Links


def links(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def leads_somewhere(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    other = (page.parent / name).resolve() if name else page
    return other.exists() and (not anchor or anchor in anchors(other))


def anchors(page: Path) -> set[str]:
    """Headings as GitHub and others make anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Running


class Stage:
    """Where the blocks of one page are run."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.env = {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
            "XDG_DATA_HOME": str(folder / "data"),
        }
        self._ends = ExitStack()
        self._interpreter: subprocess.Popen[str] | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._ends:
            self._ends.callback(self.stop_worker)
        for locks in (self.folder / "data").glob("streamq/embedded/*/locks"):
            wait_until_free(
                locks
            )  # an embedded server ends after its last user, and may not lose its folder before

    def perform(self, block: Block) -> None:
        PERFORMERS[block.tag](self, block)

    def adapted(self, text: str) -> str:
        return text.replace(DOCUMENTED_ADDRESS, f"127.0.0.1:{self.server.port}")

    # Python

    def python(self, block: Block) -> None:
        source = self.adapted(block.text)
        if block.file_name is not None:
            path = self.folder / block.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            compile(source, str(block), "exec")
            return
        request = {"source": source, "place": name_of(block.page), "line": block.line}
        interpreter = self._interpreter or self._start_interpreter()
        assert interpreter.stdin is not None
        assert interpreter.stdout is not None
        interpreter.stdin.write(json.dumps(request) + "\n")
        interpreter.stdin.flush()
        answer = json.loads(interpreter.stdout.readline() or '{"printed": "", "problem": "it died"}')
        assert answer["problem"] is None, (
            f"{block}: {answer['problem']}\nthe worker said:\n{self.worker_log()}"
        )
        assert_shown(block, block.promises, answer["printed"])

    def _start_interpreter(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-W", "error", str(Path(__file__).with_name("interpreter.py"))]
        process = subprocess.Popen(
            words, cwd=self.folder, env={**self.env, "PYTHONPATH": f"{self.folder}:{CHECKOUT}"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._ends.callback(end_interpreter, process)
        self._interpreter = process
        return process

    # Console

    def console(self, block: Block) -> None:
        assert block.commands, f"{block}: no line begins with '$ '"
        said = "".join(self._command(block, shlex.split(self.adapted(line))) for line in block.commands)
        assert_shown(block, block.shown, said)

    def _command(self, block: Block, words: list[str]) -> str:
        match words:
            case ["python" | "python3", "-m", "venv" | "asyncio", *_]:
                return ""  # makes an environment, or waits for input: nothing of StreamQ's
            case ["python", file]:
                return self._run([sys.executable, "-W", "error", file])
            case ["streamq", "worker", *_, "--help"] | ["streamq", "--help" | "--version"]:
                return self._run([sys.executable, "-m", "streamq", *words[1:]])
            case ["streamq", "worker", *rest]:
                self._start_worker(rest)
                return ""
            case ["streamq", *rest]:
                assert_options_known(rest)  # such as the demo, which tests of its own run
                return ""
            case ["pip", "install", *rest]:
                check_requirements(block, rest)  # would change this environment
                return ""
            case ["git" | "cd" | "." | "systemctl" | "apt-get", *_]:
                return ""  # about the reader's machine, not about StreamQ
            case ["docker", "compose", "up", *services]:
                check_services(block, services)  # needs a Docker engine
                return ""
            case ["kill", number, _]:
                assert f"SIG{number.lstrip('-')}" in signal.Signals.__members__, (
                    block
                )  # whom, only the reader knows
                return ""
            case [script, *_] if script.startswith("scripts/"):
                assert os.access(CHECKOUT / script, os.X_OK), block  # takes minutes
                return ""
        raise AssertionError(f"{block}: no rule says how to run {shlex.join(words)}")

    def _run(self, words: list[str]) -> str:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}\n{self.worker_log()}"
        return done.stdout

    # Workers

    def _start_worker(self, arguments: list[str]) -> None:
        """In the background until the page ends, or starts another one."""
        self.stop_worker()
        log = self.folder / "worker.log"
        with log.open("wb") as file:
            words = [sys.executable, "-m", "streamq", "worker", *arguments]
            self._worker = subprocess.Popen(words, cwd=self.folder, env=self.env, stderr=file)
        deadline = time.monotonic() + WITHIN_S
        while self.worker_log().count("worker started id=") < number_of_processes(arguments):
            assert self._worker.poll() is None, f"the worker ended: {self.worker_log()}"
            assert time.monotonic() < deadline, f"the worker did not start: {self.worker_log()}"
            time.sleep(0.02)

    def stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.terminate()
        try:
            code = worker.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            raise
        assert code == 0, f"the worker ended with {code}: {self.worker_log()}"

    def worker_log(self) -> str:
        path = self.folder / "worker.log"
        return path.read_text() if path.exists() else ""

    # The others

    def redis(self, block: Block) -> None:
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip():
                said = send(self.server, *shlex.split(line))
                assert said == b"OK", f"{block}: {said!r}"

    def ini(self, block: Block) -> None:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.read_string(block.text)
        program, *rest = shlex.split(unit["Service"]["ExecStart"])
        assert program.endswith("/streamq"), block
        assert_options_known(rest)

    def yaml(self, block: Block) -> None:
        assert block.text in (CHECKOUT / "compose.yaml").read_text(), block

    def text(self, block: Block) -> None:
        """Nothing that could run."""


PERFORMERS = {
    "python": Stage.python,
    "console": Stage.console,
    "redis": Stage.redis,
    "ini": Stage.ini,
    "yaml": Stage.yaml,
    "text": Stage.text,
}


def end_interpreter(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        assert process.wait(WITHIN_S) == 0, "the page's interpreter ended with an error"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until_free(locks: Path) -> None:
    """Wait until nothing guards the data of an embedded server any more."""
    guarded = guard.open_lock(locks, guard.GUARD)
    try:
        assert guard.lock_within(guarded, WITHIN_S), "the embedded server does not end"
    finally:
        os.close(guarded)


def assert_shown(block: Block, expected: list[str], said: str) -> None:
    """Each expected line stands in what was said, one after the other."""
    lines: Iterator[str] = iter(said.splitlines())
    for text in expected:
        pattern = re.compile(".*".join(re.escape(part) for part in text.split("...")))
        assert any(pattern.fullmatch(line.strip()) for line in lines), f"{block}: {text!r} not in {said!r}"


def send(server: Server, *words: str) -> object:
    client: Any = server.client()
    return client.execute_command(*words)


def number_of_processes(arguments: list[str]) -> int:
    return int(arguments[arguments.index("--processes") + 1]) if "--processes" in arguments else 1


def assert_options_known(words: list[str]) -> None:
    """The command and its options are those that the command's help tells of."""
    command = [sys.executable, "-m", "streamq", words[0], "--help"]
    told = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"},
        capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[a-z-]+", told.stdout)), words


def check_requirements(block: Block, words: list[str]) -> None:
    """What pip is asked for is this project, with extras that it has."""
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if word in {"-e", "--editable"}:
            continue
        found = re.fullmatch(r"(?:streamq|\.)(?:\[([a-z,]+)\])?", word)
        assert found, f"{block}: {word}"
        assert set((found[1] or "embedded").split(",")) <= set(extras), f"{block}: {word}"


def check_services(block: Block, services: list[str]) -> None:
    known = re.findall(r"^  ([a-z]+):$", (CHECKOUT / "compose.yaml").read_text(), flags=re.MULTILINE)
    assert set(services) <= set(known), block
