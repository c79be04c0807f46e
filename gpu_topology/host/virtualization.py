"""The layers between this process and bare metal: hypervisor, container and IOMMU; and whether numactl may work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ddp_core import sysfs

# (text in the firmware's tables, name used here); systemd-detect-virt(1) identifies hypervisors in the same way.
_HYPERVISORS = (
    ("VMware", "vmware"),
    ("VirtualBox", "virtualbox"),
    ("Microsoft Corporation Virtual Machine", "hyper-v"),
    ("Parallels", "parallels"),
    ("Xen", "xen"),
    ("Google Compute Engine", "google-compute-engine"),
    ("Amazon EC2", "amazon-ec2"),
    ("OpenStack", "openstack"),
    ("BHYVE", "bhyve"),
    ("QEMU", "kvm"),
    ("KVM", "kvm"),
)

# (file that the container engine creates, name used here)
_CONTAINER_FILES = (
    (".dockerenv", "docker"),
    ("run/.containerenv", "podman"),
    (".singularity.d", "apptainer"),
)

# (text in the name of the control group, name used here)
_CONTAINER_GROUPS = (("kubepods", "kubernetes"), ("docker", "docker"), ("containerd", "containerd"), ("lxc", "lxc"))

# The number of get_mempolicy(2), which glibc does not wrap.
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}

# Machines have hundreds of IOMMU groups, nearly always of one type.
_GROUPS_READ = 16


def read_virtual_machine(root: Path, cpu_flags: frozenset[str]) -> str | None:
    """The hypervisor's name, "unknown" for one that hides it; None on bare metal.

    x86 has a CPU flag for it (CPUID.1:ECX[31]), which decides; elsewhere the firmware's names are all there is.
    """
    folder = root / "sys/class/dmi/id"
    names = " ".join(sysfs.text(folder / name) or "" for name in ("sys_vendor", "product_name"))
    word = next((word for part, word in _HYPERVISORS if part in names), None)
    if "hypervisor" in cpu_flags:
        return word or sysfs.text(root / "sys/hypervisor/type") or "unknown"
    tells = not cpu_flags or "fpu" not in cpu_flags  # x86 lists "fpu", Arm does not
    return word if tells and not names.endswith(".metal") else None


def read_container(root: Path, environ: Mapping[str, str]) -> str | None:
    """The container's kind ("kubernetes", "docker", "podman", "apptainer", "lxc", ...), None outside of one."""
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    for name, word in _CONTAINER_FILES:
        if (root / name).exists():
            return word
    named = sysfs.text(root / "run/systemd/container") or environ.get("container")
    if named:
        return named
    groups = sysfs.text(root / "proc/self/cgroup") or ""
    return next((word for part, word in _CONTAINER_GROUPS if part in groups), None)


def read_iommu(root: Path) -> tuple[str, ...]:
    """The IOMMUs that the kernel drives: "dmar0" (Intel), "ivhd0" (AMD), "smmu3.0x..." (Arm)."""
    return sysfs.entries(root / "sys/class/iommu")


def read_iommu_types(root: Path) -> tuple[str, ...]:
    """The distinct types of the GPUs' IOMMU groups; of some groups where the driver does not list its GPUs.

    "DMA" and "DMA-FQ" translate addresses, "identity" passes them through (kernel ABI, sysfs-kernel-iommu_groups).
    """
    buses = sysfs.entries(root / "proc/driver/nvidia/gpus")
    types = {sysfs.text(root / "sys/bus/pci/devices" / bus / "iommu_group/type") for bus in buses} - {None}
    if not types:
        folder = root / "sys/kernel/iommu_groups"
        types = {sysfs.text(folder / name / "type") for name in sysfs.entries(folder)[:_GROUPS_READ]} - {None}
    return tuple(sorted(word for word in types if word))


def has_numactl(root: Path, environ: Mapping[str, str]) -> bool:
    """Whether the program numactl is on PATH."""
    folders = [str(root / folder.lstrip("/")) for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    return shutil.which("numactl", path=os.pathsep.join(folders)) is not None


def numactl_works() -> bool | None:
    """Whether the kernel lets this process read its memory policy; None where that cannot be found out.

    numactl makes this call first and gives up when it is refused (libnuma, numa_available). Docker's default seccomp
    profile refuses it to containers without CAP_SYS_NICE.
    """
    call = _GET_MEMPOLICY.get(os.uname().machine)
    if call is None:
        return None
    import ctypes  # slow to import, and most machines have one NUMA node

    try:
        return bool(ctypes.CDLL(None).syscall(ctypes.c_long(call), None, None, 0, None, 0) == 0)
    except (OSError, AttributeError):
        return None
