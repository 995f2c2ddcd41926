"""Where a child process finds the app: by importing what this process has imported.

Nothing is copied from process to process but names. A script that was started as a program is
``__main__`` here and is run again there under the name ``__mp_main__``, as multiprocessing does.
"""

from __future__ import annotations

import functools
import importlib
import runpy
import sys
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from streamq.errors import RegistrationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamq.model.definition import Definition
    from streamq.worker.config import Lifespan

MAIN = "__main__"
MAIN_AGAIN = "__mp_main__"
_TOP_LEVEL = "a child process can import only what stands at the top level of a module"

_importing: ContextVar[bool] = ContextVar("streamq_importing", default=False)


class App(Protocol):
    """What a child process needs of the app."""

    lifespan: Lifespan | None

    def definitions(self) -> dict[str, Definition]: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *exc_info: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Home:
    """An app by names."""

    module: str
    path: str
    """Of the app, or of one of its tasks, inside the module."""
    others: tuple[str, ...] = ()
    """Further modules, which register handlers."""
    main: tuple[str, str] | None = None
    """What ``__main__`` is: ``name`` and a module's name, or ``path`` and a file; None: of no interest."""

    def frame(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "module": self.module,
            "path": self.path,
            "others": list(self.others),
            "main": None if self.main is None else list(self.main),
        }

    @classmethod
    def of_frame(cls, frame: Mapping[str, Any]) -> Home:
        """What ``frame`` made."""
        main = frame["main"]
        return cls(frame["module"], frame["path"], tuple(frame["others"]), main and (main[0], main[1]))


def check_importable(handler: Any) -> None:
    """Raises RegistrationError for a handler that no other process can find."""
    name = _qualname(handler)
    if "<locals>" in name:
        raise RegistrationError(
            "isolate", f"{name} is defined inside a function, and {_TOP_LEVEL}; move it there"
        )


def home_of(app: Any, tasks: Iterable[Any]) -> Home:
    """Where children find the app with these tasks. Raises RegistrationError when they could not."""
    modules = list(dict.fromkeys(_module_name(task.handler) for task in tasks))
    found = _task_anchor(tasks) or _app_anchor(app, modules)
    if found is None:
        raise RegistrationError(
            "isolate", f"the app is no global name of any module, and {_TOP_LEVEL}; keep the app there"
        )
    module, path = found
    others = tuple(name for name in modules if name != module)
    main = _main() if MAIN in {module, *others} else None
    return Home(module, path, others, main)


def load(home: Home) -> App:
    """In the child: import, and find the app. Raises whatever importing raises, or RegistrationError."""
    with _marked():
        if home.main is not None:
            _run_main(*home.main)
        for name in home.others:
            importlib.import_module(name)
        module = importlib.import_module(home.module)
    try:
        found: Any = functools.reduce(getattr, home.path.split("."), module)
    except AttributeError:
        raise RegistrationError(
            "isolate",
            f"{home.module}.{home.path} is not there in a child process; "
            "define it whenever the module is imported",
        ) from None
    app: App = getattr(found, "app", found)
    return app


def refuse_in_import() -> None:
    """Raises UsageError in a child that imports the app: it must not start a worker meanwhile."""
    if _importing.get():
        raise UsageError(
            "worker",
            "a child process imports this module to find its handlers; "
            "keep what starts a worker under 'if __name__ == \"__main__\":'",
        )


def main_free(name: str) -> str:
    """The module's name as the program's own process calls it, so that tasks have one name everywhere."""
    return MAIN if name == MAIN_AGAIN else name


# Finding


def _qualname(handler: Any) -> str:
    return getattr(handler, "__qualname__", type(handler).__qualname__)


def _module_name(handler: Any) -> str:
    name = getattr(handler, "__module__", None) or type(handler).__module__
    return main_free(str(name))


def _task_anchor(tasks: Iterable[Any]) -> tuple[str, str] | None:
    """The place of a decorated handler: what stands there now is the app's task."""
    for task in tasks:
        module, path = _module_name(task.handler), _qualname(task.handler)
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is task:
            return module, path
    return None


def _app_anchor(app: Any, modules: list[str]) -> tuple[str, str] | None:
    for name in dict.fromkeys([*modules, MAIN, *sorted(sys.modules)]):
        for attribute, value in list(getattr(sys.modules.get(name), "__dict__", {}).items()):
            if value is app:
                return main_free(name), attribute
    return None


def _main() -> tuple[str, str]:
    main = sys.modules[MAIN]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != MAIN:
        return "name", str(spec.name)
    file = getattr(main, "__file__", None)
    if file is None:
        raise RegistrationError(
            "isolate",
            "this program has no file that a child process could run; "
            "move the app and its handlers into a module",
        )
    return "path", str(file)


# Importing


@contextmanager
def _marked() -> Iterator[None]:
    token = _importing.set(True)
    try:
        yield
    finally:
        _importing.reset(token)


def _run_main(kind: str, name: str) -> None:
    main = ModuleType(MAIN_AGAIN)
    if kind == "name":
        content = runpy.run_module(name, run_name=MAIN_AGAIN, alter_sys=True)
    else:
        content = runpy.run_path(name, run_name=MAIN_AGAIN)
    main.__dict__.update(content)
    sys.modules[MAIN] = sys.modules[MAIN_AGAIN] = main
