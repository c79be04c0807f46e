"""Every numeric option of the launcher and of the bundled trainer, with values that are none or out of range.

The options are those that take a 1 and no word, so that a new one is tested without being named here.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddp_core.errors import OptionError, UserError
from ddp_launch.cli.arguments import make_parser
from ddp_launch.cli.options import Program, parse
from ddp_launch.plan.trainer_options import plan_training
from ddp_train.config.options import SECTIONS

ROOT = Path(__file__).parents[2]
VALUES = ("-1", "1e308", "nan", "inf", "", str(2**63), "9" * 5000)
ZERO_IS_LEGAL = {
    "--max-restarts",
    "--node-rank",
    "--grace",
    "--shutdown-timeout",
    "--min-memory",
    "--wait",
    "--log-size",
}
ZERO_IS_LEGAL |= {"--debug-rank", "--local-ranks-filter", "--stall-report", "--stall-kill"}


def accepts(kind: Callable[[str], object] | None, text: str) -> bool:
    try:
        return kind is not None and kind(text) is not None
    except OptionError:
        return False


def numeric(action: Any) -> bool:
    return accepts(action.type, "1") and not accepts(action.type, "x")


LAUNCHERS = sorted(
    name
    for name, action in make_parser()[1].items()
    if name.startswith("--") and action.dest != "tee" and numeric(action)
)
NUMBERS = (int, float)
TRAINERS = sorted(
    "--" + field.name.replace("_", "-")
    for section in SECTIONS.values()
    for field in dataclasses.fields(section)
    if "float" in (kinds := str(field.type).split(" | ")) or ("int" in kinds and "str" not in kinds)
)


def test_the_numeric_options_are_found() -> None:
    assert {"--nproc", "--nnodes", "--grace", "--rdzv-timeout", "--min-memory", "--master-port"} <= set(LAUNCHERS)
    assert {"--epochs", "--lr", "--batch-size", "--num-workers", "--clip-grad"} <= set(TRAINERS)


@pytest.mark.parametrize("option", LAUNCHERS)
@pytest.mark.parametrize("value", VALUES)
def test_the_launchers_numbers(option: str, value: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse([f"{option}={value}"])
    message = str(caught.value)
    assert message.startswith(f"{option} {value!r}: expected"[:500]), "of a very long one the middle is left out"
    assert any(character.isdigit() for character in message.rpartition("expected")[2]), "the range"
    assert "\n" not in message


@pytest.mark.parametrize("option", sorted(set(LAUNCHERS) - ZERO_IS_LEGAL))
def test_a_zero_where_none_is_legal(option: str) -> None:
    with pytest.raises(OptionError, match="expected"):
        parse([option, "0"])


@pytest.mark.parametrize("option", TRAINERS)
def test_the_trainers_numbers(option: str) -> None:
    for value in VALUES:
        with pytest.raises(UserError) as caught:
            plan_training(Program("trainer", "", (f"{option}={value}",)))
        message = str(caught.value)
        assert option in message
        assert value[:500] in message
        assert "at most" in message, "the range"
        assert "\n" not in message


def test_in_under_a_second_without_torch() -> None:
    """A sample as a user meets it; each of the others takes the same way."""
    code = """
import io, contextlib, json, sys, time
from ddp_launch import main as launch
found = []
for argv in (["--nproc", "nan"], ["--grace", "-1"], ["--lr", "inf"], ["--epochs", "9223372036854775808"]):
    err, begin = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(err):
        status = launch.main(argv)
    found.append([argv, status, err.getvalue(), time.monotonic() - begin])
print(json.dumps(found))
assert "torch" not in sys.modules
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for (option, value), status, err, _ in json.loads(done.stdout):
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("error: ")
        assert option in err
        assert value in err
    # All four, with the start of Python, on a machine that may be busy with other things.
    assert time.monotonic() - begin < 20
