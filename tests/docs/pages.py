"""What a page of Markdown shows: its code blocks, the spans of code in its text, its tables, links and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("bash", "sh", "")
SEPARATORS = {"|", "||", "&&", ";", "&"}
STARTERS = ("srun", "mpirun")


@dataclass(frozen=True)
class Page:
    """A page, named by its path below the repository's root."""

    name: str

    @cached_property
    def text(self) -> str:
        """The page as it is written."""
        return (ROOT / self.name).read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[tuple[str, str]]:
        """(language, text) of each block of code, fenced or indented by four spaces, in order."""
        found, rest = [], self.text.splitlines()
        while rest:
            line = rest.pop(0)
            if fence := re.match(r"\s*```(\w*)", line):
                end = next(at for at, other in enumerate(rest) if other.strip() == "```")
                found.append((fence[1], "\n".join(rest[:end])))
                del rest[: end + 1]
            elif line.startswith("    "):
                end = next((at for at, other in enumerate(rest) if not other.startswith("    ")), len(rest))
                found.append(("", "\n".join(each[4:] for each in (line, *rest[:end]))))
                del rest[:end]
        return found

    @cached_property
    def prose(self) -> str:
        """The page without its blocks of code and comments."""
        outside = re.sub(r"^\s*```.*?^\s*```$", "", self.text, flags=re.M | re.S)
        outside = re.sub(r"<!--.*?-->", "", outside, flags=re.S)
        return "\n".join(line for line in outside.splitlines() if not line.startswith("    "))

    @property
    def spans(self) -> list[str]:
        """The code in the text, in order; a | that a table needs escaped is unescaped."""
        return [" ".join(span.split()).replace("\\|", "|") for span in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def rows(self) -> list[list[str]]:
        """The code in each row of each table, in order."""
        lines = [line for line in self.prose.splitlines() if line.startswith("|")]
        return [re.findall(r"`([^`]+)`", line) for line in lines]

    @property
    def links(self) -> list[str]:
        """Where its links and pictures lead, in order."""
        return re.findall(r"\]\(([^)]+)\)", self.prose)

    @property
    def headings(self) -> list[int]:
        """The level of each heading, in order."""
        return [len(marks) for marks in re.findall(r"^(#+) ", self.prose, flags=re.M)]

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command in its blocks of shell code."""
        return [words for language, block in self.blocks if language in SHELL for words in split_commands(block)]

    @property
    def named(self) -> list[list[str]]:
        """The words of each command in its text, which may leave out what a reader has to add."""
        spans = (span for span in self.spans if re.match(r"(python|torchrun|bash) ", span))
        return [words for span in spans for words in split_commands(span)]


def pages() -> list[Page]:
    """All that the repository has for its readers."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    return [Page(str(path.relative_to(ROOT))) for path in sorted(files)]


def split_commands(code: str) -> Iterator[list[str]]:
    """The commands in lines of shell code: without comments, and what stands before a program.

    That is variables (`A=1 python ...`), and a manager's words (`srun -N 2 python ...`).
    """
    for line in code.replace("\\\n", " ").splitlines():
        for inner in re.findall(r"\$\(([^()]*)\)", line):
            yield from split_commands(inner)
        try:
            lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "VALUE", line), posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:
            continue  # an apostrophe: output or prose that is set as code
        yield from _commands(words)


def _commands(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word in SEPARATORS:
            if command:
                started = command[0] in STARTERS and "python" in command
                yield command[command.index("python") :] if started else command
            command = []
        elif command or not re.match(r"\w+=", word):
            command.append(word)
