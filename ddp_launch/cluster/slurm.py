"""Slurm's variables: those of the step (what srun started) before those of the job (what sbatch was given).

`scontrol` is not asked: containers often lack it, and the variables hold the same facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ddp_launch.cluster.detected import Detected, number
from ddp_launch.cluster.slurm_hostlist import expand, expand_counts

FIRST_PORT, PORTS = 20_000, 10_000
"""Ports of endpoints; they are below those that Linux assigns to outgoing connections (32768 and up)."""
FIRST_SPECIAL_STEP = 0xFFFF_FFF0
"""Batch scripts, interactive shells and the like have the highest step numbers: slurm/slurm.h, SLURM_BATCH_SCRIPT."""
STEP_ONLY = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE")
NODE_LISTS = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
NODE_COUNTS = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES")


def read(environ: Mapping[str, str]) -> Detected | None:
    """The nodes that Slurm assigned; None outside Slurm. Errors: OptionError for a malformed variable."""
    job = _job(environ)
    if not job:
        return None
    step = _step(environ)
    lists = ("SLURM_STEP_NODELIST", *NODE_LISTS) if step is not None else NODE_LISTS
    counts = ("SLURM_STEP_NUM_NODES", *NODE_COUNTS) if step is not None else NODE_COUNTS
    names = next((expand(environ[name], name) for name in lists if environ.get(name)), ())
    nodes = number(environ, *counts, least=1) or len(names) or 1
    names = names if len(names) == nodes else ()
    restart = number(environ, "SLURM_RESTART_COUNT") or 0
    return Detected(
        source=f"Slurm job {job}" + (f", step {step}" if step is not None else ""),
        nnodes=(nodes, nodes),
        node_rank=_node_rank(environ, names),
        endpoint=f"{names[0]}:{_port(job, step)}" if names and nodes > 1 else None,
        run_id=f"slurm-{job}-{step or 0}-{restart}",
        names=names,
        crowded=_crowded(environ, step, nodes),
        first_task=not number(environ, "SLURM_PROCID"),
        alone=_alone(environ, step, nodes),
        outside=_outside(environ, step, nodes),
    )


def _job(environ: Mapping[str, str]) -> str | None:
    """Slurm's job id; None outside of Slurm."""
    return environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")


def _step(environ: Mapping[str, str]) -> str | None:
    """The number of the step that started this process; None in a batch script or the shell of salloc."""
    step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID")
    if step:
        return None if step.isdecimal() and int(step) >= FIRST_SPECIAL_STEP else step
    # A batch script is always process 0 of node 0.
    by_srun = any(environ.get(name) for name in STEP_ONLY) or (number(environ, "SLURM_PROCID") or 0) > 0
    return "0" if by_srun else None


def _node_rank(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """This node's place in the list of nodes, else the number that Slurm gave it."""
    name = environ.get("SLURMD_NODENAME")
    if name in names:
        return names.index(name)
    return number(environ, "SLURM_NODEID")


def _port(job: str, step: str | None) -> int:
    """A port that is the same on every node, and different for the next job: two jobs may share a node."""
    digits = int(re.sub("[^0-9]", "", job)[-9:] or 0) + 101 * int(re.sub("[^0-9]", "", step or "")[-9:] or 0)
    return FIRST_PORT + digits % PORTS


def _tasks(environ: Mapping[str, str], nodes: int) -> tuple[int, ...]:
    """Tasks of this step on each node; a single number where Slurm gives only that."""
    if text := environ.get("SLURM_STEP_TASKS_PER_NODE"):
        return expand_counts(text, "SLURM_STEP_TASKS_PER_NODE")
    if total := number(environ, "SLURM_STEP_NUM_TASKS", least=1):
        return (-(-total // nodes),)
    if text := environ.get("SLURM_TASKS_PER_NODE"):
        return expand_counts(text, "SLURM_TASKS_PER_NODE")
    if each := number(environ, "SLURM_NTASKS_PER_NODE", least=1):
        return (each,)
    total = number(environ, "SLURM_NTASKS", "SLURM_NPROCS", least=1) or nodes
    return (-(-total // nodes),)


def _crowded(environ: Mapping[str, str], step: str | None, nodes: int) -> str | None:
    """The error for several launchers on a node, with the command that starts one; None where there is only one. A
    batch script is one process."""
    if step is None or (nodes == 1 and _has_the_terminal(environ)):
        return None
    most = max(*_tasks(environ, nodes), 1 + (number(environ, "SLURM_LOCALID") or 0))
    if most == 1:
        return None
    return (
        f"Slurm started {most} launchers on a node, and one starts all ranks of its node:"
        f" use #SBATCH --nodes={nodes} --ntasks-per-node=1 and {_line(environ, nodes, most)}"
        " (or --nnodes 1 for this process alone)"
    )


def _has_the_terminal(environ: Mapping[str, str]) -> bool:
    """Whether this is the first task of `srun --pty`, mostly a shell: the shells of the other tasks end at once."""
    return "SLURM_PTY_PORT" in environ and not number(environ, "SLURM_PROCID")


def _alone(environ: Mapping[str, str], step: str | None, nodes: int) -> str | None:
    """The error for nodes without a launcher, with the command that starts one on each; None where each has one."""
    started = 1 if step is None else number(environ, "SLURM_STEP_NUM_TASKS", least=1) or nodes
    if started >= nodes:
        return None
    launchers = f"{started} launcher{'s' * (started != 1)}"
    return f"{launchers} for the {nodes} nodes of Slurm job {_job(environ)}: use {_line(environ, nodes, 1)}"


def _outside(environ: Mapping[str, str], step: str | None, nodes: int) -> str | None:
    """The note for a process that Slurm did not start on a node of the job, with the command that does; None on a node.
    salloc starts its shell where it was typed, unless the cluster has LaunchParameters=use_interactive_step."""
    if step is not None or environ.get("SLURMD_NODENAME"):
        return None
    return (
        f"Slurm did not start this process on a node of job {_job(environ)} (SLURMD_NODENAME is not set): the ranks run"
        f" on this machine, perhaps a login node; use {_line(environ, nodes, 1)}"
    )


def _line(environ: Mapping[str, str], nodes: int, tasks: int) -> str:
    """The srun command that starts one launcher on each node, with the cores and GPUs of `tasks` tasks."""
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if cpus := number(environ, "SLURM_CPUS_PER_TASK", least=1):
        words.append(f"--cpus-per-task={cpus * tasks}")
    gpus = re.fullmatch(r"((?:[^:]+:)?)([0-9]{1,4})", environ.get("SLURM_GPUS_PER_TASK", ""))
    if gpus:
        words.append(f"--gpus-per-node={gpus[1]}{int(gpus[2]) * tasks}")
    return " ".join([*words, "python launch.py ..."])
