"""What an installation holds: the packages of the wheel, and commands that work without torch and from any folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from ddp_core import __version__
from tests.integration.conftest import ROOT

PACKAGES = {"ddp_core", "gpu_topology", "ddp_launch", "ddp_train"}


FOLDERS = ("benchmarks", "docs", "examples", "scripts", "tests")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with the byte code that a checkout collects."""
    folder = tmp_path_factory.mktemp("source") / "source"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    for name in (*PACKAGES, *FOLDERS):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("ddp_core", "tests"):
        (folder / name / "__pycache__").mkdir()
        (folder / name / "__pycache__" / "left.pyc").touch()
    return folder


def build(source: Path, code: str) -> None:
    """`code` with setuptools' backend as b, in the folder of the sources, as pip and build do it."""
    code = f"import os, setuptools.build_meta as b; os.chdir({str(source)!r}); {code}"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)


@pytest.fixture(scope="module")
def installed(source: Path) -> Path:
    """A folder with the content of the wheel, built as `pip wheel .` builds it."""
    folder = source.parent
    build(source, f"b.build_wheel({str(folder)!r})")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")  # noqa: S202 (made by the line above)
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
    kinds = {path.suffix for path in installed.rglob("*") if path.is_file() and "dist-info" not in str(path.parent)}
    assert kinds == {".py", ".yaml", ".typed", ".html", ".css", ".js"}
    assert (installed / "ddp_train" / "presets" / "quick.yaml").is_file()
    templates = {path.name for path in (ROOT / "ddp_train" / "report" / "templates").iterdir()}
    assert {path.name for path in (installed / "ddp_train" / "report" / "templates").iterdir()} == templates
    info = next(installed.glob("*.dist-info"))
    assert set((info / "top_level.txt").read_text().split()) == PACKAGES


def test_the_requirements_are_those_of_the_base_and_of_train() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    listed = [line for line in lines if line]
    assert sorted(listed) == sorted([*project["dependencies"], *project["optional-dependencies"]["train"]])
    assert not any(line.startswith("torch") for line in project["dependencies"])
    assert project["version"] == __version__


def test_an_extra_that_repeats_another_has_the_same_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    site = {line for line in extras["docs"] if line.startswith("mkdocs")}
    assert len(site) == 2 and site <= set(extras["dev"])


def test_the_source_archive_holds_what_a_reader_and_a_tester_need(source: Path) -> None:
    build(source, f"b.build_sdist({str(source.parent)!r})")
    with tarfile.open(next(source.parent.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kinds = (".md", ".py", ".toml", ".txt", ".yml", "")
    beside = {path.name for path in ROOT.glob("[!.]*") if path.is_file() and path.suffix in kinds}
    assert beside <= names, "MANIFEST.in names each file beside README.md"
    for folder in (*PACKAGES, *FOLDERS):
        files = {str(path.relative_to(source)) for path in (source / folder).rglob("*") if path.is_file()}
        assert {name for name in files - names if not name.endswith(".pyc")} == set()
    assert not [name for name in names if name.endswith(".pyc") or name.partition("/")[0] in ("data", "runs", "build")]


LINK = re.compile(r"\]\(([^)]+)\)")


def test_the_page_of_an_index_has_no_link_that_leads_nowhere(installed: Path) -> None:
    text = next(installed.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    page = text.partition("\n\n")[2]
    assert page.startswith("# ddp-launch") and "Description-Content-Type: text/markdown" in text
    assert [link for link in LINK.findall(page) if "://" not in link] == []
    assert "中文" not in page and "docs/runs.md" in page, "a line of links alone is left out, a link in a text is not"


def test_the_page_of_an_index_leads_to_the_repository_where_that_is_known(source: Path, tmp_path: Path) -> None:
    there = shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("tests", "docs", "benchmarks"))
    settings = there / "pyproject.toml"
    urls = '[project.urls]\nSource = "https://example.org/ddp-launch/"\n\n[project.scripts]'
    settings.write_text(settings.read_text().replace("[project.scripts]", urls))
    build(there, f"b.prepare_metadata_for_build_wheel({str(tmp_path)!r})")
    links = LINK.findall(next(tmp_path.glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))
    assert "https://example.org/ddp-launch/blob/HEAD/docs/runs.md" in links
    assert "https://example.org/ddp-launch/raw/HEAD/docs/terminal.svg" in links


def test_the_container_is_made_of_what_is_here() -> None:
    """It cannot be built in a test, which has no base image: its instructions are read."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.split() for line in (ROOT / "Containerfile").read_text().splitlines() if line[:1].isupper()]
    assert {line[0] for line in lines} == {"ARG", "FROM", "COPY", "RUN", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}
    copied = {name for line in lines if line[0] == "COPY" for name in line[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {*PACKAGES, "pyproject.toml", "setup.py", "README.md", *project["license-files"]}
    (base,) = [line[1] for line in lines if line[0] == "ARG"]
    version = re.search(r"python:(3\.\d+)", base)
    assert version and f"Programming Language :: Python :: {version[1]}" in project["classifiers"]
    (program,) = [line[1] for line in lines if line[0] == "ENTRYPOINT"]
    assert program.strip('["]') in project["scripts"]


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
