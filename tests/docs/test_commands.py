"""Every command of this project that a page shows is one that its program accepts, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddp_launch.cli.options import option_names
from ddp_launch.cli.torchrun_compat import NO_EFFECT
from ddp_train.config.options import Config, to_dict
from ddp_train.config.parse import ALIASES, presets
from ddp_train.tune.space import read_space
from tests.docs.pages import ROOT, Page, pages, split_commands
from tests.docs.real_parsers import Wrong, check, help_of, is_ours

PAGES = [pytest.param(page, id=page.name) for page in pages()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages' commands read while they are parsed."""
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "checkpoint-latest.pt").touch()
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "ddp_train").symlink_to(ROOT / "ddp_train")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: Page, folder: Path) -> None:
    wrong = mistakes(page.commands) + [line for line in mistakes(page.named) if "arguments are required" not in line]
    assert not wrong, "\n".join(wrong)


def mistakes(commands: list[list[str]]) -> list[str]:
    """What the parsers say against those that are this project's, one line each."""
    found = []
    for words in filter(is_ours, commands):
        try:
            check(words)
        except Wrong as error:
            found.append(f"{' '.join(words)}: {error}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: Page) -> None:
    places = [link.partition("#")[0] for link in page.links if "://" not in link]
    here = (ROOT / page.name).parent
    assert not [place for place in places if place and not (here / place).exists()]


@pytest.mark.parametrize(
    "command",
    [
        "python launch.py --gpu 0",
        "python launch.py --auto --preset quickest",
        "python ddp_train/main.py --epochs many",
        "python -m ddp_launch --gpu 0",
        "python -m ddp_launch report",
        "python -m ddp_launch report runs/first --to page.html",
        "python -m ddp_train --epochs many",
        "ddp-launch --auto --preset quickest",
        "gpu-topology look",
        "torchrun --nproc_per_node=2 ddp_train/main.py --learning 1",
        "torchrun --nprocs 2 ddp_train/main.py",
        "python -m gpu_topology monitor --second 1",
        "python -m gpu_topology look",
        "python -m ddp_train.plots schedules",
        "python -m ddp_train.tune search space.yaml",
        "python -m ddp_train.tune search space.yaml --out runs/search -- --nprocs 2",
        "python -m ddp_train.diagnostics.precision --repeat 3",
        "python -m ddp_train.nothing",
        "bash scripts/nothing.sh",
    ],
)
def test_a_wrong_command_is_found(command: str, folder: Path) -> None:
    (words,) = split_commands(command)
    assert is_ours(words)
    with pytest.raises(Wrong):
        check(words)


@pytest.mark.parametrize("page", [page for page in PAGES if page.id != "CHANGELOG.md"])
def test_every_path_that_a_text_names_exists(page: Page) -> None:
    """Folders, files and modules of this repository; the changelog also names those of the past."""
    assert [name for name in paths(page) if not any((ROOT / name).parent.glob(Path(name).name))] == []


def paths(page: Page) -> set[str]:
    """The paths below the repository's root in the text and blocks of a page, `package.module` as a path."""
    tops = "ddp_core|ddp_launch|ddp_train|gpu_topology|benchmarks|scripts|tests"
    code = " ".join([*page.spans, *(block for _, block in page.blocks)])
    files = re.findall(rf"(?<![\w./-])((?:{tops})/[\w/.*-]+|[\w-]+\.(?:py|toml)(?![\w.]))", code)
    modules = re.findall(rf"-m ((?:{tops})[\w.]*)", code)
    found = {name.rstrip("/.") for name in files if not name.startswith(YOURS)}
    for module in modules:
        path = module.replace(".", "/")
        found.add(path if (ROOT / path).is_dir() else f"{path}.py")
    return found


YOURS = ("train.py", "script.py", "my_script.py")
"""Names that stand for a program of the reader's."""


def test_commands_are_found_in_pipes_substitutions_and_after_variables() -> None:
    code = (
        'A=1 python one.py  # why\neval "$(python two.py)" && CUDA=$(python three.py) python four.py | python five.py'
    )
    code += "\nsrun --ntasks 2 python six.py"
    found = [words for words in split_commands(code) if words[0] == "python"]
    assert sorted(words[1] for words in found) == ["five.py", "four.py", "one.py", "six.py", "three.py", "two.py"]


# Options of other programs, and of a script, that the pages name by themselves.
FOREIGN = {"--whole", "--ipc=host", "--shm-size=8g", "--cap-add=SYS_NICE", "--requeue"}
FOREIGN |= {"--rehearse", "--only", "--budget", "--data"}  # scripts/gpu_session.sh


def test_every_option_that_a_text_names_exists() -> None:
    known = known_options() | FOREIGN | set(NO_EFFECT)
    for page in pages():
        named = {span.split()[0].rstrip(":") for span in page.spans if span.startswith("--") and span != "--"}
        unknown = {name for name in named if name not in known and name.partition("=")[0] not in known}
        assert not unknown, f"{page.name}: {sorted(unknown)}"


def known_options() -> set[str]:
    """Every option of every program here, as their helps list them."""
    names = to_dict(Config())
    trainer = {f"--{prefix}{name.replace('_', '-')}" for name in names for prefix in ("", "no-")}
    return trainer | set(ALIASES) | {"--config", "--preset", "--help"} | set(option_names()) | in_help()


def in_help() -> set[str]:
    """The options in the helps of the programs with commands."""
    programs = [
        *(
            ["gpu_topology", command]
            for command in ("report", "select", "env", "snapshot", "draw", "monitor", "verify")
        ),
        ["ddp_train.tune", "search"],
        ["ddp_train.diagnostics.precision"],
        ["ddp_train.evaluate"],
        ["ddp_train.export"],
        ["ddp_train.predict"],
        ["scripts.optimize_gpu"],
    ]
    return {option for words in programs for option in re.findall(r"--[\w-]+", help_of(*words))}


def test_the_space_of_the_search_is_one(tmp_path: Path) -> None:
    (space,) = [text for language, text in Page("docs/training.md").blocks if language == "yaml"]
    (tmp_path / "space.yaml").write_text(space)
    assert {"lr", "augment"} <= set(read_space(tmp_path / "space.yaml"))


def test_every_preset_is_in_the_table() -> None:
    named = {span for row in Page("docs/training.md").rows for span in row}
    assert set(presets()) <= named
