"""The contract of every command line: one line that begins `error:`, exit status 2."""

from __future__ import annotations

import pytest

from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError


def status_of(words: list[str]) -> int:
    parser = CommandLine(prog="tool")
    parser.add_argument("--count", type=int)
    return exit_status(lambda: int(parser.parse_args(words).count == 3) - 1)


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--count", "x"], ["--coun", "3"], ["more"]):
        assert status_of(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.endswith("(see tool --help)\n") and err.count("\n") == 1
    assert status_of(["--count", "3"]) == 0


def test_every_end_has_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def mistaken() -> None:
        raise UserError("no such file", "give another")

    assert exit_status(interrupted) == 130
    assert exit_status(mistaken) == 2
    assert capsys.readouterr().err == "error: no such file; give another\n"
    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 7) == 7
