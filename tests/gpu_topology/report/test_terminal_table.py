"""Text and tables set for a terminal: nothing is lost, nothing is wider than the screen, nothing escapes."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_topology.report.terminal_table import Column, Screen, display_width


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def set_text(text, width, **more):
    screen = Screen(width)
    screen.text(text, **more)
    return screen.lines


@given(st.text(alphabet="ab, 漢é\n", max_size=80), st.integers(2, 30))
def test_wrapping_keeps_every_word_in_order_within_the_width(text, width):
    lines = set_text(text, width)
    assert all(display_width(line) <= width for line in lines)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    whole = " ".join(lines).split()
    assert all(word in whole for word in text.split() if display_width(word) <= width)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("one two three", 80, ["one two three"]),
        ("GPU-0123456789", 6, ["GPU-01", "234567", "89"]),
        ("a 0123456789", 6, ["a", "012345", "6789"]),
        ("0123456789 a", 6, ["012345", "6789 a"]),
        ("漢字漢字", 5, ["漢字", "漢字"]),
        ("0,1,2,10,11,12", 8, ["0,1,2,", "10,11,12"]),
        ("GPU-0a,GPU-012345678,1", 8, ["GPU-0a,", "GPU-0123", "45678,1"]),
        ("GPUS=GPU-0a,GPU-1b", 8, ["GPUS=", "GPU-0a,", "GPU-1b"]),
        ("two\nlines", 80, ["two", "lines"]),
        ("", 80, [""]),
    ],
)
def test_lines_break_between_words_and_inside_those_that_are_too_long(text, width, lines):
    assert set_text(text, width) == lines


def test_an_indent_and_a_margin_are_kept_on_every_line():
    assert set_text("one two three", 10, indent=2, margin=1) == ["  one two", "  three"]


def test_what_a_terminal_would_obey_is_shown_as_a_replacement():
    assert set_text("GPU \x1b[2J\x07\r0", 80) == ["GPU \ufffd[2J\ufffd\ufffd0"]


def test_the_widest_of_the_columns_that_wrap_gives_way():
    screen = Screen(20)
    columns = [Column("Name", wraps=True), Column("n", right=True), Column("Why", wraps=True)]
    screen.table(columns, [["ab", "1", "because it is so"], ["abc", "12", "no"]])
    assert screen.lines == [
        " Name   n  Why",
        "────────────────────",
        " ab     1  because",
        "           it is so",
        " abc   12  no",
    ]


def test_a_column_may_have_a_greatest_width_and_a_table_no_titles():
    screen = Screen(80, rule="-")
    screen.table([Column(wraps=True, most=3), Column()], [["abcdef", "x"]], left=2, gap=1)
    assert screen.lines == ["  abc x", "  def"]


def test_styles_do_not_count_as_characters_and_survive_the_wrapping():
    screen = Screen(7, colour=True)
    screen.table([Column(wraps=True)], [[[("one two", "bold red"), (" three", "")]]], left=0)
    assert screen.lines == ["\x1b[1;31mone two\x1b[0m", "three"]


@pytest.mark.parametrize(
    ("environ", "terminal", "colour"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colour_where_a_person_looks_and_wants_it(environ, terminal, colour):
    screen = Screen.of(Terminal() if terminal else io.StringIO(), environ)
    assert screen.colour is colour


def test_the_width_is_that_of_columns_and_the_rule_is_ascii_where_the_stream_is():
    assert Screen.of(io.StringIO(), {"COLUMNS": "33"}).width == 33
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert Screen.of(stream, {"COLUMNS": "none"}).rule == "-"
    assert Screen.of(Terminal(), {}).rule == "─"
