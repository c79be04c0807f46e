"""A Python without the packages that a command needs: one line that names them and both ways to get them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from ddp_core.errors import UserError, line_of

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
"""Import name -> name for pip, of all that requirements.txt asks for."""
ROOT = Path(__file__).resolve().parents[1]


def need(*modules: str) -> None:
    """Errors: UserError where one of these is not installed; it names all that requirements.txt asks for and is not."""
    if any(find_spec(module) is None for module in modules):
        raise _mistake()


def leave_without(*modules: str) -> None:
    """As `need`, for a program whose own modules import these: prints the line, and exits with status 2."""
    try:
        need(*modules)
    except UserError as error:
        print(line_of(error), file=sys.stderr)
        sys.exit(2)


def explained(error: ModuleNotFoundError) -> UserError | None:
    """The error for a user, where what is missing is one of the requirements; None for any other module."""
    return _mistake() if (error.name or "").partition(".")[0] in REQUIREMENTS else None


def _mistake() -> UserError:
    names = [name for module, name in REQUIREMENTS.items() if find_spec(module) is None]
    message = f"not installed in {sys.executable}: {', '.join(names)}"
    pip = f"{sys.executable} -m pip install"
    script, file = ROOT / "scripts" / "run.sh", ROOT / "requirements.txt"
    if not (script.is_file() and file.is_file()):
        return UserError(f"{message}; {pip} {' '.join(names)}")
    run = f"bash {_shown(script)} makes an environment with all that is needed and runs there"
    return UserError(f"{message}; {run}, or: {pip} -r {_shown(file)}")


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)
