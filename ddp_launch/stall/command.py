"""`python -m ddp_launch stacks RUN`: where every rank of a run is now.

RUN is the process id of the launcher or of a rank, or a folder: the run's logs, or the trainer's run folder. Without
RUN it is this user's only run. Ranks are found by their environment; nothing is written to disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ddp_core.errors import OptionError
from ddp_core.rank_report import ERROR_FILE
from ddp_launch.stall import native
from ddp_launch.stall.finding import Finding, judge, rows_of
from ddp_launch.stall.rank_probe import RankProbe
from ddp_launch.stall.report import show
from ddp_launch.stall.watch import Watched, look
from ddp_train.watchdog.python_stacks import traceback_lines

USAGE = "python -m ddp_launch stacks [RUN]   (RUN: process id of the launcher or of a rank, log or run folder)"
MARK = "DDP_LAUNCH_RUN"

Ranks = dict[int, RankProbe]


def run(arguments: Sequence[str]) -> int:
    """Print the stacks of the ranks; the exit status. Errors: OptionError."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        raise OptionError(f"{' '.join(arguments)!r}: expected {USAGE}")
    launcher, ranks = _choose(_runs(), arguments[0] if arguments else None)
    views = look({rank: Watched(probe) for rank, probe in sorted(ranks.items())})
    console = Console()
    found = native.dump({view.rank: (ranks[view.rank].target, view.thread) for view in views if view.frames})
    views = [replace(view, native=found[view.rank].frames) if view.rank in found else view for view in views]
    for view in views:
        print(f"rank {view.rank} (process {view.pid})")
        frames = [*view.frames, *view.native]
        for line in traceback_lines(frames) if frames else ("no Python stack",):
            print(f"  {line}")
        if view.rank in found and (error := found[view.rank].error):
            print(f"  native calls: py-spy says {error}")
        print()
    title = "no rank waits for another"
    show(console, f"ranks of launcher {launcher}", judge(views) or Finding("busy", (), title, rows_of(views)))
    for probe in ranks.values():
        probe.close()
    return 0


def _runs() -> dict[int, tuple[Ranks, Path]]:
    """The runs of this user: the launcher's process id -> (its ranks, the folder of their logs)."""
    runs: dict[int, tuple[Ranks, Path]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "environ").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            parents = (Path("/proc") / str(parent) / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError, ValueError):
            continue
        variables = _variables(words)
        if _is_rank(variables, _variables(parents)):
            runs.setdefault(parent, ({}, Path(variables[ERROR_FILE]).parent))[0][int(variables["RANK"])] = RankProbe(
                int(variables["RANK"]), int(entry.name)
            )
    return runs


def _is_rank(variables: Mapping[str, str], parents: Mapping[str, str]) -> bool:
    """Whether a process with these environment variables is a rank. `parents`: those of its parent.

    Processes that a rank has started have the rank's variables. Other children of the launcher have the launcher's
    error file or none, but may have RANK: some job managers set it for the launcher.
    """
    if not {MARK, "RANK", ERROR_FILE} <= variables.keys() or variables[ERROR_FILE] == parents.get(ERROR_FILE):
        return False
    return (variables[MARK], variables["RANK"]) != (parents.get(MARK), parents.get("RANK"))


def _variables(words: Sequence[bytes]) -> Mapping[str, str]:
    """The contents of /proc/PID/environ as a dictionary."""
    pairs = (word.decode(errors="replace").partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def _choose(runs: Mapping[int, tuple[Ranks, Path]], name: str | None) -> tuple[int, Ranks]:
    """The run that `name` refers to; without a name, the only run. Errors: OptionError."""
    known = "; ".join(f"launcher {pid}, logs in {logs}" for pid, (_, logs) in sorted(runs.items()))
    if name is None:
        fitting = list(runs)
    elif name.isdigit():
        fitting = [pid for pid, (ranks, _) in runs.items() if int(name) in (pid, *(one.pid for one in ranks.values()))]
    else:
        folder = Path(name).resolve()
        fitting = [pid for pid, (_, logs) in runs.items() if folder in (logs.resolve(), *logs.resolve().parents)]
    if len(fitting) == 1:
        return fitting[0], runs[fitting[0]][0]
    if not runs:
        raise OptionError("no run of this user is running on this machine")
    if not fitting:
        raise OptionError(f"{name!r} is no run that is running here; there are: {known}")
    raise OptionError(f"several runs are running here, name one ({USAGE}): {known}")
