"""What a user installs: sdist -> wheel -> clean environment, and every script can be loaded there."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]

LOAD = """
import hashlib, json, pathlib, streamq
from streamq.broker.scripts import script, script_names
print(json.dumps({
    "home": str(pathlib.Path(streamq.__file__).parent),
    "scripts": {name: hashlib.sha1(script(name).source).hexdigest() for name in script_names()},
}))
"""


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target: str, source: Path, out: Path) -> Path:
    """Build with the hatchling of this environment, which saves making one for the build."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    [made] = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", CHECKOUT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [inner] = folder.iterdir()
    return inner


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, wheel, cwd=folder)
    # A path, not a site folder: an editable install of this checkout in there stays out of sight.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    return python


def test_the_wheel_has_the_package_and_its_metadata_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"streamq"}
    assert "streamq/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_clean_installation_loads_every_script(clean_python: Path) -> None:
    found = json.loads(run(clean_python, "-I", "-c", LOAD, cwd=clean_python.parent))
    assert Path(found["home"]).is_relative_to(clean_python.parents[1])
    shipped = {path.stem for path in (CHECKOUT / "scripts" / "lua").glob("*.lua")}
    assert shipped
    assert set(found["scripts"]) == shipped


def test_the_scripts_installed_are_those_of_the_checkout(clean_python: Path) -> None:
    """And so have the same SHA-1: old and new installations share Redis's script cache."""
    here = json.loads(run(sys.executable, "-c", LOAD, cwd=CHECKOUT))
    there = json.loads(run(clean_python, "-I", "-c", LOAD, cwd=clean_python.parent))
    assert there["scripts"] == here["scripts"]


def test_the_sdist_can_be_worked_on(unpacked: Path) -> None:
    names = ("scripts/lua", "scripts/test", "tests/conftest.py", "README.md", "pyproject.toml", "LICENSE")
    assert [name for name in names if not (unpacked / name).exists()] == []
