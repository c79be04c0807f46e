"""The programs that are compared: their lines are counted alike, and all of them are there."""

from __future__ import annotations

import pytest

from benchmarks.library_loops import PROGRAMS, lines_of_code
from benchmarks.machine import ROOT


def test_blank_lines_comments_and_the_docstring_are_no_code() -> None:
    assert lines_of_code('"""What\n\nit is."""\n\n# why\nimport os\n\nprint(  # here\n    os\n)\n') == 4


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_each_program_opens_with_what_it_is(program: str) -> None:
    text = (ROOT / "benchmarks" / "loops" / f"{program}.py").read_text()
    assert text.startswith('"""The loop with ') and 10 < lines_of_code(text) < 60
