"""What pyproject.toml cannot say: README.md as a package index shows it, where no file of the repository is beside it.

With `Source` or `Repository` in project.urls its links lead there; without, their text stays and pictures are left out.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<place>[^)\s]+)\)")


def index_page(readme: str, source: str | None) -> str:
    """`readme` with its relative links and pictures below `source`, the address of the repository.

    source None: of a link the text alone; a line that is nothing but one link or picture is left out.
    """

    def there(link: re.Match[str]) -> str:
        if source is None:
            return "" if link["picture"] else link["text"]
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({source.rstrip('/')}/{kind}/HEAD/{link['place']})"

    lines = readme.splitlines()
    alone = [source is None and LINK.fullmatch(line.strip()) is not None for line in lines]
    kept = [line for line, dropped in zip(lines, alone, strict=True) if not dropped]
    return re.sub(r"\n{3,}", "\n\n", LINK.sub(there, "\n".join(kept))) + "\n"


def source_address() -> str | None:
    """Where the repository is, if pyproject.toml knows."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    return next((urls[name] for name in ("Source", "Repository") if name in urls), None)


setup(
    long_description=index_page((ROOT / "README.md").read_text(encoding="utf-8"), source_address()),
    long_description_content_type="text/markdown",
)
