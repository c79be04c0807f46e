"""One typed configuration from presets, YAML files and the command line.

Layers, each over the one before: the defaults in `options/`, the config.yaml of a run that is resumed, --preset,
--config FILE, the command line. Every mistake is a UserError of one line that names the option or the file. This module
alone touches jsonargparse, and it imports no torch, so that the launcher finds a wrong option once, before any worker
starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

from ddp_core import __version__, missing_packages
from ddp_core.errors import UserError
from ddp_train.config.declaration import flag
from ddp_train.config.model_families import default_optimizer
from ddp_train.config.options import SECTIONS, Config, declared
from ddp_train.config.other_names import MEANT
from ddp_train.config.validation import check, resume_target
from ddp_train.config.yaml_file import read_mapping, shown

PRESETS = Path(__file__).resolve().parents[1] / "presets"
FILES = {"config": "YAML file of options; the command line overrides it", "preset": "Named settings"}

# Other spelling -> the option, and its value where the spelling implies one.
ALIASES = {"--max-epochs": ("--epochs",), "--no-mixed-precision": ("--amp", "off"), "--learning-rate": ("--lr",)}

# On resume: option that the user sets anew -> option that depends on it and is therefore chosen again.
DEPENDENT = {"batch_size_per_rank": "batch_size", "lr": "lr_scaling", "optimizer": "lr"}


def parse(argv: Sequence[str], *, prog: str = "ddp_train/main.py", complete: bool = True) -> Config:
    """The configuration for a command line. complete: False accepts options without the ones, or the packages, that
    they depend on.

    Prints the help or the version and raises SystemExit(0) on --help or --version. Errors: UserError, one line.
    """
    missing_packages.need("jsonargparse", "yaml")
    if {"-h", "--help"} & set(argv):
        _parser(prog).print_help()
        raise SystemExit(0)
    if "--version" in argv:
        print(f"ddp-train {__version__} (Python {sys.version.split()[0]})")
        raise SystemExit(0)
    typed, again = _read_words(argv)
    given: dict[str, Any] = {}
    filed: dict[str, Any] = {}
    if (preset := typed.pop("preset", None)) is not None:
        if preset not in presets():
            close = _suggestion(str(preset), presets())
            raise UserError(f"--preset {preset}: unknown{close}; presets: {', '.join(presets())}")
        given |= _read_yaml(PRESETS / f"{preset}.yaml", "preset")
    if (file := typed.pop("config", None)) is not None:
        filed = _read_yaml(Path(str(file)), "--config")
    given = _over(_over(given, filed), {name: _value(name, value, flag(name)) for name, value in typed.items()})
    values = _resumed(given) | given
    values.setdefault("optimizer", default_optimizer(values.get("model")))
    wanted = {name for name in typed if _stays(name, again)} | {
        # The file may be a run's config.yaml with every option, and files of earlier releases name a wandb_project.
        name
        for name, value in filed.items()
        if _stays(name, typed.keys()) and value != declared()[name].default and name != "wandb_project"
    }
    config = with_values(Config(given=frozenset(given), wanted=frozenset(wanted if complete else ())), values)
    check(config, to_train=complete)
    return config


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `upper` over those of `lower`; the batch in one form replaces it in the other."""
    forms = {"batch_size": "batch_size_per_rank", "batch_size_per_rank": "batch_size"}
    return {name: value for name, value in lower.items() if upper.get(forms.get(name, "")) is None} | dict(upper)


def _stays(name: str, replaced: Set[str]) -> bool:
    """Whether an option is refused where it has no effect: not if an option that it depends on was replaced, by a
    repetition on the command line or by the command line over a file."""
    needs = declared()[name].only_with
    return needs is None or needs.names.isdisjoint(replaced)


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
    import yaml

    blocks = []
    for name, cls in SECTIONS.items():
        body = yaml.safe_dump(dataclasses.asdict(getattr(config, name)), sort_keys=False, allow_unicode=True)
        blocks.append(f"# {_title(cls)}\n{body}")
    return "\n".join(blocks)


def presets() -> tuple[str, ...]:
    """Names that --preset accepts."""
    return tuple(sorted(p.stem for p in PRESETS.glob("*.yaml")))


def _resumed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that is resumed, from config.yaml beside its checkpoint; its folder stays the same."""
    target = resume_target(given.get("resume"), given.get("out_dir"))
    if target is None:
        return {}
    beside = target.parent / "config.yaml"
    options = _read_yaml(beside, "config of the resumed run") if beside.is_file() else {}
    for changed, follows in DEPENDENT.items():
        if changed in given:
            options[follows] = None
    return options | {"out_dir": str(target.parent)}


def _read_words(argv: Sequence[str]) -> tuple[dict[str, str | bool], set[str]]:
    """(option name -> its value as typed, True or False for a flag; the names that are given more than once). The last
    value of an option counts."""
    options, found, again = declared(), dict[str, str | bool](), set[str]()
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            raise UserError(f"{word!r} is not an option (see --help)")
        spelled, equals, value = word.partition("=")
        spelled = spelled.replace("_", "-")
        spelled, *implied = ALIASES.get(spelled, (spelled,))
        name = spelled.removeprefix("--").replace("-", "_")
        switched_off = name.startswith("no_") and name not in options
        name = name.removeprefix("no_") if switched_off else name
        is_flag = name in options and options[name].type is bool
        known = spelled.startswith("--") and (name in options or name in FILES) and is_flag >= switched_off
        if not known:
            raise UserError(f"unknown option {word}{_meant(name, flag)}")
        again |= {name} & found.keys()
        if is_flag or implied:
            if equals:
                raise UserError(f"{spelled} takes no value, not {value!r}")
            found[name] = implied[0] if implied else not switched_off
        elif equals or (words and _is_value(words[0])):
            found[name] = value if equals else words.pop(0)
        else:
            accepted = options[name].accepted if name in options else "a text"
            raise UserError(f"{spelled} takes {accepted}: expected one argument")
    return found, again


def _is_value(word: str) -> bool:
    """Whether a word after an option is its value: not an option, but perhaps a negative number."""
    return not word.startswith("-") or word == "-" or word[1:2].isdigit() or word[1:2] == "."


def _value(name: str, raw: object, label: str) -> Any:
    """The value of an option, converted to its type. label: the option's name in messages. Errors: UserError."""
    from jsonargparse import ArgumentError

    option = declared()[name]
    try:
        value = _parser_of(name).parse_object({name: raw}, defaults=False).as_dict()[name]
    except ArgumentError:
        given = repr(raw) if label.startswith("--") else shown(raw)
        if not isinstance(raw, str | list | dict | None) and ("one of" in option.accepted or "text" in option.accepted):
            given += "; put it in quotes"
        other = "; for other data: --dataset folder, with images in train/<class>/ and test/<class>/ of --data-dir"
        raise UserError(f"{label} takes {option.accepted}, not {given}{other * (name == 'dataset')}") from None
    number = isinstance(value, int | float) and option.range is not None
    if number and (not math.isfinite(value) or value not in option.range):  # type: ignore[operator]
        raise UserError(f"{label} takes a number {option.range}, not {raw}")
    return value


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The options in a YAML file, checked. Errors: UserError naming the file and the key."""
    options: dict[str, Any] = {}
    content = read_mapping(path, f"{what} {path}", "option: value")
    keys = [spelled.replace("-", "_") for spelled in content]
    unknown = [key for key in keys if key not in declared() and key not in FILES]
    if unknown:
        lines = [f"{shown(key)}{_meant(key, lambda name: name.replace(' ', ': '))}" for key in unknown]
        raise UserError(f"{what} {path}: unknown key{'s' * (len(unknown) > 1)} {'; '.join(lines)}")
    for key, value in zip(keys, content.values(), strict=True):
        if key in options:
            raise UserError(f"{what} {path}: duplicate key {key}")
        if key in FILES:
            raise UserError(f"{what} {path}: {key} is not a key of a file: --{key} is given on the command line")
        options[key] = _value(key, value, f"{what} {path}: {key}")
    return options


def _meant(name: str, spell: Callable[[str], str]) -> str:
    """End of a message on an unknown option: the option of this trainer that it resembles. spell: writes its name."""
    if (ours := MEANT.get(name, "")).startswith(":"):
        return ours
    close = f", did you mean {spell(ours)}?" if ours else _suggestion(spell(name), [*map(spell, (*declared(), *FILES))])
    return close + " (see --help)" * (spell is flag)


def _suggestion(word: str, known: Sequence[str]) -> str:
    """The closest known name as a question; empty where none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _title(section: type) -> str:
    """The first line of a section's docstring."""
    return (section.__doc__ or "").strip().splitlines()[0]


@cache
def _parser_of(name: str) -> Any:
    """jsonargparse's parser of one option: a parser of all takes longer to build than everything else here."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    _add(parser, name)
    return parser


def _add(parser: Any, name: str) -> None:
    """Add an option to a parser, or to a group of it."""
    from jsonargparse import ActionYesNo

    option = declared()[name]
    keywords: dict[str, Any] = {"default": option.default, "help": option.full_help.replace("%", "%%")}
    if option.type is bool:
        keywords["action"] = ActionYesNo(no_prefix="no-")
    else:
        keywords |= {"type": option.type, "metavar": option.metavar}
    parser.add_argument(flag(name), **keywords)


def _parser(prog: str) -> Any:
    """The parser of all options, for the help."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [options]",
        exit_on_error=False,
        formatter_class=argparse.HelpFormatter,
        description="Train an image classifier with DistributedDataParallel. "
        "Every option is also a YAML key, with _ for -.",
    )
    parser.add_argument("--version", action="store_true", help="Print the version and exit")
    files = parser.add_argument_group("Files")
    files.add_argument("--config", type=str, metavar="FILE", help=FILES["config"])
    files.add_argument("--preset", type=str, metavar="NAME", help=f"{FILES['preset']}: {', '.join(presets())}")
    for section in SECTIONS.values():
        group = parser.add_argument_group(_title(section))
        for field in dataclasses.fields(section):
            _add(group, field.name)
    return parser
