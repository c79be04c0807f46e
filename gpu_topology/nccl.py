"""The environment for a selection: a table of rules, each with the fact it follows from and its source.

Nothing is set "to be safe". NCCL reads the P2P status of each pair itself since 2.12, so most variables that circulate
in forums only cost speed. What the user has set is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gpu_topology.host import Host
from gpu_topology.selection import Selection
from gpu_topology.topology import LinkLevel, Topology
from gpu_topology.visible import parse_visible


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable with the reason for its value. `kept`: the user's own value, left as it is."""

    name: str
    value: str
    reason: str
    kept: bool = False


class Verdict(Protocol):
    """What a check of the selection found: see `verify_cache.Verdict`. `settings`: (name, value, reason)."""

    @property
    def ok(self) -> bool:
        """Whether copies and collectives gave right answers in time."""

    @property
    def when(self) -> str:
        """The date of the check."""

    @property
    def settings(self) -> tuple[tuple[str, str, str], ...]:
        """What cures the problem that was found."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules may look at. `ranks` is the number of processes on this node."""

    topology: Topology
    selection: Selection
    host: Host
    ranks: int
    environ: Mapping[str, str]

    @property
    def on_gpu(self) -> bool:
        """Whether the plan is for GPUs."""
        return bool(self.selection.indices)

    @property
    def has_mig(self) -> bool:
        """Whether a chosen device is a MIG slice."""
        return any(uuid.startswith("MIG-") for uuid in self.selection.uuids)

    @property
    def broken_nvlinks(self) -> tuple[str, ...]:
        """Chosen pairs that share NVLinks although the driver reports no peer access: "0-1 (not-supported)"."""
        links = self.topology.links_within(self.selection.indices)
        return tuple(
            f"{link.a}-{link.b} ({link.p2p})"
            for link in links
            if link.level is LinkLevel.NV and link.p2p not in (None, "ok")
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """Set `name` to `value(facts)` where `needed(facts)`; `source` is where the rule comes from."""

    name: str
    needed: Callable[[Facts], bool]
    value: Callable[[Facts], str]
    reason: Callable[[Facts], str]
    source: str


def environment(
    topology: Topology,
    selection: Selection,
    host: Host,
    *,
    ranks: int,
    environ: Mapping[str, str],
    interface: str | None = None,
    nodes: int = 1,
    verdict: Verdict | None = None,
) -> tuple[Setting, ...]:
    """The variables for `ranks` processes on this node: those that are needed, then those that the user has set.

    `interface`: the network interface on which the ranks meet, where it was chosen. `verdict`: what `verify` found.
    An empty selection is a plan for the CPU: nothing of NCCL, and CUDA only to hide GPUs that are there but not used.
    """
    facts = Facts(topology, selection, host, max(1, ranks), environ)
    settings = [_apply(rule, facts) for rule in RULES if rule.needed(facts)]
    named = {setting.name for setting in settings}
    for name in sorted(environ):
        if name not in named and _is_shown(name, facts):
            settings.append(Setting(name, environ[name], _remark(name, facts), kept=True))
    return tuple(settings)


def _apply(rule: Rule, facts: Facts) -> Setting:
    value, reason = rule.value(facts), rule.reason(facts)
    own = facts.environ.get(rule.name)
    if own is None:
        return Setting(rule.name, value, reason)
    if rule.name == "CUDA_VISIBLE_DEVICES" and facts.on_gpu:
        if _same_devices(own, facts):
            return Setting(rule.name, own, "set by you; every GPU in it is used", kept=True)
        return Setting(rule.name, value, f"{reason}; chosen within your CUDA_VISIBLE_DEVICES={own}")
    agrees = "" if own == value else f"; otherwise it would be {value} ({reason})"
    return Setting(rule.name, own, f"set by you{agrees}", kept=True)


def _same_devices(own: str, facts: Facts) -> bool:
    """Whether the user's list leads CUDA to the chosen devices in the chosen order."""
    visible = parse_visible(own, facts.topology.gpus)
    if visible.by_index and _counts_differ(facts):
        return False
    names = [named.mig.uuid if named.mig else named.gpu.uuid or str(named.gpu.index) for named in visible.named]
    return names == list(facts.selection.uuids)


def _is_shown(name: str, facts: Facts) -> bool:
    """Whether a variable of the user's that no rule sets belongs on the page."""
    if name.startswith(("NCCL_", "CUDA_", "TORCH_NCCL_")):
        return facts.on_gpu and name != "CUDA_HOME"
    return name in ("GLOO_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def _remark(name: str, facts: Facts) -> str:
    words = [text for about, applies, text in _REMARKS if about == name and applies(facts)]
    return "; ".join(["set by you", *words])


def _threads(facts: Facts) -> str:
    return str(max(1, facts.host.usable_cpus // facts.ranks))


def _threads_reason(facts: Facts) -> str:
    cpus, ranks = facts.host.usable_cpus, facts.ranks
    share = f"{cpus} usable CPU{'s' * (cpus != 1)} / {ranks} rank{'s' * (ranks != 1)}"
    if cpus < 2 * ranks:
        return f"{share}, at least 1"
    return share if ranks == 1 else f"{share}; torchrun would set 1 when it is unset"


def _counts_differ(facts: Facts) -> bool:
    """Whether CUDA may count GPUs otherwise than the driver: by another order, or without those that it cannot open."""
    other_order = facts.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID") != "PCI_BUS_ID"
    return other_order or any(gpu.error is not None or gpu.mig_mode for gpu in facts.topology.gpus)


def _devices(facts: Facts) -> str:
    if facts.has_mig or _counts_differ(facts):
        return ",".join(facts.selection.uuids)
    return ",".join(str(index) for index in facts.selection.indices)


def _plain_malloc(facts: Facts) -> bool:
    """glibc's own allocator: another one preloaded reads none of its variables."""
    preloaded = facts.environ.get("LD_PRELOAD", "")
    return not facts.on_gpu and facts.host.glibc and not any(name in preloaded for name in ("jemalloc", "tcmalloc"))


RULES: tuple[Rule, ...] = (
    Rule(
        name="CUDA_DEVICE_ORDER",
        needed=lambda facts: facts.on_gpu and not facts.has_mig,
        value=lambda facts: "PCI_BUS_ID",
        reason=lambda facts: "makes CUDA count GPUs as nvidia-smi does; by default it puts the fastest first",
        source="CUDA programming guide, CUDA environment variables",
    ),
    Rule(
        name="CUDA_VISIBLE_DEVICES",
        needed=lambda facts: facts.on_gpu,
        value=_devices,
        reason=lambda facts: f"the chosen GPUs: {facts.selection.group}",
        source="CUDA programming guide, CUDA environment variables",
    ),
    Rule(
        name="CUDA_VISIBLE_DEVICES",
        needed=lambda facts: not facts.on_gpu and bool(facts.topology.gpus),
        value=lambda facts: "",
        reason=lambda facts: "this plan is for the CPU: hides the GPUs, which are not to be used",
        source="CUDA programming guide, CUDA environment variables",
    ),
    Rule(
        name="OMP_NUM_THREADS",
        needed=lambda facts: True,
        value=_threads,
        reason=_threads_reason,
        source="torch/distributed/run.py (config_from_args)",
    ),
    Rule(
        name="NCCL_P2P_DISABLE",
        needed=lambda facts: bool(facts.broken_nvlinks),
        value=lambda facts: "1",
        reason=lambda facts: (
            f"NVLink without working peer access between GPUs {', '.join(facts.broken_nvlinks)}: NCCL would abort"
        ),
        source="NCCL src/graph/paths.cc (ncclTopoCheckP2p): an NVLink path whose P2P status is not OK is an error",
    ),
    Rule(
        name="MALLOC_MMAP_MAX_",
        needed=_plain_malloc,
        value=lambda facts: "0",
        reason=lambda facts: (
            "CPU training: large tensors reuse the heap instead of fresh pages from the kernel at each step"
        ),
        source="mallopt(3), M_MMAP_MAX",
    ),
    Rule(
        name="MALLOC_TRIM_THRESHOLD_",
        needed=_plain_malloc,
        value=lambda facts: str(2**40),
        reason=lambda facts: "CPU training: freed memory stays in the process for the next step",
        source="mallopt(3), M_TRIM_THRESHOLD",
    ),
)


def _peers_work(facts: Facts) -> bool:
    """Whether NCCL would use peer access: it works, and some pair is near enough (NCCL's default reach is PXB)."""
    links = list(facts.topology.links_within(facts.selection.indices))
    near = any(link.level in (LinkLevel.NV, LinkLevel.PIX, LinkLevel.PXB) for link in links)
    return near and all(link.p2p == "ok" for link in links)


# What is worth saying about the user's own variables: (name, when, words). They are kept in any case.
_REMARKS: tuple[tuple[str, Callable[[Facts], bool], str], ...] = (
    (
        "NCCL_P2P_DISABLE",
        lambda facts: facts.environ["NCCL_P2P_DISABLE"] == "1" and _peers_work(facts),
        "costs speed: the driver reports working peer access between all chosen GPUs",
    ),
    (
        "NCCL_IB_DISABLE",
        lambda facts: facts.environ["NCCL_IB_DISABLE"] == "1" and bool(facts.host.infiniband),
        "turns InfiniBand off on a machine that has it",
    ),
    (
        "CUDA_LAUNCH_BLOCKING",
        lambda facts: facts.environ["CUDA_LAUNCH_BLOCKING"] == "1",
        "makes every kernel launch wait: for debugging only",
    ),
    (
        "PYTORCH_CUDA_ALLOC_CONF",
        lambda facts: "PYTORCH_ALLOC_CONF" in facts.environ,
        "PYTORCH_ALLOC_CONF is set too, and parts of torch prefer one, parts the other: put all into one",
    ),
)

# Below this, workers of a DataLoader and NCCL's shared-memory transport run into "Bus error".
_SHM_FLOOR = 1 * 2**30


def needs_verify(topology: Topology, selection: Selection, host: Host) -> str | None:
    """Why peer access that the driver calls working may still fail, in one line; None where nothing is in doubt."""
    translates = set(host.iommu_types) - {"identity"}
    if not host.iommu or not translates:
        return None
    over_pcie = [link for link in topology.links_within(selection.indices) if link.level is not LinkLevel.NV]
    if not any(link.p2p == "ok" for link in over_pcie):
        return None
    return f"peer access over PCIe needs verify: an IOMMU is on ({', '.join(host.iommu)})"


def notes(topology: Topology, selection: Selection, host: Host) -> tuple[str, ...]:
    """What is deliberately not set, and what the environment cannot mend."""
    found: list[str] = []
    links = list(topology.links_within(selection.indices))
    over_pcie = [link.p2p for link in links if link.level is not LinkLevel.NV]
    refused = sorted({status for status in over_pcie if status not in (None, "ok")})
    if refused:
        found.append(
            f"no peer access over PCIe ({', '.join(refused)}): NCCL uses host memory by itself,"
            " NCCL_P2P_DISABLE would be redundant and stays unset"
        )
    stopped = [gpu.index for gpu in topology.gpus if gpu.index in selection.indices and _fabric_down(gpu.fabric_state)]
    if stopped:
        found.append(
            f"the NVSwitch fabric of GPU {', '.join(map(str, stopped))} is not up: CUDA will not start there;"
            " run `systemctl start nvidia-fabricmanager`"
        )
    if host.shm_total is not None and host.shm_total < _SHM_FLOOR and (len(selection.indices) > 1):
        found.append(
            f"/dev/shm has {host.shm_total / 2**20:.0f} MiB, which NCCL and DataLoader workers can exhaust;"
            " in a container, start it with `--shm-size=8g` or `--ipc=host`"
        )
    return tuple(found)


def _fabric_down(state: str | None) -> bool:
    return state in ("not-started", "in-progress")
