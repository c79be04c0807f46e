"""Completion scripts for bash, zsh and fish, made from the parser: they name every option, and start no Python.

source <(python launch.py --completion bash)
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from ddp_launch.cli.value_types import FileName, OneOf
from ddp_train.config.options import SECTIONS

COMMANDS = ("launch.py", "ddp-launch")


@dataclass(frozen=True)
class _Option:
    """`takes`: "" for a flag, else the placeholder of the value; `choices`: the accepted values."""

    names: tuple[str, ...]
    help: str
    takes: str = ""
    choices: tuple[str, ...] = ()
    file: bool = False


def script(shell: str, actions: Iterable[argparse.Action]) -> str:
    """The script for a shell of SHELLS; `actions`: the launcher's options."""
    options = (*map(_launcher, dict.fromkeys(actions)), *_trainer())
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](options)


def _launcher(action: argparse.Action) -> _Option:
    """An option of the launcher's parser, as the scripts need it."""
    kind = action.type
    return _Option(
        names=tuple(action.option_strings),
        help=" ".join((action.help or "").split()),
        takes="" if action.nargs in (0, "?") else str(action.metavar or action.dest),
        choices=kind.choices if isinstance(kind, OneOf) else (),
        file=isinstance(kind, FileName),
    )


def _trainer() -> list[_Option]:
    """The options of the bundled trainer, by name alone: reading their help texts would take half a second."""
    names = ("config", "preset", *(field.name for section in SECTIONS.values() for field in fields(section)))
    spelled = ["--" + name.replace("_", "-") for name in names]
    return [_Option((name,), "an option of the bundled trainer", "VALUE", (), True) for name in spelled]


def _words(options: Sequence[_Option], *, valued: bool = False) -> list[str]:
    """All names of the options; with `valued` only of those that take a value."""
    return [name for option in options for name in option.names if option.takes or not valued]


def _bash(options: Sequence[_Option]) -> str:
    """The script for bash."""
    choices = "\n".join(
        f"        {'|'.join(option.names)}) _ddp_launch_words {' '.join(option.choices)}; return ;;"
        for option in options
        if option.choices
    )
    return f"""\
_ddp_launch_words() {{
    COMPREPLY=($(compgen -W "$*" -- "$current"))
}}
_ddp_launch() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} word position value=
    COMPREPLY=()
    # After the program all words are the program's.
    for ((position = 1; position < COMP_CWORD; position++)); do
        word=${{COMP_WORDS[position]}}
        if [[ $word == "=" ]]; then value=1; continue; fi
        if [[ -n $value ]]; then value=; continue; fi
        case $word in
            {"|".join(_words(options, valued=True))}) value=1 ;;
            -m|--module|--) return ;;
            -*) ;;
            *) return ;;
        esac
    done
    [[ $before == "=" ]] && before=${{COMP_WORDS[COMP_CWORD-2]}}
    [[ $current == "=" ]] && current=
    case $before in
{choices}
        {"|".join(_words(options, valued=True))}) return ;;
    esac
    if [[ $current == -* ]]; then
        _ddp_launch_words {" ".join([*_words(options), "-m", "--module"])}
    fi
}}
complete -o default -F _ddp_launch {" ".join(COMMANDS)}
"""


# Replaces characters that are special to zsh's _arguments, and drops apostrophes.
PLAIN = str.maketrans("[]:", "();", "'")


def _zsh(options: Sequence[_Option]) -> str:
    """The script for zsh."""
    lines = []
    for option in options:
        others = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
        for name in option.names:
            mark = "=" if option.takes and name.startswith("--") else ""
            words = f"{others}{name}{mark}[{option.help.translate(PLAIN)}]{_zsh_value(option)}"
            lines.append("    " + shlex.quote(words))
    body = " \\\n".join(lines)
    return f"""\
#compdef {" ".join(COMMANDS)}
_ddp_launch() {{
  _arguments -S \\
{body} \\
    '(1)-m[run a module]:module: ' \\
    '1:program:_files' \\
    '*::arguments of the program:_files'
}}
compdef _ddp_launch {" ".join(COMMANDS)}
"""


def _zsh_value(option: _Option) -> str:
    """How zsh completes the value of an option."""
    if not option.takes:
        return ""
    values = f"({' '.join(option.choices)})" if option.choices else "_files" if option.file else " "
    return f":{option.takes.translate(PLAIN)}:{values}"


def _fish(options: Sequence[_Option]) -> str:
    """The script for fish."""
    lines = []
    for option in options:
        names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
        parts = [*names, f"-d {shlex.quote(option.help)}"]
        if option.takes:
            parts.append("-r" if option.file else "-x")
        if option.choices:
            parts.append(f"-a {shlex.quote(' '.join(option.choices))}")
        lines += [f"complete -c {command} {' '.join(parts)}" for command in COMMANDS]
    return "\n".join(lines) + "\n"
