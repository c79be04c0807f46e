"""Variables that are set, kept and taken away, as text for each shell."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from gpu_topology.environment.settings import Setting
from gpu_topology.environment.shells import as_text

SETTINGS = (
    Setting("A", "x y", "a reason\nof two lines"),
    Setting("B", "2", "set by you", kept=True),
    Setting("C", "", "its keys are in A now", unset=True),
)


def test_a_shell_sets_keeps_and_takes_away() -> None:
    script = f'{as_text(SETTINGS, "sh")}\necho "$A:$B:${{C-none}}"'
    environ = {"PATH": os.defpath, "A": "1", "B": "3", "C": "4"}
    assert subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True).stdout == "x y:3:none\n"


def test_fish() -> None:
    lines = as_text(SETTINGS, "fish").splitlines()
    assert lines[0] == "set -gx A 'x y'  # a reason of two lines"
    assert lines[1].startswith("# kept: set -gx B 2")
    assert lines[2] == "set -e C  # its keys are in A now"


def test_docker_has_nothing_to_take_away() -> None:
    assert as_text(SETTINGS, "docker") == "-e 'A=x y' -e B=2"


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_json_tells_which_is_which(name: str) -> None:
    row = next(row for row in json.loads(as_text(SETTINGS, "json")) if row["name"] == name)
    assert (row["kept"], row["unset"]) == (name == "B", name == "C")
