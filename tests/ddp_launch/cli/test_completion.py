"""Completion in real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ddp_launch.cli.arguments import make_parser
from ddp_launch.cli.completion import script

BASH = """
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ddp_launch; echo "${COMPREPLY[*]}"; }
try launch.py --po
try launch.py --policy f
try launch.py --policy = la
try launch.py --nproc 2 --policy ''
try launch.py --nproc = 2 --dry
try launch.py --lr 0.1 --epo
try launch.py train.py --po
try launch.py -m module --po
"""
ANSWERS = ["--policy", "fastest", "largest", "largest fastest mixed", "--dry-run", "--epochs", "", ""]


def written(shell: str, folder: Path) -> Path:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    path = folder / f"completion.{shell}"
    path.write_text(script(shell, make_parser()[1].values()))
    return path


def answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash(tmp_path: Path) -> None:
    path = written("bash", tmp_path)
    assert answer("bash", "-c", path.read_text() + BASH).splitlines() == ANSWERS


def test_fish(tmp_path: Path) -> None:
    path = written("fish", tmp_path)
    out = answer("fish", "--no-config", "-c", f"source {path}; complete -C 'launch.py --policy f'")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["fastest"]


def test_zsh(tmp_path: Path) -> None:
    path = written("zsh", tmp_path)
    answer("zsh", "-f", "-c", f"autoload -U compinit; compinit -u -D; source {path}; (( $+_comps[launch.py] ))")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_there(shell: str) -> None:
    text = script(shell, make_parser()[1].values())
    for name in (*make_parser()[1], "--epochs", "--preset"):
        fish = f"-l {name[2:]} " if name.startswith("--") else f"-s {name[1:]} "
        assert (fish if shell == "fish" else name) in text
