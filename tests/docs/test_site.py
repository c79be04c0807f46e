"""The site of docs/: every page is in its navigation, every anchor exists both there and on a code host, and it builds
without warnings, with search, and with nothing from another host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT, Page, pages

DOCS = sorted((ROOT / "docs").glob("*.md"))


def in_navigation(entry: Any) -> Iterator[str]:
    """The pages of a part of mkdocs.yml's `nav`, in order."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from in_navigation(part)


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(in_navigation(settings["nav"])) == [path.name for path in DOCS]


def anchors(page: Page) -> set[str]:
    """Of each heading the anchor, where a code host and mkdocs agree on it; they count twins and spaces differently."""
    titles = re.findall(r"^#+ (.+)$", page.prose, flags=re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title).strip().lower() for title in titles]
    kept = [re.sub(r"[^\w\s-]", "", title) for title in plain]
    hosts = [re.sub(r"\s", "-", title) for title in kept]
    sites = [re.sub(r"[-\s]+", "-", title.strip()) for title in kept]
    return {host for host, site in zip(hosts, sites, strict=True) if host == site and hosts.count(host) == 1}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in pages()])
def test_every_anchor_leads_to_a_heading(page: Page) -> None:
    wrong = []
    for link in page.links:
        place, mark, anchor = link.partition("#")
        if mark and "://" not in link:
            target = ((ROOT / page.name).parent / place).resolve() if place else ROOT / page.name
            if anchor not in anchors(Page(str(target.relative_to(ROOT)))):
                wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in DOCS])
def test_no_paragraph_is_in_a_list(path: Path) -> None:
    """mkdocs wants four spaces before a paragraph in a list, code hosts two or three."""
    assert re.findall(r"\n\n( {1,3}\S.*)", Page(f"docs/{path.name}").prose) == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "WARNING -" not in done.stderr, done.stderr
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert found == {"index.html" if path.name == "README.md" else f"{path.stem}.html" for path in DOCS}
    foreign = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*stylesheet[^>]*//""")
    assert not [path.name for path in site.glob("*.html") if foreign.search(path.read_text(encoding="utf-8"))]
    assert (site / "repository" / "examples" / "tabular_regression.py").is_file(), "what pages link to outside docs/"
    table = (site / "training.html").read_text(encoding="utf-8")
    assert "--augment none|minimal|balanced|heavy" in table, "code in a table has its | on a code host and here"
