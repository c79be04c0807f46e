"""Secrets in command lines, hidden before a command is shown or kept. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"

_ENDING = r"(?:token|secret|password|passwd|passphrase|credentials?|(?:api|access|private|secret|auth)[-_]?key)"
# The name ends in such a word: --api-key, --hf_token, WANDB_API_KEY; but --tokenizer and --max-tokens do not.
_NAME = re.compile(rf"-{{0,2}}(?:[\w.-]*[-_.])?{_ENDING}", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def redacted(words: Iterable[str]) -> tuple[str, ...]:
    """The words of a command line, with *** for the value of an option or variable whose name ends like a secret's.

    `--api-key VALUE`, `--api-key=VALUE`, `API_KEY=VALUE`, and `https://USER:PASSWORD@host`.
    """
    shown: list[str] = []
    hide_next = False
    for word in words:
        name, equals, value = word.partition("=")
        if hide_next and not word.startswith("--"):
            shown.append(HIDDEN)
            hide_next = False
            continue
        secret = _NAME.fullmatch(name) is not None
        hide_next = secret and not equals and name.startswith("-")
        shown.append(f"{name}={HIDDEN}" if secret and value else _USER_IN_URL.sub(f"{HIDDEN}@", word))
    return tuple(shown)
