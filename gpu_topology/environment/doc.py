"""docs/environment.md from the rules: `python -m gpu_topology.environment.doc > docs/environment.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpu_topology.environment.rules import NEVER_SET, REMARKS, RULES

_HEAD = """\
# The environment

<!-- Generated from gpu_topology/environment/rules.py: python -m gpu_topology.environment.doc > docs/environment.md -->

Every variable that `launch.py` or `python -m gpu_topology env` sets follows from a fact that was read on the
machine, and is shown with that fact. Nothing is set "to be safe": most variables that circulate as cures for
hanging or slow runs cost speed where they are not needed, and NCCL finds out by itself what they are meant to
tell it.

    python -m gpu_topology env                # export lines, each with its reason
    python -m gpu_topology report             # the same, with what is in doubt and what is left unset
    python launch.py --auto --dry-run         # the environment of a run

## What is set, when, and why
"""

_KEPT = """\
## Your own values

A variable that you have set is kept and shown as `kept`, with what it would be otherwise. The exceptions, each
named in the reason: `CUDA_VISIBLE_DEVICES` is narrowed to the GPUs that were chosen within it, and the two
variables of torch's memory allocator become one.

NCCL reads files too: the one that `NCCL_CONF_FILE` names, or else `~/.nccl.conf`; then `/etc/nccl.conf`. A
variable from there counts as yours and is shown with its file. The environment wins over the files, the first
file over the second, an earlier line over a later one (NCCL `src/misc/param.cc`, `initEnvFunc`). NCCL strips no
spaces: a line with one before `=` has no effect.

What is said about some of them:
"""

_PEERS = (
    ("between two GPUs", "the driver says", "what NCCL does by itself", "what is set"),
    ("---", "---", "---", "---"),
    ("NVLink", "ok", "uses it", "nothing"),
    ("NVLink", "anything else", "aborts", "`NCCL_P2P_DISABLE=1`"),
    ("PCIe switches alone (PIX, PXB)", "ok", "peer access", "nothing, after `verify` where that is in doubt"),
    ("PCIe through the CPU (PHB, NODE, SYS)", "ok", "host memory", "nothing"),
    ("the same, two GPUs on an AMD CPU", "ok", "peer access", "nothing, after `verify` where that is in doubt"),
    ("PCIe", "anything else", "host memory", "nothing: `NCCL_P2P_DISABLE` would be redundant"),
)

_DOUBT = """\
A status of ok is necessary and not sufficient. Where an IOMMU translates the addresses of PCIe peer requests,
or PCIe Access Control Services (ACS) send them through the CPU, copies can hang or arrive corrupted (NCCL user
guide, Troubleshooting, PCI Access Control Services). The report then says "needs verify", with its evidence:

- an IOMMU in `/sys/class/iommu`, unless the groups of all the GPUs (`/sys/bus/pci/devices/*/iommu_group/type`)
  have the type `identity`, which passes addresses through; `DMA` and `DMA-FQ` translate them;
- a virtual machine: its hypervisor keeps both on.

ACS itself can be read by root alone. `python -m gpu_topology verify` settles the doubt with real data. What it
finds is kept for this driver, this NCCL and these GPUs, and takes the place of the doubt: the variables that
fixed a fault are set with that reason, or the report says on which day the GPUs were verified.

## NUMA binding

On a machine with several NUMA nodes the ranks are bound to the CPUs beside their GPUs by torchrun's own
`--numa-binding`: mode `node` where each node that this process may use has a chosen GPU, mode `socket` where
each socket has one, and not at all where CPUs would be left idle. torch starts each rank through the program
`numactl` (torch/numa/binding.py), so binding also needs that program, a kernel that lets it work (Docker's
default seccomp profile does not, without `--cap-add=SYS_NICE`), known nodes for all chosen GPUs, a usable CPU on
each of them, and GPUs that admit more than one process. `launch.py --numa-binding MODE` asks for one of
torchrun's modes, `off` for none. The effect on speed is not yet measured here.

## /dev/shm

NCCL between GPUs without peer access and the workers of a DataLoader share memory through `/dev/shm`. Docker
gives a container 64 MiB; below 1 GiB the report warns and names the fix: `docker run --shm-size=8g` or
`--ipc=host`, in Kubernetes an `emptyDir` with `medium: Memory` mounted there.

## Never set
"""


def page() -> str:
    """The whole page as Markdown."""
    remarks = (f"- `{remark.name}` {remark.text}." for remark in REMARKS)
    peers = ("## Peer access: what NCCL does, and what stays in doubt\n", *_table(_PEERS), "")
    return "\n".join([_HEAD, *_rules(), _KEPT, *remarks, "", *peers, _DOUBT, *_never()]) + "\n"


def _rules() -> Iterator[str]:
    """The section on each rule."""
    before = ""
    for rule in RULES:
        yield f"### {rule.name}{', otherwise' if rule.name == before else ''}\n"
        yield f"- **When** {rule.when}."
        yield f"- **Value** {rule.sets}."
        yield f"- **Why** {rule.why}"
        yield f"- **Source** {rule.source}.\n"
        before = rule.name


def _never() -> Iterator[str]:
    """The table of variables that are never set."""
    yield from _table((("variable", "why not", "source"), ("---", "---", "---")))
    for row in NEVER_SET:
        names = ", ".join(f"`{name}`" for name in row.name.split(", "))
        yield from _table(((names, row.why, row.source),))


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines of a Markdown table."""
    return (f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(page(), end="")
