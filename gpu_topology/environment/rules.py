"""The rules of the environment as tables: which variable is set when, why, and the source. docs/environment.md is
generated from them.

RULES sets variables, REMARKS comments on the user's own values, NEVER_SET lists what is deliberately left unset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu_topology.environment.alloc_conf import Merged, merge
from gpu_topology.environment.facts import Facts
from gpu_topology.select.numa import bound_threads
from gpu_topology.topology import Link, LinkLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Set `name` to `value(facts)` where `needed(facts)`.

    value   None: the variable is removed from the environment of the ranks
    reason  names the fact on this machine
    keeps   whether the user's own value takes precedence
    when, sets, why   `needed`, `value` and `reason` in general, for the documentation
    source  where the rule comes from: file and function, or manual page
    """

    name: str
    needed: Callable[[Facts], bool]
    value: Callable[[Facts], str | None]
    reason: Callable[[Facts], str]
    keeps: Callable[[Facts], bool] = lambda facts: True
    when: str
    sets: str
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment on a value that the user has set, which is kept in any case."""

    name: str
    applies: Callable[[Facts], bool]
    text: str


@dataclass(frozen=True, slots=True)
class NeverSet:
    """Variables that are often recommended as fixes but are never set here."""

    name: str
    why: str
    source: str


CUDA_GUIDE = "CUDA C++ Programming Guide, CUDA Environment Variables"
NCCL_GUIDE = "NCCL user guide, Environment Variables"
CHECK_P2P = "NCCL src/graph/paths.cc, ncclTopoCheckP2p"


def _threads(facts: Facts) -> int:
    """OpenMP threads for each rank."""
    bound = bound_threads(facts.topology, facts.selection, facts.host) if facts.bound else None
    share = facts.host.threads(facts.ranks)
    return share if bound is None else min(share, bound)


def _threads_reason(facts: Facts) -> str:
    """How `_threads` is computed, in words."""
    host, ranks = facts.host, facts.ranks
    cpus = host.usable_cores or host.usable_cpus
    noun = "physical core" if host.usable_cores and host.usable_cores < host.usable_cpus else "CPU"
    share = f"{cpus} usable {noun}{'s' * (cpus != 1)} / {ranks} rank{'s' * (ranks != 1)}"
    if _threads(facts) < host.threads(ranks):
        share += ", no more than the NUMA node has for each"
    if cpus < 2 * ranks:
        return f"{share}, at least 1"
    return share if ranks == 1 else f"{share}; torchrun would set 1 when it is unset"


def _plain_malloc(facts: Facts) -> bool:
    """Whether the trainer runs on the CPU with glibc's allocator: a preloaded one does not read glibc's variables."""
    preloaded = facts.given["LD_PRELOAD"].value if "LD_PRELOAD" in facts.given else ""
    other = any(name in preloaded for name in ("jemalloc", "tcmalloc"))
    return facts.trainer and not facts.on_gpu and facts.host.glibc and not other


def _merged(facts: Facts) -> Merged | None:
    """Both allocator variables as one, where the user has set both and they differ."""
    general, cuda = (facts.given.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    if not facts.on_gpu or general is None or cuda is None or general.value == cuda.value:
        return None
    return merge(general.value, cuda.value)


def _merged_value(facts: Facts) -> str:
    """The value of the merged allocator variable."""
    merged = _merged(facts)
    assert merged is not None
    return merged.value


def _merged_reason(facts: Facts) -> str:
    """Why the allocator variables are merged."""
    merged = _merged(facts)
    assert merged is not None
    reason = (
        "your PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF merged: of the two, torch's parsers prefer different ones"
    )
    if merged.overruled:
        reason += f"; {', '.join(merged.overruled)} as in PYTORCH_ALLOC_CONF"
    return reason


def _pairs(links: tuple[Link, ...]) -> str:
    """The first few pairs, and the driver's statuses for all: "0-1, 0-2, 0-3, ... (not-supported)"."""
    first = ", ".join(f"{link.a}-{link.b}" for link in links[:3])
    return f"{first}{', ...' if len(links) > 3 else ''} ({', '.join(sorted({str(link.p2p) for link in links}))})"


def _meets_on_loopback(facts: Facts) -> bool:
    """Whether all ranks are on this machine and meet on loopback."""
    return facts.nodes == 1 and facts.interface == "lo"


def _socket_needed(facts: Facts) -> bool:
    """Whether NCCL must be given the interface: on loopback, or on several nodes where this host has more than one."""
    several = facts.interface is not None and facts.host.interfaces != (facts.interface,)
    return facts.on_gpu and (_meets_on_loopback(facts) or (facts.nodes > 1 and several))


def _socket_reason(facts: Facts) -> str:
    """Why NCCL_SOCKET_IFNAME is set."""
    if _meets_on_loopback(facts):
        return "all ranks are on this machine: the bootstrap listens on loopback alone"
    return (
        f"{facts.nodes} nodes meet on {facts.interface}; NCCL would look at {', '.join(facts.host.interfaces) or 'all'}"
    )


def _gloo_reason(facts: Facts) -> str:
    """Why GLOO_SOCKET_IFNAME is set."""
    if _meets_on_loopback(facts):
        return "all ranks are on this machine: gloo listens on loopback alone"
    return f"{facts.nodes} nodes meet on {facts.interface}; gloo would take the address that the host name resolves to"


RULES: tuple[Rule, ...] = (
    Rule(
        name="CUDA_DEVICE_ORDER",
        needed=lambda facts: facts.by_index,
        value=lambda facts: "PCI_BUS_ID",
        reason=lambda facts: "makes CUDA count GPUs as nvidia-smi does; by default it puts the fastest first",
        when="GPUs are named by index",
        sets="`PCI_BUS_ID`",
        why="CUDA's own order puts the fastest GPU first; nvidia-smi and this project count in PCI order. On a machine "
        "of different GPUs the same index would name different ones.",
        source=CUDA_GUIDE,
    ),
    Rule(
        name="CUDA_VISIBLE_DEVICES",
        needed=lambda facts: facts.on_gpu,
        value=lambda facts: facts.devices,
        reason=lambda facts: f"the chosen GPUs: {facts.devices_in_words}",
        keeps=lambda facts: facts.mask_names_the_same,
        when="GPUs are used",
        sets="the chosen GPUs in rank order: indices, or UUIDs for MIG slices and wherever CUDA may count otherwise "
        "(your own `CUDA_DEVICE_ORDER`, a GPU that does not answer or is in MIG mode)",
        why="A rank takes the GPU with its local rank among the visible ones. A list that you have set is never "
        "widened: the GPUs are chosen within it.",
        source=CUDA_GUIDE,
    ),
    Rule(
        name="CUDA_VISIBLE_DEVICES",
        needed=lambda facts: not facts.on_gpu and bool(facts.topology.gpus),
        value=lambda facts: "",
        reason=lambda facts: "this plan is for the CPU: hides the GPUs, which are not to be used",
        when="the machine has GPUs and the plan is for the CPU",
        sets="empty",
        why="torch would otherwise take a GPU that is busy, broken or excluded.",
        source=CUDA_GUIDE,
    ),
    Rule(
        name="OMP_NUM_THREADS",
        needed=lambda facts: True,
        value=lambda facts: str(_threads(facts)),
        reason=_threads_reason,
        when="always",
        sets="usable physical cores / ranks on this machine, at least 1; no more than the rank's NUMA node has for it "
        "where ranks are bound",
        why="torchrun sets 1 when several ranks find it unset, which leaves most cores idle on the CPU. Usable means "
        "within affinity and cgroup quota. Hyperthreads are not counted: they share the units that matrix products "
        "keep busy, and torch's own default is the number of physical cores.",
        source="torch/distributed/run.py, config_from_args; c10/core/thread_pool.cpp, defaultNumThreads",
    ),
    Rule(
        name="NCCL_P2P_DISABLE",
        needed=lambda facts: bool(facts.broken_nvlinks),
        value=lambda facts: "1",
        reason=lambda facts: (
            f"NVLink without working peer access between GPUs {_pairs(facts.broken_nvlinks)}: NCCL would abort"
        ),
        when="two chosen GPUs share NVLinks and the driver reports that peer access between them does not work (GPUs "
        "in MIG mode aside: their slices never have any)",
        sets="`1`, the only value that acts",
        why="NCCL takes this for a hardware fault and aborts; with peer access off it goes through host memory. The "
        "real cure is to repair the link, bridge or NVSwitch fabric. Over PCIe NCCL falls back by itself.",
        source=f"{CHECK_P2P} and ncclGetLevel",
    ),
    Rule(
        name="NCCL_SOCKET_IFNAME",
        needed=_socket_needed,
        value=lambda facts: f"={facts.interface}",
        reason=_socket_reason,
        when="several nodes take part, the interface on which they meet is known and is not the only one; or all ranks "
        "are on this machine and meet on loopback",
        sets="`=` and the name: without `=` NCCL takes it for a prefix (`eth1` would match `eth10`)",
        why="With several interfaces each node may pick another one, and the nodes then wait for each other.",
        source=f"{NCCL_GUIDE}; src/misc/socket.cc, ncclFindInterfaces",
    ),
    Rule(
        name="GLOO_SOCKET_IFNAME",
        needed=lambda facts: facts.interface is not None and (facts.nodes > 1 or _meets_on_loopback(facts)),
        value=lambda facts: facts.interface,
        reason=_gloo_reason,
        when="several nodes take part and the interface on which they meet is known; or all ranks are on this machine "
        "and meet on loopback",
        sets="the name alone: gloo knows no `=`, `^` or prefixes",
        why="gloo binds to the address that the host name resolves to, which on many systems is 127.0.1.1.",
        source="torch/csrc/distributed/c10d/init.cpp, GLOO_SOCKET_IFNAME; ProcessGroupGloo::createDefaultDevice",
    ),
    Rule(
        name="PYTORCH_ALLOC_CONF",
        needed=lambda facts: _merged(facts) is not None,
        value=_merged_value,
        reason=_merged_reason,
        keeps=lambda facts: False,
        when="you have set both `PYTORCH_ALLOC_CONF` and `PYTORCH_CUDA_ALLOC_CONF`, to different values",
        sets="both, key by key; where they differ, `PYTORCH_ALLOC_CONF`'s",
        why="torch has two parsers of them with opposite precedence, so that each would see half of what you wanted.",
        source="torch c10/core/AllocatorConfig.h, AcceleratorAllocatorConfig; c10/cuda/CUDAAllocatorConfig.h, instance",
    ),
    Rule(
        name="PYTORCH_CUDA_ALLOC_CONF",
        needed=lambda facts: _merged(facts) is not None,
        value=lambda facts: None,
        reason=lambda facts: "its keys are in PYTORCH_ALLOC_CONF now",
        keeps=lambda facts: False,
        when="with the rule before",
        sets="removed",
        why="Set to nothing it would still count as set, and hide `PYTORCH_ALLOC_CONF` from one of the two parsers.",
        source="torch c10/cuda/CUDAAllocatorConfig.h, instance",
    ),
    Rule(
        name="MALLOC_MMAP_MAX_",
        needed=_plain_malloc,
        value=lambda facts: "0",
        reason=lambda facts: (
            "CPU training: large tensors reuse the heap instead of fresh pages from the kernel at each step"
        ),
        when="the bundled trainer runs on the CPU, the C library is glibc, no jemalloc or tcmalloc is preloaded",
        sets="`0`",
        why="glibc serves large blocks by mmap, and the kernel must clear the pages at each step. A program that frees "
        "much and needs it elsewhere would stay at its peak: no other program gets this.",
        source="mallopt(3), M_MMAP_MAX",
    ),
    Rule(
        name="MALLOC_TRIM_THRESHOLD_",
        needed=_plain_malloc,
        value=lambda facts: str(2**40),
        reason=lambda facts: "CPU training: freed memory stays in the process for the next step",
        when="with the rule before",
        sets="`1099511627776`, more than any machine has",
        why="Memory that one step frees is what the next one needs.",
        source="mallopt(3), M_TRIM_THRESHOLD",
    ),
    Rule(
        name="GOMP_SPINCOUNT",
        needed=lambda facts: facts.trainer and not facts.on_gpu and "OMP_WAIT_POLICY" not in facts.given,
        value=lambda facts: "1000",
        reason=lambda facts: "CPU training: a thread that waits for others soon frees its core for other threads",
        when="the bundled trainer runs on the CPU, and you have not set `OMP_WAIT_POLICY`",
        sets="`1000`",
        why="GNU's OpenMP, which torch's wheels bring, else spins 300,000 times before it sleeps: where another "
        "process wants the core, the thread that all wait for is the one that does not get it. `python -m "
        "benchmarks.cpu_speed --beside 1` measures both. Another OpenMP library does not read it.",
        source="GNU libgomp manual, GOMP_SPINCOUNT",
    ),
)


def _peers_work(facts: Facts) -> bool:
    """Whether NCCL would use peer access: it works for every pair, and some pair is near enough."""
    near = any(link.level is LinkLevel.NV for link in facts.peer_links) or bool(facts.peers_over_pcie)
    return near and all(link.p2p == "ok" for link in facts.links)


REMARKS: tuple[Remark, ...] = (
    Remark(
        "NCCL_P2P_DISABLE",
        lambda facts: facts.is_on("NCCL_P2P_DISABLE") and _peers_work(facts),
        "costs speed: the driver reports working peer access between all chosen GPUs",
    ),
    Remark(
        "NCCL_P2P_DISABLE",
        lambda facts: "NCCL_P2P_DISABLE" in facts.given and not facts.is_on("NCCL_P2P_DISABLE"),
        "has no effect: NCCL acts on exactly 1",
    ),
    Remark(
        "NCCL_IB_DISABLE",
        lambda facts: facts.is_on("NCCL_IB_DISABLE") and bool(facts.host.infiniband),
        "turns InfiniBand off on a machine that has it",
    ),
    Remark(
        "CUDA_LAUNCH_BLOCKING",
        lambda facts: facts.is_on("CUDA_LAUNCH_BLOCKING"),
        "makes every kernel launch wait: for debugging only",
    ),
    Remark(
        "PYTORCH_CUDA_ALLOC_CONF",
        lambda facts: (
            facts.on_gpu
            and "PYTORCH_ALLOC_CONF" in facts.given
            and facts.given["PYTORCH_ALLOC_CONF"].value != facts.given["PYTORCH_CUDA_ALLOC_CONF"].value
        ),
        "is set beside PYTORCH_ALLOC_CONF, and one of the two is no list of key:value pairs: put all into one",
    ),
)


NEVER_SET: tuple[NeverSet, ...] = (
    NeverSet(
        "NCCL_P2P_DISABLE",
        "Other than above. NCCL 2.12 and later ask the driver about each pair: where peer access over PCIe does not "
        "work they use host memory by themselves, and the variable is redundant; where it works, the variable gives it "
        "up.",
        CHECK_P2P,
    ),
    NeverSet(
        "NCCL_P2P_LEVEL",
        "NCCL's default reach (one or more PCIe switches; any path for two GPUs on an AMD CPU) follows the hardware.",
        CHECK_P2P,
    ),
    NeverSet(
        "NCCL_IGNORE_DISABLED_P2P",
        "It silences the abort on a broken NVLink, which is a fault to repair.",
        CHECK_P2P,
    ),
    NeverSet(
        "NCCL_IB_DISABLE",
        "Without InfiniBand NCCL uses sockets by itself; with it, the variable gives the fast network up.",
        f"{NCCL_GUIDE}, NCCL_IB_DISABLE",
    ),
    NeverSet(
        "NCCL_SHM_DISABLE",
        "GPUs without peer access would then talk through the network instead of host memory.",
        f"{NCCL_GUIDE}, NCCL_SHM_DISABLE",
    ),
    NeverSet(
        "NCCL_NVLS_ENABLE, NCCL_CUMEM_ENABLE",
        "NCCL turns them on by itself where driver and hardware can.",
        NCCL_GUIDE,
    ),
    NeverSet(
        "NCCL_ALGO, NCCL_PROTO, NCCL_BUFFSIZE, NCCL_MIN_NCHANNELS",
        "NCCL chooses by message size and topology; a fixed value is right for one of them.",
        NCCL_GUIDE,
    ),
    NeverSet(
        "NCCL_DEBUG",
        "It is for finding a fault. Set it yourself and it is kept.",
        f"{NCCL_GUIDE}, Debugging",
    ),
    NeverSet(
        "CUDA_LAUNCH_BLOCKING",
        "It makes every kernel launch wait for the kernel. It is for finding the line of a CUDA error.",
        CUDA_GUIDE,
    ),
    NeverSet(
        "PYTORCH_ALLOC_CONF",
        "No option of torch's allocator is needed by a fact that can be read beforehand; yours are kept.",
        "torch documentation, CUDA semantics, Memory management",
    ),
    NeverSet(
        "MKL_NUM_THREADS",
        "MKL and oneDNN follow OMP_NUM_THREADS.",
        "oneMKL Developer Guide, Techniques to Set the Number of Threads",
    ),
)
