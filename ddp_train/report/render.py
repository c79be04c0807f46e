"""Renders templates to one HTML file that loads nothing from elsewhere. A run's data appears in it only as text."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_core import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
MOST_CHARACTERS = 4000
"""Most characters of one text: the middle of a longer one is cut out."""

_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[@-Z\\\\-_])")
"""Terminal sequences that set colors or move the cursor: ECMA-48."""
_UNSAFE = re.compile("[^\t\n\\u0020-\\u007e\\u00a0-\\ud7ff\\ue000-\\ufffd\U00010000-\U0010ffff]")
"""Control characters, and surrogates, which come from bytes that are not text."""
_TURNING = re.compile("[\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\u2028\\u2029]")
"""Marks that change the writing direction, and the line and paragraph separators of Unicode."""


def clean(text: str) -> str:
    """Make text from any source safe to show: no terminal sequences, no control characters, limited length."""
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    return _TURNING.sub("\ufffd", _UNSAFE.sub("\ufffd", _SEQUENCE.sub("", text.replace("\r\n", "\n"))))


def render(template: str, **context: object) -> str:
    """Render a template as a page. Needs jinja2, which torch needs as well."""
    script, style = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    from markupsafe import Markup

    own = {"script": Markup(script), "style": Markup(style), "policy": policy, "version": __version__}  # noqa: S704
    return _environment().get_template(template).render(**own, **context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        """Clean each value that a template prints, except Markup."""
        if isinstance(value, Markup):
            return value
        return "" if value is None else clean(str(value))

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
