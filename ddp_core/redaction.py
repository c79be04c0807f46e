"""Secrets in command lines and in text, hidden before they are shown, kept or sent. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"

SHORTEST = 6
"""Least characters of a secret value that is searched for in text: a shorter one occurs in too many words."""

# --notify and webhooks: anyone who has the address can post to it.
_WORDS = "token|secret|password|passwd|passphrase|credentials?|notify|webhook(?:[-_]?url)?"
_ENDING = rf"(?:{_WORDS}|(?:api|access|private|secret|auth)[-_]?key)"
# The name ends in such a word: --api-key, --hf_token, WANDB_API_KEY; but --tokenizer and --max-tokens do not.
# Hydra's overrides begin with + or ~.
_NAME = re.compile(rf"[-+~]{{0,2}}(?:[\w.-]*[-_.])?{_ENDING}", re.IGNORECASE)
# NAME=, at the start of a word or within one: --export=A=1,HF_TOKEN=...
_ASSIGNED = re.compile(rf"(?:^|[=,]){_NAME.pattern}=", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
# `token=...` and "api_key": "..." within a line, and what comes after `Bearer`.
_VALUE_IN_TEXT = re.compile(rf"(\b[\w.-]{{0,40}}{_ENDING}['\"]?\s?[=:]\s?['\"]?)[^\s'\"&,;]+", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{6,}")
_OF_A_SERVICE = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|tk_|AKIA)[\w-]{12,}")


def redacted(words: Iterable[str]) -> tuple[str, ...]:
    """The words of a command line, with *** for the values of options and variables that are named like secrets.

    `--api-key VALUE`, `--api-key=VALUE`, `API_KEY=VALUE`, `--export=A=B,API_KEY=VALUE` (to the word's end: a value may
    contain commas), and `https://USER:PASSWORD@host`.
    """
    shown: list[str] = []
    hide_next = False
    for word in words:
        if hide_next and not word.startswith("--"):
            shown.append(HIDDEN)
            hide_next = False
            continue
        hide_next = word.startswith("-") and _NAME.fullmatch(word) is not None
        if (secret := _ASSIGNED.search(word)) and secret.end() < len(word):
            word = f"{word[: secret.end()]}{HIDDEN}"
        shown.append(_USER_IN_URL.sub(f"{HIDDEN}@", word))
    return tuple(shown)


class Secrets:
    """The values of the environment variables that are named like secrets, to be hidden wherever they occur."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        named = (value.strip() for name, value in environ.items() if _NAME.fullmatch(name))
        # The longest first: one may be a part of another.
        self._values = sorted({value for value in named if len(value) >= SHORTEST}, key=len, reverse=True)

    def hidden(self, text: str) -> str:
        """The text with *** for these values, for `token=VALUE` and the like, and for what looks like a key."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        text = _USER_IN_URL.sub(f"{HIDDEN}@", text)
        text = _VALUE_IN_TEXT.sub(rf"\1{HIDDEN}", text)
        return _OF_A_SERVICE.sub(HIDDEN, _BEARER.sub(rf"\1 {HIDDEN}", text))
