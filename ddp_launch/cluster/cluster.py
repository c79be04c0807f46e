"""The nodes of a run: how many, which one this is, where they meet; from the options, else from the environment.

Each fact comes from the first source that has it: the command line, torchrun's PET_ variables, the cluster manager
(mpirun, Slurm, Kubernetes). Pure: network.py asks the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.cluster import kubernetes, mpi, over_ssh, pet, slurm
from ddp_launch.cluster.detected import Detected

T = TypeVar("T")

RUN_ID = "ddp-launch"
"""The default name of a run, the same on every node; an endpoint serves one run at a time."""
RDZV_TIMEOUT_S = 600
COMMAND_LINE = "the command line"
MANAGERS = (over_ssh.read, mpi.read, slurm.read, kubernetes.read)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes of a run.

    `nnodes`: (least, most); `endpoint`: HOST:PORT of the rendezvous, None on one node; `source`: where this comes
    from, for the plan; `names`: the nodes by rank, empty where only their number is known; `first`: whether this node's
    rank makes it the owner of the endpoint, None where the rank does not decide that; `last_call_s`: how long the
    least number of nodes waits for more, None for the default.
    `settings`: the options of the bundled trainer that must be the same on all nodes.

    Filled in by `network.locate`: `interface` and `address`, which this node uses to reach the endpoint;
    `hosts_store`: whether the endpoint is this node, None while that is unknown.
    """

    nnodes: tuple[int, int] = (1, 1)
    node_rank: int | None = None
    endpoint: str | None = None
    run_id: str = RUN_ID
    rdzv_timeout_s: int = RDZV_TIMEOUT_S
    last_call_s: int | None = None
    source: str = "one node unless --nnodes says more"
    names: tuple[str, ...] = ()
    first: bool | None = None
    interface: str | None = None
    address: str | None = None
    hosts_store: bool | None = None
    settings: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def one_node(self) -> bool:
        """Whether this machine alone takes part."""
        return self.nnodes[1] == 1

    def name(self, rank: int) -> str:
        """A node for people: `node rank 1 (gpu02)`."""
        return f"node rank {rank}" + (f" ({self.names[rank]})" if rank < len(self.names) else "")


def find_cluster(options: LaunchOptions, environ: Mapping[str, str]) -> Cluster:
    """The nodes of this run. Errors: OptionError where they cannot meet, or were started the wrong way."""
    _refuse_inside_torchrun(environ)
    manager = next((found for read in MANAGERS if (found := read(environ)) is not None), None)
    # The launcher that started this one over ssh knows best.
    sources = (over_ssh.read(environ), _given(options), pet.read(environ), manager)
    said = [found for found in sources if found is not None]
    nnodes, nodes_by = _first(said, lambda found: found.nnodes)
    if manager is not None and manager.crowded and (nnodes != (1, 1) or nodes_by == manager.source):
        # With --nnodes 1 each launcher is a separate run.
        raise OptionError(manager.crowded, speaks=manager.first_task)
    timeout_s = options.rdzv_timeout or RDZV_TIMEOUT_S
    if nnodes is None or nnodes == (1, 1):
        outside = [manager.outside] if manager is not None and manager.outside is not None else []
        warnings = (*outside, *_not_used(options, environ, said))
        return Cluster(rdzv_timeout_s=timeout_s, source=nodes_by or Cluster.source, warnings=warnings)
    endpoint, endpoint_by = _first(said, lambda found: found.endpoint)
    rank, rank_by = _first(said, lambda found: found.node_rank)
    run_id, _ = _first(said, lambda found: found.run_id)
    alone = _without_launchers(manager, options, endpoint_by)
    _check(nnodes, nodes_by, rank, rank_by, endpoint)
    return Cluster(
        nnodes=nnodes,
        node_rank=rank,
        endpoint=endpoint,
        run_id=run_id or RUN_ID,
        rdzv_timeout_s=timeout_s,
        last_call_s=options.last_call,
        source=_in_words((("nodes", nodes_by), ("node rank", rank_by), ("endpoint", endpoint_by))),
        names=manager.names if manager is not None and len(manager.names) == nnodes[1] else (),
        first=rank == 0 if rank is not None and rank_by == endpoint_by else None,
        warnings=tuple(alone),
    )


def _given(options: LaunchOptions) -> Detected | None:
    """What the command line says about the nodes; None where it says nothing."""
    endpoint = options.rdzv_endpoint
    if endpoint is None and options.master_addr is not None:
        endpoint = pet.join(options.master_addr, options.master_port or pet.MASTER_PORT)
    found = (options.nnodes, options.node_rank, endpoint, options.rdzv_id)
    if found == (None, None, None, None):
        return None
    nnodes, rank, _, run_id = found
    return Detected(source=COMMAND_LINE, nnodes=nnodes, node_rank=rank, endpoint=endpoint, run_id=run_id)


def _first(said: Iterable[Detected], fact: Callable[[Detected], T | None]) -> tuple[T | None, str | None]:
    """The first known value of a fact, and its source; (None, None) where no source has it."""
    return next(((value, found.source) for found in said if (value := fact(found)) is not None), (None, None))


def _in_words(facts: Iterable[tuple[str, str | None]]) -> str:
    """The sources of the facts; only its name where one source gave all of them."""
    by: dict[str, list[str]] = {}
    for fact, source in facts:
        if source is not None:
            by.setdefault(source, []).append(fact)
    if len(by) == 1:
        return next(iter(by))
    return "; ".join(f"{' and '.join(found)} from {source}" for source, found in by.items())


def _without_launchers(manager: Detected | None, options: LaunchOptions, endpoint_by: str | None) -> list[str]:
    """Nodes without a launcher: an error, or a warning with --dry-run; allowed where the user gives the endpoint."""
    if manager is None or manager.alone is None or endpoint_by != manager.source:
        return []
    if options.dry_run:
        return [manager.alone]
    raise OptionError(f"{manager.alone} (or --nnodes 1 for this node alone)")


def _check(
    nnodes: tuple[int, int], nodes_by: str | None, rank: int | None, rank_by: str | None, endpoint: str | None
) -> None:
    """Refuse nodes without an endpoint, and a node rank that is too large. Errors: OptionError."""
    if endpoint is None:
        where = "" if nodes_by == COMMAND_LINE else f" ({nodes_by} does not give it)"
        raise OptionError(f"{nnodes[1]} nodes need --rdzv-endpoint HOST:PORT, an address of the first node{where}")
    if rank is not None and rank >= nnodes[1]:
        raise OptionError(f"--node-rank must be below --nnodes: {rank} of {nnodes[1]} (from {rank_by})")


def _refuse_inside_torchrun(environ: Mapping[str, str]) -> None:
    """Errors: OptionError where torchrun started this launcher as one of several ranks."""
    ranks = environ.get("LOCAL_WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" in environ and ranks.isdecimal() and int(ranks[:9]) > 1:
        raise OptionError(
            f"this is one of {ranks} ranks that torchrun started, and launch.py starts ranks itself:"
            " run it without torchrun (in a program of a rank: unset TORCHELASTIC_RUN_ID)"
        )


def _not_used(options: LaunchOptions, environ: Mapping[str, str], said: Iterable[Detected]) -> Iterable[str]:
    """Notes on settings for several nodes that have no effect on one."""
    if options.rdzv_endpoint is not None or options.master_addr is not None:
        yield "one node, so the rendezvous endpoint is not used: the ranks meet on 127.0.0.1 (--nnodes N: more nodes)"
    if options.rdzv_timeout is not None or options.last_call is not None:
        yield "one node, so the times of --rdzv-timeout and --rdzv-conf are not used"
    if (names := kubernetes.of_a_rank(environ)) and not any(found.nnodes for found in said):
        yield f"{', '.join(names)} in the environment: ignored, they belong to a rank of some other run"
