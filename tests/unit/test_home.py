"""Where a child process is told to look for the app, and who is told that it would find nothing."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType

import pytest

from streamq import StreamQ
from streamq.errors import RegistrationError, UsageError
from streamq.worker.home import Home, load, main_free, refuse_in_import
from tests.worker import isolated


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program whose module is ``__main__``, with an app and a handler."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def app_in(module: ModuleType) -> StreamQ:
    app = StreamQ()

    def handler() -> None: ...

    handler.__module__, handler.__qualname__ = module.__name__, "handler"
    module.__dict__.update(app=app, handler=app.task(name="t", isolate=True)(handler))
    return app


def test_an_app_without_isolated_tasks_needs_no_home() -> None:
    assert StreamQ().home() is None


def test_an_app_is_found_by_one_of_its_tasks() -> None:
    home = isolated.app.home()
    assert home is not None
    assert (home.module, home.others, home.main) == ("tests.worker.isolated", (), None)
    assert load(home) is isolated.app
    assert Home.of_frame(home.frame()) == home


def test_an_app_is_found_by_its_own_name_where_handlers_stand_undecorated(main: ModuleType) -> None:
    main.__file__ = "/shop/shop.py"
    app = app_in(main)
    main.__dict__["handler"] = app.tasks["t"].handler
    assert app.home() == Home("__main__", "app", (), ("path", "/shop/shop.py"))


def test_a_script_is_named_by_its_file(main: ModuleType) -> None:
    main.__file__ = "/shop/shop.py"
    assert app_in(main).home() == Home("__main__", "handler", (), ("path", "/shop/shop.py"))


def test_a_module_that_is_run_is_named_by_its_name(main: ModuleType) -> None:
    main.__spec__ = importlib.machinery.ModuleSpec("shop.tasks", None)
    assert app_in(main).home() == Home("__main__", "handler", (), ("name", "shop.tasks"))


def test_a_program_without_a_file_is_refused_with_the_remedy(main: ModuleType) -> None:
    """Typed at a prompt, or read from standard input."""
    with pytest.raises(RegistrationError, match="move the app and its handlers into a module"):
        app_in(main).home()


def test_what_is_not_there_any_more_is_named() -> None:
    with pytest.raises(RegistrationError, match=r"tests\.worker\.isolated\.gone\.app is not there"):
        load(Home("tests.worker.isolated", "gone.app"))


def test_a_module_has_one_name_in_the_program_and_in_its_children() -> None:
    assert main_free("__mp_main__") == "__main__"
    assert main_free("shop") == "shop"


def test_a_worker_is_refused_only_while_a_child_imports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "starts_a_worker.py").write_text("from streamq import StreamQ\nStreamQ().worker()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refuse_in_import()
    with pytest.raises(UsageError, match='if __name__ == "__main__"'):
        load(Home("starts_a_worker", "app"))
    refuse_in_import()
