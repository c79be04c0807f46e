"""One trial of --scaling: a run on a given number of ranks, ended once its ranks were observed for long enough.

The run is an ordinary launcher with its own ranks, in a process forked from this one, which has imported torch. This
process asks the ranks directly, as `ddp_launch stacks` does, for the observations of in_rank/observer.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError, line_of
from ddp_launch.cli.options import LaunchOptions, Program
from ddp_launch.cli.value_types import Tee
from ddp_launch.run.exec_with_pdeathsig import PR_SET_PDEATHSIG
from ddp_launch.stall.in_rank.sitecustomize import OBSERVE
from ddp_launch.stall.rank_probe import RankProbe
from ddp_launch.stall.record import Record
from ddp_launch.stall.waited_for import Arrivals

POLL_S, LOOK_S, ANSWER_S = 0.1, 1.0, 0.5
"""How often to check whether the run has ended, how often to ask the ranks, and how long to wait for answers."""
LIMIT_S = 300.0
"""How long the ranks may take to reach their training steps, in addition to the time of the trial."""
GRACE_S = 3
ENDLESS = "1000000"
"""Epochs of a trial of the trainer, which is ended from outside."""
LEAST_STEPS = 5
NEVER_S = 604_800
LAST_LINES = 12

Launch = Callable[[LaunchOptions], int]


@dataclass(frozen=True)
class Observed:
    """Observations of a rank; times in seconds. `spent`: kind of work -> (total, blocked, waiting for a CPU core);
    `places`: kind -> lines with the most time; `batches`: its loaders' batch sizes; `threads`: torch's; `exposed`: wait
    for all-reduces per step, by DistributedDataParallel; `waited`: share of time spent waiting for others, or None."""

    steps: int
    seconds: float
    spent: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    places: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    threads: int = 1
    cuda: bool = False
    exposed: float = 0.0
    waited: float | None = None


@dataclass(frozen=True)
class Trial:
    """The observations of one trial. `ended`: the program ended by itself before the time was over."""

    ranks: int
    observed: tuple[Observed, ...]
    ended: bool = False


class TrialFailed(Exception):
    """The run of a trial failed. `status`: its exit status; `lines`: the end of what it printed."""

    def __init__(self, ranks: int, status: int, lines: tuple[str, ...]) -> None:
        super().__init__(f"the trial on {in_words(ranks)} failed with status {status}")
        self.status, self.lines = status, lines


def in_words(ranks: int) -> str:
    """`1 rank`, `4 ranks`."""
    return f"{ranks} rank{'s' * (ranks != 1)}"


def options_of_a_trial(options: LaunchOptions, ranks: int, folder: Path) -> LaunchOptions:
    """The options of a trial: a run on this number of ranks, which writes all its files to `folder`."""
    program = options.program
    if program.kind == "trainer":
        program = Program("trainer", "", (*program.args, "--epochs", ENDLESS, "--out-dir", str(folder / "run")))
    return replace(
        options,
        program=program,
        scaling=None,
        notify=(),
        json=False,
        nproc=ranks,
        needs_gpu=False,
        gpus=options.gpus[:ranks],
        quiet=True,
        preflight=False,
        max_restarts=0,
        grace=GRACE_S,
        log_dir=str(folder / "logs"),
        json_events=str(folder / "events.jsonl"),
        tee=Tee(),
        stall_report=NEVER_S,  # on, so that the ranks can be asked
        stall_kill=0,
    )


def measure(options: LaunchOptions, launch: Launch, seconds: float, folder: Path) -> Trial:
    """Run the trial of these options (options_of_a_trial). Errors: TrialFailed; UserError for a program that makes no
    steps."""
    folder.mkdir(parents=True)
    ranks = options.nproc or 1
    process = _fork(options, launch, folder)
    try:
        watch = _Watch(folder)
        deadline = time.monotonic() + LIMIT_S + 10 * seconds
        status = None
        while status is None and not watch.complete(seconds) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            status = process.poll()
            watch.look(ended=status is not None)
    finally:
        process.end()
    if status:
        raise TrialFailed(ranks, status, _last_lines(folder))
    observed = watch.observed()
    if len(observed) < ranks or any(one.steps < LEAST_STEPS for one in observed):
        raise UserError(_why_nothing(ranks, observed, status is not None, seconds))
    return Trial(ranks, observed, status is not None)


def _why_nothing(ranks: int, observed: tuple[Observed, ...], ended: bool, seconds: float) -> str:
    steps = min((one.steps for one in observed), default=0)
    what = "the program ended" if ended else f"the program was ended after {LIMIT_S + 10 * seconds:.0f} s"
    return (
        f"--scaling: on {in_words(ranks)} {what} with {steps} steps of an optimizer of torch's after its first second,"
        f" where {LEAST_STEPS} are needed: let it train for longer, or give --scaling more than {seconds:g} seconds"
    )


class _Fork:
    """A forked child process, which ends with this process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """The child's exit status as a shell shows it; None while it runs."""
        if self._status is None:
            pid, raw = os.waitpid(self._pid, os.WNOHANG)
            self._status = self._known(raw) if pid else None
        return self._status

    def end(self) -> None:
        """Send SIGTERM, so that the child ends its ranks, and wait for it."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            self._status = self._known(os.waitpid(self._pid, 0)[1])

    @staticmethod
    def _known(raw: int) -> int:
        code = os.waitstatus_to_exitcode(raw)
        return code if code >= 0 else 128 - code


def _fork(options: LaunchOptions, launch: Launch, folder: Path) -> _Fork:
    """Start the run in a child process; its output goes into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return _Fork(pid)
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(1)
        output = os.open(_output(folder), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, file in ((0, nothing), (1, output), (2, output)):
            os.dup2(file, number)
        os.environ[OBSERVE] = "1"
        status = launch(options)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except UserError as error:
        status = error.status
        print(line_of(error), file=sys.stderr)
    except Exception:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _output(folder: Path) -> Path:
    return folder / "output.txt"


def _last_lines(folder: Path) -> tuple[str, ...]:
    with suppress(OSError):
        lines = _output(folder).read_text(encoding="utf-8", errors="replace").splitlines()
        return tuple(line for line in lines if line.strip())[-LAST_LINES:]
    return ()


class _Watch:
    """Asks the ranks of a trial, which it finds by the events in the trial's folder."""

    def __init__(self, folder: Path) -> None:
        self._events = folder / "events.jsonl"
        self._ranks: dict[int, RankProbe] = {}
        self._records: dict[int, Record] = {}
        self._arrivals = Arrivals()
        self._looked = 0.0

    def look(self, *, ended: bool) -> None:
        """Ask all ranks, at most every LOOK_S seconds. `ended`: only read the last answers of ranks that have ended."""
        if not self._ranks:
            self._find()
        for probe in self._ranks.values():
            probe.find()
        if not ended and time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        for probe in () if ended else self._ranks.values():
            probe.ask(full=True)
        until = time.monotonic() + ANSWER_S
        while not ended and any(one.pending for one in self._ranks.values()) and time.monotonic() < until:
            time.sleep(ANSWER_S / 50)
        for rank, probe in self._ranks.items():
            answer = probe.answer()
            if answer is not None and answer.record is not None:
                self._records[rank] = answer.record
        if self._warm():
            self._arrivals.add(self._records)

    def _warm(self) -> bool:
        return bool(self._records) and all(one.observed.get("ns", 0) > 0 for one in self._records.values())

    def _find(self) -> None:
        """Find the ranks' processes, once they are started."""
        with suppress(OSError, ValueError, KeyError):
            for line in self._events.read_text(encoding="utf-8").splitlines():
                event = json.loads(line)
                if event["event"] == "attempt":
                    self._ranks = {int(rank): RankProbe(int(rank), pid) for rank, pid in event["pids"].items()}

    def complete(self, seconds: float) -> bool:
        """Whether every rank has been observed for this many seconds, and for LEAST_STEPS steps."""
        seen = [record.observed for record in self._records.values()]
        return (
            bool(seen)
            and len(seen) == len(self._ranks)
            and all(one.get("ns", 0) >= seconds * 1e9 and one.get("steps", 0) >= LEAST_STEPS for one in seen)
        )

    def observed(self) -> tuple[Observed, ...]:
        """The observations in the order of ranks; closes the probes."""
        waited = self._arrivals.waited()
        for probe in self._ranks.values():
            probe.close()
        return tuple(_observed(self._records[rank].observed, waited.get(rank)) for rank in sorted(self._records))


def _observed(facts: Mapping[str, Any], waited: float | None) -> Observed:
    spent = {
        kind: (all_ns / 1e9, blocked / 1e9, queued / 1e9)
        for kind, (all_ns, blocked, queued) in facts.get("spent_ns", {}).items()
    }
    places = {kind: tuple((place, ns / 1e9) for place, ns in found) for kind, found in facts.get("places", {}).items()}
    return Observed(
        steps=facts.get("steps", 0),
        seconds=facts.get("ns", 0) / 1e9,
        spent=spent,
        places=places,
        batches=tuple(facts.get("batches", ())),
        threads=facts.get("threads", 1) or 1,
        cuda=facts.get("cuda", False),
        exposed=facts.get("exposed_ns", 0.0) / 1e9,
        waited=waited,
    )
