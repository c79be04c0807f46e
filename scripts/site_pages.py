"""A hook of mkdocs.yml for what code hosts and mkdocs read differently: links to files outside docs/, which are copied
into the site, and the escaped | of code in tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
CODE = re.compile(r"`[^`]+`")
COPIES = "repository"
"""The folder of the site for these files."""


def on_files(files: Files, config: Any) -> Files:
    """Add each file that a page links to outside docs/. Missing files are left for mkdocs to report."""
    named = {place for page in files.documentation_pages() for place in OUTSIDE.findall(page.content_string)}
    for place in sorted(named):
        if (ROOT / place).is_file():
            files.append(File.generated(config, f"{COPIES}/{place}", abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with these links, and with `a|b` for the `a\\|b` of a table."""
    lines = OUTSIDE.sub(rf"]({COPIES}/\1", markdown).split("\n")
    return "\n".join(CODE.sub(_unescaped, line) if line.startswith("|") else line for line in lines)


def _unescaped(code: re.Match[str]) -> str:
    """The code without the backslashes that a table needs."""
    return code[0].replace("\\|", "|")
