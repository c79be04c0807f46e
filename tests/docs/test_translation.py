"""README.md and README.zh-CN.md show the same commands, options, figures and links."""

from __future__ import annotations

import re

from tests.docs.pages import Page

ENGLISH, CHINESE = Page("README.md"), Page("README.zh-CN.md")


def code(page: Page) -> list[tuple[str, list[str]]]:
    """The blocks of code without comments."""
    return [
        (language, [re.sub(r"\s+#.*", "", line).rstrip() for line in text.splitlines()])
        for language, text in page.blocks
    ]


def figures(page: Page) -> list[list[str]]:
    """The figures with a decimal point or a percent sign in each row of each table."""
    return [re.findall(r"\d+\.\d+%?|\d+%", line) for line in page.prose.splitlines() if line.startswith("|")]


def test_the_blocks_of_code_are_the_same() -> None:
    assert code(ENGLISH) == code(CHINESE)


def test_the_tables_name_the_same_options_and_figures() -> None:
    assert ENGLISH.rows == CHINESE.rows
    assert figures(ENGLISH) == figures(CHINESE)


def test_the_text_has_the_same_code_in_it() -> None:
    assert sorted(ENGLISH.spans) == sorted(CHINESE.spans)


def test_the_links_and_headings_are_the_same() -> None:
    other = {"README.md", "README.zh-CN.md"}
    assert [link for link in ENGLISH.links if link not in other] == [
        link for link in CHINESE.links if link not in other
    ]
    assert ENGLISH.headings == CHINESE.headings
    assert "README.md" in CHINESE.links


def test_the_translation_is_in_chinese() -> None:
    """No paragraph was left in English."""
    paragraphs = (part for part in CHINESE.prose.split("\n\n") if len(part) > 60)
    assert all(re.search(r"[\u4e00-\u9fff]", paragraph) for paragraph in paragraphs)
