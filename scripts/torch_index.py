"""Prints where pip finds a torch that fits the driver and the GPUs of this machine; nothing where PyPI's own does.

For scripts/environment.sh, before torch is there: needs nvidia-ml-py alone.
"""

from __future__ import annotations

from ddp_core.errors import UserError
from gpu_topology.driver.read import read_or_explain
from gpu_topology.host.torch_build import BUILDS, build_for, has_code, index, major
from gpu_topology.topology import Topology

# PyPI's torch is built for a CUDA of this major version since torch 2.11.
ON_PYPI = "13.0"


def torch_index(topology: Topology) -> str | None:
    """The index of a build that the driver can run and that has code for most GPUs; None where PyPI's will do."""
    capabilities = [gpu.compute_capability for gpu in topology.gpus if gpu.compute_capability and not gpu.error]
    cuda = topology.cuda_version
    fits = cuda is None or major(cuda) >= major(ON_PYPI)
    if not capabilities or (fits and any(has_code(BUILDS[ON_PYPI], one) for one in capabilities)):
        return None
    build = build_for(capabilities, cuda)
    return None if build is None else index(build)


if __name__ == "__main__":
    try:
        print(torch_index(read_or_explain()) or "")
    except UserError:  # the driver hangs: the plan says so
        print()
