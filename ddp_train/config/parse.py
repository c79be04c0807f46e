"""One typed configuration from presets, YAML files and the command line.

Layers, each over the one before: the defaults of options.py, the config.yaml of a run that is
resumed, --preset, --config FILE, the command line. Every mistake is a UserError of one line that names
the option or the file. This module alone touches jsonargparse, and it imports no torch, so that the
launcher finds a wrong option once, before any worker starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from ddp_core import __version__
from ddp_core.errors import UserError
from ddp_train.config.options import SECTIONS, Config
from ddp_train.config.validation import bounds, check_values, resume_target
from ddp_train.config.yaml_file import read_mapping, shown

PRESETS = Path(__file__).resolve().parents[1] / "presets"

# Other spellings: option -> the option, with its value where the spelling implies one.
ALIASES = {"--max-epochs": ("--epochs",), "--no-mixed-precision": ("--amp", "off"), "--learning-rate": ("--lr",)}

# On resume: an option that is given anew, and the one whose old value was found with the old one in view.
REOPENED = {"batch_size_per_rank": "batch_size", "lr": "lr_scaling", "optimizer": "lr"}


def parse(argv: Sequence[str], *, prog: str = "ddp_train/main.py") -> Config:
    """The configuration for a command line.

    Prints the help and raises SystemExit(0) on --help. Errors: UserError, one line.
    """
    parser = _parser(prog)
    words = _normalise(argv)
    options = _parse_words(parser, words)
    layers: list[dict[str, Any]] = []
    if (preset := options.pop("preset", None)) is not None:
        layers.append(_read_yaml(parser, _preset_file(preset), "preset"))
    if (file := options.pop("config", None)) is not None:
        layers.append(_read_yaml(parser, Path(file), "--config"))
    layers.append(options)
    given = {key: value for layer in layers for key, value in layer.items()}
    values = _resumed(parser, given) | given
    config = with_values(Config(given=frozenset(given)), values)
    check_values(config, _texts(words))
    return config


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with the options in `values` (name -> value) replaced. KeyError for an unknown name."""
    left = dict(values)
    sections = {}
    for name, cls in SECTIONS.items():
        mine = {f.name: left.pop(f.name) for f in dataclasses.fields(cls) if f.name in left}
        sections[name] = dataclasses.replace(getattr(config, name), **mine)
    if left:
        raise KeyError(", ".join(left))
    return dataclasses.replace(config, **sections)


def dump(config: Config) -> str:
    """The configuration as YAML that --config takes back, one block per section."""
    blocks = []
    for name, cls in SECTIONS.items():
        body = yaml.safe_dump(dataclasses.asdict(getattr(config, name)), sort_keys=False, allow_unicode=True)
        blocks.append(f"# {_title(cls)}\n{body}")
    return "\n".join(blocks)


def presets() -> tuple[str, ...]:
    """Names that --preset accepts."""
    return tuple(sorted(p.stem for p in PRESETS.glob("*.yaml")))


def _resumed(parser: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that is continued, from config.yaml beside its checkpoint; its folder goes on."""
    target = resume_target(given.get("resume"), given.get("out_dir"))
    if target is None:
        return {}
    beside = target.parent / "config.yaml"
    options = _read_yaml(parser, beside, "config of the resumed run") if beside.is_file() else {}
    for changed, follows in REOPENED.items():
        if changed in given:
            options[follows] = None
    return options | {"out_dir": str(target.parent)}


def _normalise(argv: Sequence[str]) -> list[str]:
    """`--a_b` as `--a-b`, and the other spellings of ALIASES, without touching values."""
    words: list[str] = []
    for word in argv:
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        first, *implied = ALIASES.get(name.replace("_", "-"), (name.replace("_", "-"),))
        words += [first + equals + value, *implied]
    return words


def _texts(words: Sequence[str]) -> dict[str, str]:
    """Option name -> its value as it was written, where there is one."""
    texts = {}
    for word, following in itertools.pairwise((*words, "")):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            texts[name.replace("-", "_")] = value if equals else following
    return texts


def _title(section: type) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _field_docs(section: type) -> dict[str, str]:
    """The docstring below each field, read from the source, as jsonargparse's own help would."""
    import ast
    import inspect

    docs: dict[str, str] = {}
    body = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    for field_node, doc_node in itertools.pairwise(body):
        if isinstance(field_node, ast.AnnAssign) and isinstance(doc_node, ast.Expr):
            docs[field_node.target.id] = doc_node.value.value  # type: ignore[union-attr, attr-defined]
    return docs


def _help_formatter() -> type[argparse.HelpFormatter]:
    class Formatter(argparse.HelpFormatter):
        """Shows a default where there is one; None is explained in each text."""

        def _get_help_string(self, action: argparse.Action) -> str:
            text = (action.help or "").replace("%", "%%")
            plain = action.default is None or action.default is argparse.SUPPRESS
            return text if plain else f"{text} [{str(action.default).lower()}]"

    return Formatter


@cache
def _parser(prog: str) -> Any:
    from jsonargparse import ActionYesNo, ArgumentParser

    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [options]",
        version=f"ddp-train {__version__} (Python {sys.version.split()[0]})",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_help_formatter(),
        description="Train an image classifier with DistributedDataParallel. "
        "Every option is also a YAML key, with _ for -.",
    )
    files = parser.add_argument_group("Files")
    files.add_argument("--config", type=str, metavar="FILE", help="YAML file of options; the command line goes over it")
    files.add_argument("--preset", type=str, metavar="NAME", help=f"Named settings: {', '.join(presets())}")
    for section in SECTIONS.values():
        group = parser.add_argument_group(_title(section))
        docs, hints = _field_docs(section), get_type_hints(section)
        for f in dataclasses.fields(section):
            option = "--" + f.name.replace("_", "-")
            if hints[f.name] is bool:
                group.add_argument(option, action=ActionYesNo(no_prefix="no-"), default=f.default, help=docs[f.name])
            else:
                metavar = _metavar(hints[f.name])
                kind = hints[f.name]
                group.add_argument(option, type=kind, default=f.default, metavar=metavar, help=docs[f.name])
    return parser


def _metavar(kind: Any) -> str:
    """What stands behind the option in the help: the choices, or the sort of value."""
    part = _parts(kind)[0]
    if _is_literal(part):
        return "{" + ",".join(map(str, get_args(part))) + "}"
    return {int: "N", float: "X", str: "TEXT"}[part]


def _parts(kind: Any) -> list[Any]:
    """The alternatives of a union but for None; a single type as itself."""
    alternatives = get_args(kind) if get_args(kind) and not _is_literal(kind) else (kind,)
    return [part for part in alternatives if part is not type(None)]


def _parse_words(parser: Any, words: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    try:
        options: dict[str, Any] = parser.parse_args(words, defaults=False).as_dict()
    except ArgumentError as error:
        raise UserError(_one_line(str(error), _texts(words))) from None
    return options


def _read_yaml(parser: Any, path: Path, what: str) -> dict[str, Any]:
    """The options in a YAML file, checked. Errors: UserError naming the file and the key."""
    from jsonargparse import ArgumentError

    content = read_mapping(path, f"{what} {path}", "option: value")
    options: dict[str, Any] = {}
    for key, value in ((key.replace("-", "_"), value) for key, value in content.items()):
        if key in options:
            raise UserError(f"{what} {path}: {key} stands there twice")
        if key in ("config", "preset"):
            raise UserError(f"{what} {path}: {key} is no key of a file: --{key} is given on the command line")
        if key not in _types():
            raise UserError(f"{what} {path}: unknown key {key!r}{_suggestion(key, list(_types()))}")
        try:
            options |= parser.parse_object({key: value}, defaults=False).as_dict()
        except ArgumentError:
            accepted = _accepted(_types()[key])
            raise UserError(f"{what} {path}: {key} takes {accepted}, not {shown(value)}") from None
    return options


def _preset_file(name: str) -> Path:
    if name not in presets():
        raise UserError(
            f"--preset {name}: unknown{_suggestion(name, list(presets()))}; there are: {', '.join(presets())}"
        )
    return PRESETS / f"{name}.yaml"


def _types() -> dict[str, Any]:
    """Option name -> its type, over all sections."""
    return {k: t for section in SECTIONS.values() for k, t in get_type_hints(section).items()}


def _one_line(message: str, texts: Mapping[str, str]) -> str:
    """jsonargparse's message as one line in our words: the option, the value, what is accepted."""
    if match := re.search(r"unrecognized arguments: (.*)", message, re.S):
        word = (match[1].split() or [""])[0]
        if not word.startswith("-"):
            return f"{word!r} is not an option (see --help)"
        options = ["--" + name.replace("_", "-") for name in (*_types(), "config", "preset")]
        return f"unknown option {word}{_suggestion(word.partition('=')[0], options)} (see --help)"
    if match := re.search(r'Parser key "(\w+)"', message):
        name = match[1]
        value = re.search(r"(?:Given value:|Got value:) (.*)", message, re.S)
        given = texts.get(name) if name in texts else " ".join(value[1].split()) if value else None
        got = "" if given is None else f", not {given!r}"
        accepted = " ".join(filter(None, (_accepted(_types().get(name, str)), bounds(name))))
        return f"--{name.replace('_', '-')} takes {accepted}{got}"
    return " ".join(message.split())


def _accepted(kind: Any) -> str:
    """A type in a user's words."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return " or ".join(_choices(get_args(part)) if _is_literal(part) else names[part] for part in _parts(kind))


def _choices(values: Sequence[object]) -> str:
    return str(values[0]) if len(values) == 1 else "one of " + ", ".join(map(str, values))


def _is_literal(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is Literal


def _suggestion(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}?" if close else ""
