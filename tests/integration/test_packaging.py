"""What an installation holds: the packages of the wheel, and commands that work without torch and from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ddp_core import __version__
from tests.integration.conftest import ROOT

PACKAGES = {"ddp_core", "gpu_topology", "ddp_launch", "ddp_train"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, built from a copy of the sources as `pip wheel .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "launch.py"):
        shutil.copy(ROOT / name, source)
    for package in (*PACKAGES, "benchmarks", "scripts", "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"import os, setuptools.build_meta as b; os.chdir({str(source)!r}); b.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], capture_output=True, check=True, timeout=120)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(folder: Path, installed: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`code` with the installed packages alone, beside what the environment has; the checkout is not on the path."""
    prelude = (
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]; sys.path.append({str(installed)!r})"
    )
    command = [sys.executable, "-c", f"{prelude}\n{code}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


NO_TORCH = """
import importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "PIL", "matplotlib", "tensorboard", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_the_wheel_installs_the_four_packages_and_no_other_name(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == PACKAGES
    assert (installed / "ddp_train" / "presets" / "quick.yaml").is_file()
    info = next(installed.glob("*.dist-info"))
    assert set((info / "top_level.txt").read_text().split()) == PACKAGES


def test_the_requirements_are_those_of_the_base_and_of_train() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    listed = [line for line in lines if line]
    assert sorted(listed) == sorted([*project["dependencies"], *project["optional-dependencies"]["train"]])
    assert not any(line.startswith("torch") for line in project["dependencies"])
    assert project["version"] == __version__


def test_the_topology_tools_and_a_plan_work_without_torch(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('a user script')\n")
    report = "sys.argv = ['gpu-topology', 'report', '--json']; from gpu_topology.cli import main; sys.exit(main())"
    done = run(tmp_path, installed, NO_TORCH + report)
    assert done.returncode == 0 and '"schema"' in done.stdout, done.stderr
    plan = """
sys.argv = ["ddp-launch", "--cpu", "--dry-run", "train.py"]
from ddp_launch.__main__ import program
program()
"""
    done = run(tmp_path, installed, NO_TORCH + plan)
    assert done.returncode == 0 and "train.py" in done.stdout, done.stderr


@pytest.mark.parametrize("package", ["ddp_launch", "ddp_train", "gpu_topology"])
def test_each_command_tells_its_version_from_any_folder(installed: Path, tmp_path: Path, package: str) -> None:
    # Files of the user's own with names that this project once had, or has at the top of a checkout.
    (tmp_path / "launch.py").write_text("raise SystemExit('the wrong launch.py')\n")
    for name in ("launcher", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    module = f"""
import runpy
sys.path.insert(0, "")
sys.argv = ["x", "--version"]
runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
"""
    done = run(tmp_path, installed, module)
    assert done.returncode == 0 and __version__ in done.stdout, done.stderr
