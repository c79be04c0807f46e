"""`python -m gpu_topology verify`: a short real job over the chosen GPUs, under a time limit, and what to set.

Every pair's copies and sends are compared bit for bit, an all-reduce with its exact sum. Where that fails, the job runs
again with the variable that avoids the suspected path; if that fixes it, the variable is what to set. Data flow:
worker.py (in each rank) -> journal.py -> job.py -> findings.py -> Verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from types import FrameType
from typing import NoReturn

from ddp_core.errors import TopologyError
from gpu_topology import verify_cache
from gpu_topology.cli_options import add_json, add_selection, answer
from gpu_topology.environment import settings as nccl
from gpu_topology.host.host import Host, read_host
from gpu_topology.select.select import Selection, SelectionError
from gpu_topology.topology import Topology
from gpu_topology.verify import show
from gpu_topology.verify.findings import Findings, Naming, judge
from gpu_topology.verify.job import PACKAGES, run_job
from gpu_topology.verify.performance import model_gb_s, slow_gpus, slow_links
from gpu_topology.verify_cache import Verdict

RANK = ("-m", "gpu_topology.verify.rank")
TIME_LIMIT_S = 60
CPU_RANKS = 2
LARGEST_RANKS = 64
LONGEST_S = 3600
# Where the user has set one of these, a result does not hold for the machine without it.
_TRANSPORT = ("NCCL_P2P_", "NCCL_SHM_", "NCCL_CUMEM_", "NCCL_NVLS_", "NCCL_ALGO", "NCCL_PROTO", "NCCL_TOPO_")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology verify`."""
    add_json(parser)
    add_selection(parser)
    parser.add_argument(
        "--cpu", action="store_true", help="gloo on the CPU, as many ranks as --nproc says (default: 2)"
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="SECONDS",
        help=f"when a job counts as hanging, 1 to {LONGEST_S} (default: {TIME_LIMIT_S}, more above 11 ranks)",
    )
    parser.add_argument("--no-cache", action="store_true", help="do not keep the result for the launcher")
    parser.add_argument(
        "--hosts", metavar="LIST", help="the network between these hosts instead, over ssh as launch.py --hosts"
    )
    parser.set_defaults(source=None)


def run(arguments: argparse.Namespace) -> int:
    """Check and print; exit status 0 where everything was right and in time, else 1. Raises TopologyError."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _leave)
    if arguments.hosts is not None:
        _verify_between(arguments)
    topology, selection = _chosen(arguments)
    ranks = CPU_RANKS if arguments.count is None else arguments.count
    if not selection.indices and not 1 <= ranks <= LARGEST_RANKS:
        raise SelectionError(f"--nproc {arguments.count}: on the CPU from 1 to {LARGEST_RANKS}")
    for warning in selection.warnings:
        _say(f"warning: {warning}")
    verdict = check(
        topology,
        selection,
        read_host(),
        time_limit_s=arguments.time_limit,
        ranks=arguments.count,
        keep=not arguments.no_cache,
        say=_say,
    )
    if arguments.json:
        print(json.dumps(show.to_json(verdict, selection.indices), indent=1))
    else:
        print(show.page(verdict, selection.indices), end="")
    return 0 if verdict.ok else 1


def _chosen(arguments: argparse.Namespace) -> tuple[Topology, Selection]:
    """The topology and the GPUs to check; both empty with --cpu, for which no driver is needed, and without a GPU.
    Errors: SelectionError, StuckDriverError."""
    if arguments.cpu:
        return Topology(), Selection((), (), "", arguments.policy, (), "--cpu was given")
    answers = answer(arguments)
    if not answers.selection.indices and answers.topology.gpus:
        raise SelectionError(answers.selection.reason)
    return answers.topology, answers.selection


def _verify_between(arguments: argparse.Namespace) -> NoReturn:
    """Replace this process by the launcher, which can reach other hosts. Errors: TopologyError."""
    if find_spec("ddp_launch") is None:
        raise TopologyError("verify --hosts needs the launcher, ddp_launch, which is not installed here")
    if arguments.time_limit is not None or arguments.count is not None:
        raise TopologyError(
            "verify --hosts runs one rank on each host, with limits of its own: no --nproc, --time-limit"
        )
    words = ["--hosts", arguments.hosts, "--check-hosts", "--policy", arguments.policy]
    words += [f"--{name.replace('_', '-')}" for name in ("cpu", "json", "allow_busy") if getattr(arguments, name)]
    words += [f"--{name}={','.join(value)}" for name in ("gpus", "exclude") if (value := getattr(arguments, name))]
    if arguments.min_memory:
        words.append(f"--min-memory={getattr(arguments.min_memory, 'typed', arguments.min_memory)}")
    packages = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "ddp_launch", *words], environment)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler: exit by an exception, so that the job is ended too."""
    sys.exit(128 + number)


def _say(line: str) -> None:
    """One line on standard error."""
    print(f"verify: {line}" if not line.startswith("warning:") else line, file=sys.stderr, flush=True)


def _seconds(text: str) -> int:
    """Parse a number of seconds. Errors: argparse.ArgumentTypeError."""
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 to {LONGEST_S}")
    return int(text)


def check(
    topology: Topology,
    selection: Selection,
    host: Host,
    *,
    time_limit_s: float | None = None,
    ranks: int | None = None,
    worker: Sequence[str] = RANK,
    keep: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """The verdict of the job on the selection, or with gloo on `ranks` ranks of the CPU where the selection is empty.

    `time_limit_s` is for each job, of which there are at most three (default: `usual_limit_s`). `worker`: the program
    of a rank, as torchrun takes it. `say` gets a line when a job starts. With `keep` a result for GPUs is kept for
    `verify_cache.recall`. Raises TopologyError where no job can be started.
    """
    if find_spec("torch") is None:
        raise TopologyError(f"verify needs torch, which is not installed in {sys.executable}")
    count = len(selection.indices) or ranks or CPU_RANKS
    time_limit_s = usual_limit_s(count) if time_limit_s is None else time_limit_s
    trial = _Trial(topology, selection, host, count, worker, time_limit_s)
    begin = time.monotonic()
    say(f"{trial.what}, at most {time_limit_s:g} s")
    first = last = trial.run({})
    tried: dict[str, str] = {}
    while last.problem is not None and (name := trial.suspect(last, tried)) is not None:
        say(f"{last.problem}; again with {name}=1")
        tried[name] = "1"
        last = trial.run(tried)
    verdict = _verdict(first, last, tried, trial, time.monotonic() - begin)
    if keep and trial.is_plain:
        verify_cache.remember(topology, selection.uuids, verdict)
    return verdict


def usual_limit_s(ranks: int) -> int:
    """Time limit in seconds, enough for 16 GPUs on a slow host: each of 240 pairs moves more than half a gigabyte."""
    return max(TIME_LIMIT_S, ranks * (ranks - 1) // 2)


class _Trial:
    """The job, which may run more than once, each time with more variables set."""

    def __init__(
        self,
        topology: Topology,
        selection: Selection,
        host: Host,
        ranks: int,
        worker: Sequence[str],
        time_limit_s: float,
    ) -> None:
        devices = selection.indices
        self.topology, self.ranks = topology, ranks
        self.naming = Naming("nccl" if devices else "gloo", devices)
        noun = "rank" if self.ranks == 1 else "ranks"
        self.what = (
            f"GPU {', '.join(map(str, devices))} with NCCL" if devices else f"{self.ranks} {noun} on the CPU with gloo"
        )
        self._worker = worker
        self._time_limit_s = time_limit_s
        settings = nccl.environment(topology, selection, host, ranks=self.ranks, environ=os.environ, trainer=False)
        removed = {setting.name for setting in settings if setting.unset}
        planned = {setting.name: setting.value for setting in settings if not setting.unset}
        self.environment = {**{k: v for k, v in os.environ.items() if k not in removed}, **planned}
        self.is_plain = not any(setting.kept and setting.name.startswith(_TRANSPORT) for setting in settings)
        self.slices = any(uuid.startswith("MIG-") for uuid in selection.uuids)
        # Rank 0 copies between GPUs of other ranks, and an exclusive GPU belongs to its own rank alone.
        exclusive = any((topology.gpu(index).compute_mode or "").startswith("exclusive") for index in devices)
        self._copies = bool(devices) and not self.slices and not exclusive

    def run(self, extra: Mapping[str, str]) -> Findings:
        """Run one job. Only one without `extra` tests CUDA's own copies: NCCL's variables do not affect them."""
        copies = self._copies and not extra
        try:
            result = run_job(
                (*self._worker, f"--backend={self.naming.backend}", *(["--copies"] if copies else [])),
                ranks=self.ranks,
                environment={**self.environment, **extra},
                time_limit_s=self._time_limit_s,
                options=["--virtual-local-rank"] if self.slices and self.ranks > 1 else [],
            )
        except OSError as error:
            raise TopologyError(f"verify cannot start its job: {error.strerror or error}") from None
        return judge(result, self.naming, self._time_limit_s)

    def suspect(self, findings: Findings, tried: Mapping[str, str]) -> str | None:
        """The variable that avoids the path that is likely broken; None where there is nothing left to try."""
        if self.naming.backend != "nccl" or self.ranks < 2 or findings.stage == "start":
            return None
        names = ("NCCL_SHM_DISABLE", "NCCL_P2P_DISABLE") if findings.shm else ("NCCL_P2P_DISABLE",)
        return next((name for name in names if name not in tried and name not in self.environment), None)


def _verdict(first: Findings, last: Findings, tried: Mapping[str, str], trial: _Trial, seconds: float) -> Verdict:
    """One verdict from the findings of the first and the last job."""
    fixed = first.problem is not None and last.problem is None
    shown = last if fixed else first
    copies = tuple(pair for pair in first.pairs if pair.way == "copy")
    reason = f"verify: {first.problem}; with it the same job was right"
    return Verdict(
        ok=first.problem is None,
        problem=first.problem,
        settings=tuple((name, value, reason) for name, value in tried.items()) if fixed else (),
        stage=first.stage,
        remedy=_remedy(first, tuple(tried) if fixed else (), trial),
        words=() if fixed else first.words,
        pairs=(*copies, *(pair for pair in shown.pairs if pair.way != "copy")),
        busbw_gb_s=shown.busbw_gb_s,
        model_gb_s=model_gb_s(trial.topology, trial.naming.devices),
        compute=first.compute,
        concerns=tuple(_concerns(first, shown, trial)),
        backend=trial.naming.backend,
        ranks=trial.ranks,
        seconds=round(seconds, 3),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _concerns(first: Findings, shown: Findings, trial: _Trial) -> Iterator[str]:
    """Lines about GPUs or links that are slower than they should be; the CPU and MIG slices have no model."""
    if trial.naming.devices and not trial.slices:
        yield from slow_gpus(first.compute, trial.topology)
        yield from slow_links(shown.busbw_gb_s, trial.topology, trial.naming.devices)


def _remedy(first: Findings, mended_by: Sequence[str], trial: _Trial) -> str | None:
    """What to do besides setting the variables that fix the problem; None where there is none."""
    if first.problem is None:
        return None
    words = [_REMEDIES[name] for name in mended_by]
    if not mended_by:
        words += [f"unset {name}, and verify again" for name in _REMEDIES if trial.environment.get(name, "1") != "1"]
        where = "late" if first.stage == "start" and first.stopped else first.stage
        words.append(_REMEDIES[where if where in _REMEDIES else trial.naming.backend])
    if any(pair.way == "copy" and pair.problem for pair in first.pairs):
        words.append(_REMEDIES["copy"])
    return "; ".join(words)


_REMEDIES = {
    "NCCL_P2P_DISABLE": (
        "peer access does not work here although the driver reports it: to have its speed back, turn ACS off, or the"
        " IOMMU (in the BIOS, or by iommu=pt on the kernel's command line), and verify again"
    ),
    "NCCL_SHM_DISABLE": (
        "shared memory fails, and NCCL without it is slow: give /dev/shm more room (in a container --shm-size=8g or"
        " --ipc=host), and verify again"
    ),
    "copy": "copies between GPUs inside one process (device_map, pipelines) fail whatever NCCL's settings are",
    "late": "importing torch alone took longer: give --time-limit more seconds",
    "start": "fix that first; `python launch.py --doctor` looks at the whole installation",
    "nccl": "NCCL_DEBUG=INFO with verify says more; --exclude leaves a GPU out, --gpus tries two at a time",
    "gloo": "see what the last lines say; the ranks talk over the loopback interface lo",
}
