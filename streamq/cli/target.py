"""Finds the app that ``module:attribute`` names, and says what is wrong where it names none."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from streamq.app import StreamQ
from streamq.errors import StreamQError, UsageError

EXAMPLE = "shop.tasks:app"


class CannotLoad(StreamQError):
    """The module is there, but importing it failed. The cause is the module's own error."""


def load_app(target: str) -> StreamQ:
    """Import the app. The current directory comes first on the path, as for ``python -m``.

    Raises UsageError when there is no such module or app, CannotLoad when the module's code raises.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(target, f"write it as module:attribute, such as {EXAMPLE}")
    if module_name.endswith(".py") or "/" in module_name:
        raise UsageError(target, f"write the module's name with dots, not its file, such as {EXAMPLE}")
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    return _pick(target, _import(target, module_name), attribute)


def _import(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(target, _no_module(error.name)) from None
        raise CannotLoad(_what_failed(name, error)) from error
    except StreamQError:
        raise  # Its own text says it all.
    except Exception as error:
        raise CannotLoad(_what_failed(name, error)) from error
    except SystemExit as error:
        raise CannotLoad(f"cannot import {name}: it called sys.exit") from error


def _no_module(name: str) -> str:
    parent, _, last = name.rpartition(".")
    paths = list(importlib.import_module(parent).__path__) if parent else [str(Path.cwd())]
    known = [module.name for module in pkgutil.iter_modules(paths)]
    place = f"in package {parent}" if parent else f"in {Path.cwd()} or on Python's path"
    return f"no module {last!r} {place}{_did_you_mean(last, known)}"


def _what_failed(name: str, error: BaseException) -> str:
    """The error in one line, with the place in the user's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename.startswith(str(Path.cwd()))] or frames
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})"
    return f"cannot import {name}: {type(error).__name__}: {' '.join(str(error).split())}{place}"


def _pick(target: str, module: ModuleType, attribute: str) -> StreamQ:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            apps = [name for name, value in vars(module).items() if isinstance(value, StreamQ)]
            known = _did_you_mean(part, apps) or _list(apps)
            raise UsageError(target, f"module {module.__name__} has no {part!r}{known}")
        found = getattr(found, part)
    if not isinstance(found, StreamQ):
        apps = [name for name, value in vars(module).items() if isinstance(value, StreamQ)]
        raise UsageError(target, f"is a {type(found).__name__}, not a StreamQ app{_list(apps)}")
    return found


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _list(apps: list[str]) -> str:
    return f"; its apps: {', '.join(apps)}" if apps else "; it has no StreamQ app at all"
