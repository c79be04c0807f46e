"""One-line errors for packages that a command needs and this Python lacks, or for a torch that is too old, each with
the command that installs them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from ddp_core.errors import UserError, line_of
from ddp_core.files import shown

REQUIREMENTS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
    "rich": "rich",
    "jsonargparse": "jsonargparse",
    "yaml": "PyYAML",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "sklearn": "scikit-learn",
}
"""Import name -> pip name of every package in requirements.txt."""
ROOT = Path(__file__).resolve().parents[1]


def need(*modules: str) -> None:
    """Errors: UserError where one of these is not installed; it names every missing package of requirements.txt."""
    if any(find_spec(module) is None for module in modules):
        raise _mistake()


def find_module(top: str, folders: Sequence[str]) -> ModuleSpec | None:
    """A top-level module in these folders, built into Python or installed with `pip install -e`, without importing it.

    setuptools installs the last kind as a finder of its own, and adds no folder to sys.path.
    """
    others = (finder for finder in sys.meta_path if finder is not PathFinder and hasattr(finder, "find_spec"))
    found = PathFinder.find_spec(top, folders)
    return found or next((spec for finder in others if (spec := finder.find_spec(top, None)) is not None), None)


def torch_version() -> str | None:
    """The version of the torch that this Python would import, without importing it; None where it is unknown."""
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    try:
        text = (Path(found.submodule_search_locations[0]) / "version.py").read_text()
    except (OSError, ValueError):
        text = ""
    if match := re.search(r"^__version__\b[^=\n]*= *'([^']*)'", text, re.M):
        return match[1]
    import importlib.metadata  # slow to import, and version.py nearly always has the version

    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def older(version: str | None, least: tuple[int, int]) -> bool:
    """Whether a version ("2.6.0+cu124") comes before `least`; False for one that cannot be parsed."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return match is not None and (int(match[1]), int(match[2])) < least


def need_torch(least: tuple[int, int], what: str, otherwise: str = "") -> None:
    """Errors: UserError where torch is older than `least`, which `what` needs. `otherwise`: what works without it."""
    version = torch_version()
    if older(version, least):
        number = ".".join(map(str, least))
        pip = f"{sys.executable} -m pip install --upgrade torch torchvision"
        raise UserError(
            f"{what} needs torch {number} or newer, here is {version}: {pip}{otherwise and f'; {otherwise}'}"
        )


def leave_without(*modules: str) -> None:
    """Like `need`, for a program that imports these at the top of its modules: print the line, exit with status 2."""
    try:
        need(*modules)
    except UserError as error:
        print(line_of(error), file=sys.stderr)
        sys.exit(2)


def explained(error: ModuleNotFoundError) -> UserError | None:
    """The error to show where the missing module is one of the requirements; None for any other module."""
    return _mistake() if (error.name or "").partition(".")[0] in REQUIREMENTS else None


def _mistake() -> UserError:
    """The error with the names of the missing packages and the command that installs them."""
    names = [name for module, name in REQUIREMENTS.items() if find_spec(module) is None]
    message = f"not installed in {sys.executable}: {', '.join(names)}"
    pip = f"{sys.executable} -m pip install"
    script, file = ROOT / "scripts" / "run.sh", ROOT / "requirements.txt"
    if not (script.is_file() and file.is_file()):
        return UserError(f"{message}; {pip} {' '.join(names)}")
    run = f"bash {shown(script)} makes an environment with all that is needed and runs there"
    return UserError(f"{message}; {run}, or: {pip} -r {shown(file)}")
