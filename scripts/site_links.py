"""A hook of mkdocs.yml: what pages of docs/ link to elsewhere in the repository is copied into the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
COPIES = "repository"
"""The folder of the site for these files."""


def on_files(files: Files, config: Any) -> Files:
    """Add each file that a page links to outside docs/. One that is not there is left for mkdocs to report."""
    named = {place for page in files.documentation_pages() for place in OUTSIDE.findall(page.content_string)}
    for place in sorted(named):
        if (ROOT / place).is_file():
            files.append(File.generated(config, f"{COPIES}/{place}", abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with these links."""
    return OUTSIDE.sub(rf"]({COPIES}/\1", markdown)
