"""`No module named X`: is X the user's own file, part of an installed package, or a package that pip can install?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ddp_core.files import shown
from ddp_core.missing_packages import find_module
from ddp_launch.failure.distributions import ELSEWHERE, distribution

LEVELS_BELOW, LEVELS_ABOVE = 4, 3
MOST_FOLDERS, MOST_SECONDS = 2000, 1.0
NOT_SOURCES = {"site-packages", "node_modules", "__pycache__", "venv", "wandb", "outputs", "runs", "logs", "data"}


def explain(module: str, script: Path | None, *, own_python: bool) -> tuple[str, str]:
    """(meaning, advice). `script`: the program's file, None for a module or where it is not known;
    `own_python`: whether the program ran in the launcher's Python."""
    top, _, rest = module.partition(".")
    if module.endswith(".__main__"):
        package = module.removesuffix(".__main__")
        return (
            f"{package} is a package without a __main__.py: -m cannot run it",
            f"-m {package}.MODULE names a file in it",
        )
    if (own := _own_file(module, script)) is not None:
        return own
    # The first entry of sys.path is the launcher's own folder, which the program does not search.
    spec = find_module(top, sys.path[1:])
    # Several distributions may share a folder that has no __init__.py, such as google.
    shared = spec is not None and spec.origin is None and distribution(module) not in (None, distribution(top))
    if spec is not None and not shared and rest:
        return f"{_version(top)} is installed, and has no {module}", "a misspelled name, or written for another version"
    if spec is not None and not shared and not own_python:
        advice = f"let the program start {sys.executable}, or install {top} for the Python that it starts"
        return f"{top} is installed for {sys.executable}, and not for the Python that the program started", advice
    if (name := distribution(module)) is not None:
        return f"the package {module} is not installed in this Python", f"{sys.executable} -m pip install {name}"
    if top in ELSEWHERE:
        return f"{top} is not installed in this Python", ELSEWHERE[top]
    if top.lstrip("_") in sys.stdlib_module_names or top in sys.stdlib_module_names:
        return f"{top} belongs to Python itself, but this Python lacks it", "use a complete build of Python"
    where = "in this folder" if script is None else "beside or below the script"
    advice = "is it a file of yours? PYTHONPATH=FOLDER python launch.py ... names its folder; else see what the program"
    return f"{top} was not found in this Python, and no file of that name {where}", f"{advice} says it needs"


def explain_file(module: str, script: Path | None) -> tuple[str, str]:
    """As `explain`, for a module that should be a package and is a single file."""
    top = module.partition(".")[0]
    folder = Path.cwd() if script is None else script.parent
    file = next((path for path in (folder / f"{top}.py", Path(f"{top}.py")) if path.is_file()), None)
    meaning = f"{top} is one file, not a folder of modules: it has no {module}"
    if file is None:
        return meaning, "a misspelled name, or you meant another module of that name"
    return meaning, f"{shown(file)} hides the module that you meant: rename it"


def _own_file(module: str, script: Path | None) -> tuple[str, str] | None:
    """(meaning, advice) where the module is among the user's own files, else None."""
    top, *rest = module.split(".")
    looked = Path.cwd() if script is None else script.parent
    for folder in _folders(script):
        whole, found = folder.joinpath(top, *rest), folder / top
        if not (whole.with_name(f"{whole.name}.py").is_file() or _holds_sources(whole)):
            # A data folder may have the name of a package.
            if not found.is_dir() or (distribution(top) is not None and not _holds_sources(found)):
                continue
            if folder == looked and script is not None:
                return f"{shown(found)} is there, and has no {'.'.join(rest) or 'module'}", "a misspelled name?"
        if folder == Path.cwd():
            advice = f"{top} is in this folder, the script in another: PYTHONPATH=. python launch.py ..."
        else:
            advice = f"{top} is in {shown(folder)}: PYTHONPATH={shown(folder)} python launch.py ..."
        return f"{top} is a file of yours in a folder where Python does not look", advice
    return None


def _holds_sources(folder: Path) -> bool:
    """Whether the path is a folder with Python files."""
    return folder.is_dir() and any(folder.glob("*.py"))


def _folders(script: Path | None) -> Iterator[Path]:
    """Folders that may hold the user's own modules: here, beside, above and below the script; MOST_FOLDERS at most."""
    here = Path.cwd()
    beside = here if script is None else script.parent
    yield beside
    if beside != here:
        yield here
    for above in list(beside.parents)[: 0 if script is None else LEVELS_ABOVE]:
        if above not in (here, Path.home(), Path(above.anchor)):
            yield above
    deadline = time.monotonic() + MOST_SECONDS
    for number, (name, folders, _) in enumerate(os.walk(beside)):
        deep = len(Path(name).relative_to(beside).parts) >= LEVELS_BELOW
        folders[:] = [] if deep else [f for f in sorted(folders) if not f.startswith(".") and f not in NOT_SOURCES]
        if number >= MOST_FOLDERS or time.monotonic() > deadline:
            return
        if number:
            yield Path(name)


def _version(top: str) -> str:
    """A package's name with its version, where that is known."""
    name = next(iter(metadata.packages_distributions().get(top, [])), None)
    return top if name is None else f"{name} {metadata.version(name)}"
