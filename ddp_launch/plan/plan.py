"""Plans a run: topology, host and options in, a frozen LaunchPlan out. Pure: all facts are passed in as arguments.

How data flows: `select` picks GPUs -> ranks and backend -> the environment for them -> settings of the bundled
trainer -> the job for the elastic agent and the same as a command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from ddp_core.errors import TopologyError, UserError
from ddp_core.missing_packages import older
from ddp_core.redaction import redacted
from ddp_launch.cli.options import LaunchOptions, Program
from ddp_launch.cluster import over_ssh
from ddp_launch.cluster.cluster import Cluster, find_cluster
from ddp_launch.plan.command import DEBUG_ADDRESS, Job, shell_line, torchrun, torchrun_environment, worker_argv
from ddp_launch.plan.grace import default_grace, grace_warnings
from ddp_launch.plan.predicted_speed import predict
from ddp_launch.plan.trainer_options import Training, plan_training
from ddp_train.distributed.speed_cache import KnownSpeeds
from gpu_topology.environment.notes import needs_verify, notes
from gpu_topology.environment.settings import Setting
from gpu_topology.environment.settings import environment as environment_for
from gpu_topology.host.host import Host
from gpu_topology.select.eligibility import ALLOW_BUSY
from gpu_topology.select.from_environment import from_environment
from gpu_topology.select.numa import Binding, choose_binding, obstacle
from gpu_topology.select.select import Excluded, Inherited, Selection, SelectionError, in_use, select
from gpu_topology.topology import Topology
from gpu_topology.verify_cache import Verdict

CPU_RANKS = 2
RANGE_RESTARTS = 3
LOOPBACK_INTERFACE = "lo"
NO_DEVICES = ("-", "none", "void", "NoDevFiles")
"""Prefixes of CUDA_VISIBLE_DEVICES values that hide every GPU on purpose; an empty value does so too."""
USED_REMEDY = "--wait waits until they are free, --allow-busy takes them as they are"
CPU_REMEDY = "--cpu runs on the CPU"


@dataclass(frozen=True)
class LaunchPlan:
    """All decisions about a run. `training`: None for a user's own program.

    `verdict`: the result of a check of these GPUs, None without one; `doubt`: why the GPUs should be checked, None if
    they were checked or nothing is in doubt; `inherited`: facts read from this process, kept for planning again.
    """

    topology: Topology
    host: Host
    selection: Selection
    environment: tuple[Setting, ...]
    nproc_per_node: int
    cluster: Cluster
    backend: Literal["nccl", "gloo"]
    program: Program
    job: Job
    command: tuple[str, ...]
    shell: str
    training: Training | None
    warnings: tuple[str, ...]
    verdict: Verdict | None = None
    doubt: str | None = None
    inherited: Inherited | None = None


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """The facts that a plan is made from, besides the user's options.

    environ       the user's environment; its values are kept
    recall        returns the verdict of `gpu_topology verify` on the selected GPUs, None if there is none
    cluster       the nodes, if they are known already; None: found from the options and `environ`
    inherited     facts read from this process (gpu_topology/select/from_environment.py); None: from `environ` alone
    known_speeds  returns what calibrations measured for a kind of work (ddp_train/distributed/speed_cache.py)
    """

    topology: Topology
    host: Host
    environ: Mapping[str, str]
    recall: Callable[[Topology, Sequence[str]], Verdict | None] = lambda topology, uuids: None
    cluster: Cluster | None = None
    inherited: Inherited | None = None
    known_speeds: Callable[[str], KnownSpeeds | None] = lambda work: None


def make_plan(options: LaunchOptions, facts: MachineFacts) -> LaunchPlan:
    """The plan for these facts. Errors: UserError (unavailable GPUs, nodes that cannot meet, a bad trainer option)."""
    topology, host, environ = facts.topology, facts.host, facts.environ
    cluster = find_cluster(options, environ) if facts.cluster is None else facts.cluster
    inherited = facts.inherited or from_environment(environ)
    training = plan_training(options.program)
    wants_cpu = "--cpu" if options.cpu else training.wants_cpu if training else None
    selection = _cpu_selection(topology, options, wants_cpu) if wants_cpu else _select(topology, options, inherited)
    ranks = _ranks(selection, options, host)
    verdict = facts.recall(topology, selection.uuids)
    binding = _binding(options, topology, selection, host, inherited)
    settings = _settings(options, topology, selection, host, inherited, environ, cluster, ranks, verdict)
    if training is not None:
        training = training.decided(topology, selection, host, ranks=ranks, nodes=cluster.nnodes[0])
        if not cluster.one_node:
            cluster = replace(cluster, settings=training.of_all_ranks)
    program = training.program if training else options.program
    job = _job(options, environ, cluster, program, selection, ranks, settings, binding)
    command = redacted(torchrun(job, program))
    plan = LaunchPlan(
        topology=topology,
        host=host,
        selection=selection,
        environment=settings,
        nproc_per_node=ranks,
        cluster=cluster,
        backend="nccl" if selection.indices else "gloo",
        program=program,
        job=job,
        command=command,
        shell=shell_line(torchrun_environment(job), command, job.unset),
        training=training,
        warnings=(),
        verdict=verdict,
        doubt=needs_verify(topology, selection, host) if verdict is None and not _peers_off(settings) else None,
        inherited=inherited,
    )
    reasons = () if wants_cpu else topology.warnings  # why there is no GPU does not matter to who asked for the CPU
    noted = (*reasons, *_warnings(plan, options, environ, binding), *_predicted(plan, options, facts.known_speeds))
    return replace(plan, warnings=noted)


def _predicted(
    plan: LaunchPlan, options: LaunchOptions, known_speeds: Callable[[str], KnownSpeeds | None]
) -> Iterable[str]:
    """A line with the predicted speed of each policy, if the GPUs differ and the user did not name the GPUs."""
    if plan.training is None or plan.inherited is None or options.gpus or not plan.selection.indices:
        return
    request = plan.inherited.completes(options.request(plan.topology))
    line = predict(plan.topology, request, plan.training.config, known_speeds)
    if line is not None:
        yield line


def _peers_off(settings: Iterable[Setting]) -> bool:
    """Whether NCCL's use of peer access is disabled, so that peer access needs no check."""
    return any((setting.name, setting.value) == ("NCCL_P2P_DISABLE", "1") for setting in settings)


def _select(topology: Topology, options: LaunchOptions, inherited: Inherited) -> Selection:
    """The GPUs of the run; none on a machine without GPUs, or where CUDA_VISIBLE_DEVICES hides them all on purpose.

    Errors: UserError where the machine has GPUs but none, or too few, may be used: the user did not ask for the CPU.
    """
    request = inherited.completes(options.request(topology))
    try:
        selection = select(topology, request)
    except SelectionError as error:
        if error.remedy is None and not options.gpus and in_use(topology, request):
            error.remedy = USED_REMEDY
        raise
    hidden = inherited.visible is not None and (inherited.visible.strip() or "-").startswith(NO_DEVICES)
    if topology.gpus and not selection.indices and not hidden:
        used = in_use(topology, request)
        # The remedy names this option already.
        reason = selection.reason.removesuffix(ALLOW_BUSY)
        raise UserError(reason, f"{USED_REMEDY}, {CPU_REMEDY}" if used else CPU_REMEDY)
    if options.needs_gpu and not selection.indices:
        raise UserError("--nproc-per-node gpu: this machine has no GPU that may be used", CPU_REMEDY)
    return selection


def occupied(options: LaunchOptions, facts: MachineFacts) -> Mapping[int, str]:
    """GPUs that the run needs but others use: NVML index -> by whom; empty if the run can start. Errors:
    SelectionError where the run could not start even with all of these GPUs free."""
    request = (facts.inherited or Inherited()).completes(options.request(facts.topology))
    used = in_use(facts.topology, request)
    if used and not options.gpus:
        select(facts.topology, replace(request, allow_busy=True))
        with suppress(SelectionError):
            used = {} if select(facts.topology, request).indices else used
    return used


def _cpu_selection(topology: Topology, options: LaunchOptions, asked_by: str) -> Selection:
    """An empty selection, for a run on the CPU."""
    excluded = tuple(Excluded(gpu.index, f"{asked_by} was given") for gpu in topology.gpus)
    return Selection((), (), "", options.policy, excluded, f"{asked_by} was given")


def _settings(
    options: LaunchOptions,
    topology: Topology,
    selection: Selection,
    host: Host,
    inherited: Inherited,
    environ: Mapping[str, str],
    cluster: Cluster,
    ranks: int,
    verdict: Verdict | None,
) -> tuple[Setting, ...]:
    """The environment of the ranks, with reasons."""
    return environment_for(
        topology,
        selection,
        host,
        ranks=ranks,
        environ=environ,
        interface=LOOPBACK_INTERFACE if cluster.one_node else cluster.interface,
        nodes=cluster.nnodes[1],
        verdict=verdict,
        bound=options.numa_binding != "off" and _torch_binds(inherited),
        trainer=options.program.kind == "trainer",
    )


def _ranks(selection: Selection, options: LaunchOptions, host: Host) -> int:
    """Ranks on this node: one for each GPU; on the CPU --nproc or CPU_RANKS."""
    if selection.indices:
        return len(selection.indices)
    return options.nproc or min(CPU_RANKS, host.usable_cpus)


def _binding(
    options: LaunchOptions, topology: Topology, selection: Selection, host: Host, inherited: Inherited
) -> Binding | None:
    """The NUMA binding that was asked for, or the one that suits the machine. Errors: TopologyError."""
    asked = options.numa_binding
    if asked == "off" or (asked == "auto" and not _torch_binds(inherited)):
        return None
    if asked == "auto":
        return choose_binding(topology, selection, host)
    hindrance = obstacle(topology, selection, host) if _torch_binds(inherited) else "torch 2.9 is the first that can"
    if hindrance:
        raise TopologyError(f"--numa-binding {asked} cannot be done here: {hindrance}")
    return Binding(asked, f"each rank is bound to CPUs beside its GPU (--numa-binding={asked}, as you asked)")


def _torch_binds(inherited: Inherited) -> bool:
    """Whether the installed torch can bind ranks to NUMA nodes; True if its version is unknown."""
    return inherited.torch is None or not older(inherited.torch.version, (2, 9))


def _restarts(options: LaunchOptions, cluster: Cluster) -> int:
    """--max-restarts, or its default."""
    if options.max_restarts is not None:
        return options.max_restarts
    least, most = cluster.nnodes
    # With a range of nodes the user expects the others to continue when one is lost.
    return RANGE_RESTARTS if least < most else 0


def _job(
    options: LaunchOptions,
    environ: Mapping[str, str],
    cluster: Cluster,
    program: Program,
    selection: Selection,
    ranks: int,
    settings: Iterable[Setting],
    binding: Binding | None,
) -> Job:
    """The job for the elastic agent: a rank's command, the number of ranks and their rendezvous. Errors: UserError."""
    world_size = ranks * cluster.nnodes[1]
    if options.debug_rank is not None and options.debug_rank >= world_size:
        raise UserError(f"--debug-rank {options.debug_rank}: expected a rank of this run, from 0 to {world_size - 1}")
    return Job(
        worker=worker_argv(program),
        nproc_per_node=ranks,
        environment=tuple((s.name, s.value) for s in settings if not s.kept and not s.unset),
        unset=tuple(s.name for s in settings if s.unset),
        numa_binding=None if binding is None else binding.mode,
        cluster=cluster,
        max_restarts=_restarts(options, cluster),
        grace=default_grace(environ) if options.grace is None else options.grace,
        tee=options.tee,
        debug_rank=options.debug_rank,
        stall_report=options.stall_report,
        stall_kill=options.stall_kill,
        log_size=options.log_size,
        log_dir=options.log_dir,
        saves_together=program.kind == "trainer",
        virtual_local_rank=options.virtual_local_rank
        or (ranks > 1 and any(uuid.startswith("MIG-") for uuid in selection.uuids)),
    )


def _warnings(
    plan: LaunchPlan, options: LaunchOptions, environ: Mapping[str, str], binding: Binding | None
) -> Iterable[str]:
    """What the user should know about this plan."""
    topology, selection, host = plan.topology, plan.selection, plan.host
    yield from selection.warnings
    yield from plan.cluster.warnings
    yield from options.notes
    if options.topology is not None:
        yield "CPU cores, memory, network and environment are those of this machine, the GPUs those of the file"
    if not selection.indices and plan.nproc_per_node > host.usable_cpus:
        yield f"{plan.nproc_per_node} ranks share {host.usable_cpus} CPU cores: they will wait for one another"
    yield from grace_warnings(plan.job.grace, environ)
    yield from notes(topology, selection, host, settings=plan.environment, verdict=plan.verdict)
    if options.debug_rank is not None:
        yield f"rank {options.debug_rank} starts when a debugger connects to {DEBUG_ADDRESS} (docs/debugging.md)"
    yield from _not_shown(plan, environ)
    if binding is not None:
        yield binding.reason


def _not_shown(plan: LaunchPlan, environ: Mapping[str, str]) -> Iterable[str]:
    """Notes on ranks to show that the run does not have."""
    tee, cluster, local = plan.job.tee, plan.cluster, plan.nproc_per_node
    counts: list[tuple[str, Iterable[int], int]] = [("local rank", tee.only or (), local)]
    # --tee counts ranks over all nodes. Over ssh the other hosts may have more or fewer ranks than this one.
    if cluster.one_node or over_ssh.VARIABLE not in environ:
        counts.append(("local rank" if cluster.one_node else "rank", dict(tee.ranks), local * cluster.nnodes[1]))
    for kind, shown, count in counts:
        if missing := sorted(rank for rank in shown if rank >= count):
            yield f"nothing to show of {kind} {', '.join(map(str, missing))}: there are 0 to {count - 1}"


def with_arguments(plan: LaunchPlan, extra: tuple[str, ...]) -> LaunchPlan:
    """The plan with more arguments for its program."""
    program = replace(plan.program, args=(*plan.program.args, *extra))
    job = replace(plan.job, worker=worker_argv(program))
    command = redacted(torchrun(job, program))
    shell = shell_line(torchrun_environment(job), command, job.unset)
    return replace(plan, program=program, job=job, command=command, shell=shell)
