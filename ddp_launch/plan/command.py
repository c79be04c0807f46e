"""A decided run as argument lists, and as one line to paste into bash."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ddp_launch.cli.options import Program
from ddp_launch.cli.torchrun_compat import LOCAL_RANK_ARGUMENTS
from ddp_launch.cli.value_types import BOTH, LOG_BYTES, NO_TEE, Tee
from ddp_launch.cluster.cluster import Cluster

LOOPBACK = "127.0.0.1"
TORCHRUNS_GRACE_S = 30
DEBUG_ADDRESS = f"{LOOPBACK}:5678"
"""The address at which debugpy listens, with debugpy's usual port."""
TRAINER = Path(__file__).resolve().parents[2] / "ddp_train" / "main.py"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run as the elastic agent receives it. `worker`: argv of every rank; `grace`: grace time in seconds.

    `environment`: variables to set for the ranks, beyond those that are set already; `virtual_local_rank`: each rank
    sees one device of CUDA_VISIBLE_DEVICES and has LOCAL_RANK=0, since CUDA shows a process at most one MIG slice;
    `unset`: variables that the ranks must not inherit; `numa_binding`: torchrun's --numa-binding; `saves_together`: the
    ranks can only save together, as in the bundled trainer: once one has failed, the others need no time to save;
    `stall_report`, `stall_kill`: seconds without progress until ranks are reported or ended, 0 is never;
    `debug_rank`: the rank that runs under debugpy and starts when a debugger connects;
    `log_size`: bytes of each stream of a rank that its log keeps, 0 is all; `log_dir`: the user's log folder.
    """

    worker: tuple[str, ...]
    nproc_per_node: int
    environment: tuple[tuple[str, str], ...] = ()
    cluster: Cluster = field(default_factory=Cluster)
    max_restarts: int = 0
    grace: int = 30
    tee: Tee = NO_TEE
    virtual_local_rank: bool = False
    unset: tuple[str, ...] = ()
    numa_binding: str | None = None
    saves_together: bool = False
    stall_report: int = 0
    stall_kill: int = 0
    debug_rank: int | None = None
    log_size: int = LOG_BYTES
    log_dir: str | None = None


@dataclass(frozen=True)
class RestartPlan:
    """The job of another attempt. `devices`: its devices in words; `change`: GPUs that it drops and adds, if any."""

    job: Job
    devices: str
    change: str = ""


def worker_argv(program: Program) -> tuple[str, ...]:
    """The command of one rank."""
    python = (sys.executable, "-u")
    match program.kind:
        case "trainer":
            return (*python, short_path(TRAINER), *program.args)
        case "script":
            return (*python, program.name, *program.args)
        case "module":
            return (*python, "-m", program.name, *program.args)
        case "executable":
            return (program.name, *program.args)


def chooses_backend(program: Program) -> bool:
    """Whether a user's program names a backend; True if unknown, since only a single Python file is searched."""
    if program.kind == "trainer":
        return False
    if program.kind != "script" or not Path(program.name).is_file():
        return True
    try:
        return re.search(r"backend|init_process_group\(\s*[^\s)]", Path(program.name).read_text("utf-8")) is not None
    except (OSError, ValueError):
        return True


def torchrun(job: Job, program: Program) -> tuple[str, ...]:
    """The torchrun command that does what the launcher would do."""
    options = [f"--nproc-per-node={job.nproc_per_node}"]
    if job.cluster.one_node:
        # The host name of a laptop or container often does not resolve; the loopback address always works.
        options += ["--standalone", f"--local-addr={LOOPBACK}"]
    else:
        options += _several_nodes(job.cluster)
    if job.max_restarts:
        options.append(f"--max-restarts={job.max_restarts}")
    if job.virtual_local_rank:
        options.append("--virtual-local-rank")
    if job.numa_binding:
        options.append(f"--numa-binding={job.numa_binding}")
    options += _output(job)
    if job.grace != TORCHRUNS_GRACE_S and _torchrun_knows("--shutdown-timeout"):
        options.append(f"--shutdown-timeout={job.grace}")
    match program.kind:
        case "module":
            options.append("-m")
        case "executable":
            options.append("--no-python")
    name, *args = job.worker[-len(program.args) - 1 :]
    # torchrun's argparse swallows a `--` directly after the script, but not after another `--`.
    separator = ["--"] if args[:1] == ["--"] else []
    return (*_torchrun_executable(), *options, *separator, name, *escape_macros(args))


def _torchrun_knows(option: str) -> bool:
    """Whether the installed torch's torchrun has an option: torch 2.11's has no --shutdown-timeout."""
    torch = find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        return True
    try:
        text = Path(torch.submodule_search_locations[0], "distributed", "run.py").read_text("utf-8")
        return f'"{option}"' in text
    except (OSError, ValueError):
        return True


def _output(job: Job) -> list[str]:
    """torchrun's options for the output that the user chose; by default torchrun shows all ranks and keeps no logs."""
    tee = job.tee
    shown = [f"{rank}:{streams}" for rank, streams in {0: BOTH, **dict(tee.ranks)}.items()]
    words = str(tee.everyone) if tee.everyone and not tee.ranks else ",".join(shown)
    options = [] if job.log_dir is None else [f"--log-dir={job.log_dir}", "--redirects=3"]
    if job.log_dir is not None or tee.everyone or tee.ranks:
        options.append(f"--tee={words}")
    if tee.only is not None:
        options.append(f"--local-ranks-filter={','.join(map(str, sorted(tee.only)))}")
    return options if tee.prefix is None else [*options, f"--log-line-prefix-template={tee.prefix}"]


def torchrun_environment(job: Job) -> tuple[tuple[str, str], ...]:
    """The job's variables, and what torchrun needs beyond them to do what the launcher does."""
    # Without this, the next attempt would find the keys that failed ranks left in the store.
    fresh_store = (("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"),) if job.max_restarts else ()
    return (*job.environment, *fresh_store)


def _several_nodes(cluster: Cluster) -> list[str]:
    """torchrun's options for a run on several nodes."""
    least, most = cluster.nnodes
    options = [f"--nnodes={least}" if least == most else f"--nnodes={least}:{most}"]
    if cluster.node_rank is not None:
        options.append(f"--node-rank={cluster.node_rank}")
    hosts = cluster.first if cluster.hosts_store is None else cluster.hosts_store
    config = f"join_timeout={cluster.rdzv_timeout_s}" + ("" if hosts is None else f",is_host={int(hosts)}")
    config += "" if cluster.last_call_s is None else f",last_call_timeout={cluster.last_call_s}"
    options += ["--rdzv-backend=c10d", f"--rdzv-endpoint={cluster.endpoint}", f"--rdzv-id={cluster.run_id}"]
    options.append(f"--rdzv-conf={config}")
    return options if cluster.address is None else [*options, f"--local-addr={cluster.address}"]


def escape_macros(args: Iterable[str]) -> list[str]:
    """Escape `$` in arguments: torch's agent replaces `${local_rank}` by a number and `$$` by `$`.

    LOCAL_RANK_ARGUMENTS are left as they are, for the agent to fill in.
    """
    return [arg if arg in LOCAL_RANK_ARGUMENTS else arg.replace("$", "$$") for arg in args]


def shell_line(environment: Iterable[tuple[str, str]], command: Iterable[str], unset: Iterable[str] = ()) -> str:
    """NAME=value assignments and a command, quoted for bash; `env -u NAME` comes first if variables must be unset."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment]
    removals = [word for name in unset for word in ("-u", name)]
    return " ".join([*(["env", *removals] if removals else []), *assignments, *map(shlex.quote, command)])


def short_path(path: Path) -> str:
    """A path as a person would type it here: relative below the current folder, else absolute."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)


def _torchrun_executable() -> tuple[str, ...]:
    """`torchrun` if PATH leads to this Python's, else its full path; without one, this Python with torch's module."""
    beside = Path(sys.executable).parent / "torchrun"
    if not os.access(beside, os.X_OK) or str(beside.parent) not in _first_lines(beside):
        return (sys.executable, "-m", "torch.distributed.run")
    found = shutil.which("torchrun")
    return ("torchrun",) if found is not None and beside.samefile(found) else (str(beside),)


def _first_lines(program: Path) -> str:
    """The first 1024 bytes of a program, which name the Python that runs it."""
    with program.open("rb") as file:
        return os.fsdecode(file.read(1024))
