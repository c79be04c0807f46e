"""Loads a user's function, given as package.module:function, for `--model` and `--technique`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError


def load_function(option: str, name: str, **arguments: object) -> Callable[..., Any]:
    """The function `name`, also from the working directory, as with `python -m`.

    arguments: the keywords that the function will be called with; their values are not used. Errors: UserError where
    the function is not found or does not take them.
    """
    module, _, function = name.partition(":")
    if "/" in module or module.startswith(".") or module.endswith(".py"):
        raise UserError(f"{option} {name}: is a path; name the module as in an import, such as package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        imported = importlib.import_module(module) if module else None
    except ModuleNotFoundError as error:
        raise UserError(f"{option} {name}: no module named {error.name!r} here or among the packages") from None
    try:
        found: Callable[..., Any] = getattr(imported, function)
    except AttributeError:
        raise UserError(f"{option} {name}: {module or 'it'} has no function {function!r}") from None
    try:
        signature = inspect.signature(found)
        signature.bind(**arguments) if arguments else signature.bind(None)
    except (TypeError, ValueError) as error:
        expected = ", ".join(f"{key}=..." for key in arguments) or "the run's Context"
        raise UserError(f"{option} {name}: cannot be called with {expected} ({error})") from None
    return found
