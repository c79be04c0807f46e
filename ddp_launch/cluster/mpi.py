"""Open MPI's mpirun and Hydra (MPICH, Intel MPI): number and rank of the launchers, one on each node.

Their variables do not say where rank 0 is: give the endpoint, or pass MASTER_ADDR on (mpirun -x).
"""

from __future__ import annotations

from collections.abc import Mapping

from ddp_launch.cluster.detected import Detected, number, port
from ddp_launch.cluster.kubernetes import is_loopback
from ddp_launch.cluster.pet import MASTER_PORT, join

# (name, variables of size, of rank, of processes on this node, the command that starts one process on each node)
KINDS = (
    (
        "Open MPI",
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        "mpirun -np {nodes} --map-by ppr:1:node --bind-to none python launch.py ...",
    ),
    (
        "PMI",
        ("PMI_SIZE",),
        ("PMI_RANK", "PMIX_RANK"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        "mpiexec -n {nodes} -ppn 1 python launch.py ...",
    ),
)


def read(environ: Mapping[str, str]) -> Detected | None:
    """The nodes according to mpirun or mpiexec; None where neither started this process. Errors: OptionError."""
    for who, size, rank, local, line in KINDS:
        total = number(environ, *size, least=1)
        # srun uses PMI too, and Slurm's own variables say more.
        if total is None or (who == "PMI" and "SLURM_JOB_ID" in environ and "MPI_LOCALNRANKS" not in environ):
            continue
        own = number(environ, *rank)
        here = number(environ, *local, least=1) or 1
        nodes = -(-total // here)
        crowded = None
        if here > 1:
            crowded = (
                f"{who} started {here} launchers on this node, and one starts all ranks of its node:"
                f" use {line.format(nodes=nodes)}"
            )
        return Detected(
            source=f"{who} (rank {own} of {total})" if own is not None else f"{who} (of {total})",
            nnodes=(nodes, nodes),
            node_rank=own if here == 1 else None,
            endpoint=_endpoint(environ),
            crowded=crowded,
            first_task=not own,
        )
    return None


def _endpoint(environ: Mapping[str, str]) -> str | None:
    """The endpoint from MASTER_ADDR, which scripts for torch.distributed pass on; None without it."""
    host = environ.get("MASTER_ADDR")
    if not host or is_loopback(host):
        return None
    return join(host, port(environ, "MASTER_PORT") or MASTER_PORT)
