"""Which runs belong together, and in which facts groups differ. Pure.

Runs of one group have the same data and the same settings, except for the seed and the options that name the run's
folder. A run of another program has no settings: its command is compared instead.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddp_train.config.options import declared
from ddp_train.report.json_value import Value
from ddp_train.report.read_run import RunRecord

SEED = "seed"
NO_SETTINGS = frozenset({SEED, "out_dir", "resume"})
"""Options that identify a run or a repetition, and are no settings."""
FOLDERS = ("--seed", "--out-dir", "--log-dir", "--json-events", "--resume")
"""The same on the command line of another program."""
OPTION = re.compile(r"-\D")
"""A word that is no value of the option before it; a negative number is one."""
MOST_IN_A_LABEL = 6
NOTHING = "-"

Facts = Mapping[str, str]


@dataclass(frozen=True)
class Group:
    """Runs of one setting. name: A, B ...; label: the settings that set it apart, in a few words."""

    name: str
    runs: tuple[RunRecord, ...]
    label: str = ""

    @property
    def counted(self) -> tuple[RunRecord, ...]:
        """The runs that count in means: the finished ones."""
        return tuple(run for run in self.runs if finished(run))

    @property
    def title(self) -> str:
        """The group's name and label."""
        return f"{self.name}: {self.label}" if self.label else self.name


@dataclass(frozen=True)
class Difference:
    """A fact in which runs differ. values: group's name -> the values of its runs, as text."""

    kind: str
    name: str
    values: Mapping[str, str]


def finished(run: RunRecord) -> bool:
    """Whether a run is finished: by its own record for the trainer, by the exit status for another program."""
    if run.finished or run.trained or not run.launches:
        return run.finished
    return run.launches[-1].status == 0


def state(run: RunRecord) -> str:
    """The state of a run as text: `finished`, or how far it got."""
    if finished(run):
        return "finished"
    last = run.launches[-1].status if run.launches else None
    how = f"failed with status {last}" if last else "not finished"
    wanted = Value(run.config.get("epochs")).whole
    if run.trained:
        how += f", {len(run.epochs)}" + (f" of {wanted}" if wanted else "") + " epochs"
    return how


def seed(run: RunRecord) -> int | None:
    """The seed of a run; None where it is not known."""
    return Value(run.config.get(SEED)).whole


def groups_of(runs: Sequence[RunRecord]) -> tuple[Group, ...]:
    """The groups, in the order of their first runs."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    names = map(_letters, range(len(found)))
    groups = tuple(Group(name, tuple(members)) for name, members in zip(names, found.values(), strict=True))
    return tuple(Group(group.name, group.runs, _label(group, groups)) for group in groups)


def _letters(place: int) -> str:
    """A to Z, then AA, AB ..."""
    name = ""
    while place >= 0:
        name = string.ascii_uppercase[place % 26] + name
        place = place // 26 - 1
    return name


def _key(run: RunRecord) -> str:
    settings = _options(run)
    data = None if run.data is None else [run.data.name, run.data.content, run.data.train, run.data.val, run.data.test]
    command = [] if settings else _command(run)
    alone = str(run.folder.resolve()) if not settings and not command else ""
    return json.dumps([settings, data, command, alone], sort_keys=True, default=str)


def _command(run: RunRecord) -> list[str]:
    """The words of the last command line, the launcher's or else the program's, without those that identify a run."""
    launched = run.launches[-1].command if run.launches else ()
    words = list(launched or Value(dict(run.environment))["command"].texts)
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word.partition("=")[0] not in FOLDERS:
            kept.append(word)
        elif "=" not in word and words and not OPTION.match(words[0]):
            words.pop(0)
    return kept


def _label(group: Group, groups: Sequence[Group]) -> str:
    """The group's values of the settings, command and data in which runs differ."""
    if len(groups) < 2:
        return ""
    apart = [one for one in differences(groups) if one.kind in ("setting", "command", "data")]
    words = [
        one.values[group.name] if one.kind == "command" else f"{one.name} {one.values[group.name]}" for one in apart
    ]
    more = [f"and {len(words) - MOST_IN_A_LABEL} more"] if len(words) > MOST_IN_A_LABEL else []
    return ", ".join([*words[:MOST_IN_A_LABEL], *more])


def differences(groups: Sequence[Group]) -> tuple[Difference, ...]:
    """The facts in which runs differ, between groups or inside one: settings, data, versions, machine."""
    found = []
    for kind, read in (("setting", _settings), ("command", _as_command), ("data", _data), *_OF_THE_MACHINE):
        facts = {group.name: [read(run) for run in group.runs] for group in groups}
        names: dict[str, None] = {name: None for of_group in facts.values() for one in of_group for name in one}
        for name in names:
            values = {group: _joined(one.get(name, NOTHING) for one in rows) for group, rows in facts.items()}
            if len({one.get(name, NOTHING) for rows in facts.values() for one in rows}) > 1:
                found.append(Difference(kind, name, values))
    return tuple(found)


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _settings(run: RunRecord) -> Facts:
    return {name: _in_words(value) for name, value in _options(run).items()}


def _options(run: RunRecord) -> Mapping[str, object]:
    """The settings of a run; {} for another program. An option that its version did not have yet has its default."""
    if not run.config:
        return {}
    found = {name: option.default for name, option in declared().items()} | dict(run.config)
    return {name: value for name, value in found.items() if name not in NO_SETTINGS}


def _in_words(value: object) -> str:
    if value is None:
        return NOTHING
    return Value(value).text or json.dumps(value, default=str, ensure_ascii=False)


def _as_command(run: RunRecord) -> Facts:
    return {} if run.config else {"command": " ".join(_command(run))}


def _data(run: RunRecord) -> Facts:
    if run.data is None:
        return {}
    data = run.data
    counts = {"training samples": data.train, "validation samples": data.val, "test samples": data.test}
    return {
        "dataset": data.name,
        "content": data.content[:12],
        "classes": f"{len(data.classes)}",
        **{name: f"{count:,}" for name, count in counts.items() if count is not None},
    }


def _versions(run: RunRecord) -> Facts:
    environment = Value(dict(run.environment))
    own = {"ddp-launch": run.launches[-1].version} if run.launches else {}
    facts = own | {name: environment[name].text for name in ("python", "torch", "platform")}
    return {name: value for name, value in facts.items() if value}


def _machine(run: RunRecord) -> Facts:
    environment = Value(dict(run.environment))
    names = ("device", "world_size", "precision", "all_reduce", "threads_per_rank")
    facts = {name.replace("_", " "): environment[name].text for name in names}
    if run.launches:
        facts |= {"host": run.launches[-1].host, "GPUs": run.launches[-1].plan.group}
    return {name: value for name, value in facts.items() if value}


_OF_THE_MACHINE = (("version", _versions), ("machine", _machine))
