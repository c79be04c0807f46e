"""The host's facts from /proc and /sys, over folders that stand in for other machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_topology.host.host import read_host

MEMINFO = "MemTotal:       65536000 kB\nMemFree:         1000000 kB\nMemAvailable:   60000000 kB\n"
KIB = 1024


def put(root: Path, files: dict[str, str]) -> Path:
    """Write files under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def sixty_four_cpus(monkeypatch):
    """The affinity mask is the process's own; everything else comes from files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def test_a_bare_machine(tmp_path):
    siblings = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)
    }
    nodes = {f"sys/devices/system/node/node{n}/cpulist": "" for n in range(2)}
    net = {"sys/class/net/lo/operstate": "unknown", "sys/class/net/ens1/operstate": "up"}
    net |= {"sys/class/net/ens2/operstate": "down"}
    cpuinfo = "processor : 0\nmodel name : Xeon\nflags : fpu avx2 amx_bf16\n\nprocessor : 1\nflags : other\n"
    files = {"proc/meminfo": MEMINFO, "proc/cpuinfo": cpuinfo, "sys/class/infiniband/mlx5_0/ports": ""}
    host = read_host(put(tmp_path, {**siblings, **nodes, **net, **files}))
    assert (host.usable_cpus, host.physical_cores, host.numa_nodes) == (64, 4, 2)
    assert (host.memory_total, host.memory_available) == (65536000 * KIB, 60000000 * KIB)
    assert (host.interfaces, host.infiniband) == (("ens1",), ("mlx5_0",))
    assert (host.cpu_name, host.cpu_flags) == ("Xeon", frozenset({"fpu", "avx2", "amx_bf16"}))
    assert (host.shm_total, host.shm_free) == (None, None)


V2 = {"proc/self/cgroup": "0::/user/job\n", "proc/meminfo": MEMINFO}
V1 = {"proc/self/cgroup": "3:cpu,cpuacct:/job\n2:memory:/job\n1:pids:/\n", "proc/meminfo": MEMINFO}

QUOTAS = {
    # what: (files, usable CPUs)
    "version 2": ({**V2, "sys/fs/cgroup/user/job/cpu.max": "350000 100000"}, 3),
    "version 2, the parent's is lower": (
        {**V2, "sys/fs/cgroup/user/job/cpu.max": "800000 100000", "sys/fs/cgroup/user/cpu.max": "200000 100000"},
        2,
    ),
    "version 2, no limit": ({**V2, "sys/fs/cgroup/user/job/cpu.max": "max 100000"}, 64),
    "version 2, less than one": ({**V2, "sys/fs/cgroup/user/job/cpu.max": "50000 100000"}, 1),
    "version 2, a container's own namespace": (
        {"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/cpu.max": "400000 100000"},
        4,
    ),
    "version 1": (
        {
            **V1,
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "600000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
        6,
    ),
    "version 1, no limit": (
        {
            **V1,
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
        64,
    ),
    "nothing mounted": (V1, 64),
}


@pytest.mark.parametrize("what", QUOTAS)
def test_cpu_quota(what, tmp_path):
    files, cpus = QUOTAS[what]
    assert read_host(put(tmp_path, files)).usable_cpus == cpus


def test_affinity_narrower_than_the_quota_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5})
    files = {**V2, "sys/fs/cgroup/user/job/cpu.max": "350000 100000"}
    assert read_host(put(tmp_path, files)).usable_cpus == 2


def test_memory_limit_of_version_2(tmp_path):
    group = "sys/fs/cgroup/user/job"
    limits = {f"{group}/memory.max": str(8 * 2**30), f"{group}/memory.current": str(6 * 2**30)}
    host = read_host(put(tmp_path, {**V2, **limits, f"{group}/memory.stat": f"anon 1\ninactive_file {2**30}\n"}))
    assert (host.memory_total, host.memory_available) == (8 * 2**30, 3 * 2**30)


def test_a_group_above_that_others_have_filled(tmp_path):
    own, above = "sys/fs/cgroup/user/job", "sys/fs/cgroup/user"
    limits = {f"{own}/memory.max": str(8 * 2**30), f"{own}/memory.current": str(2**30)}
    limits |= {f"{above}/memory.max": str(16 * 2**30), f"{above}/memory.current": str(15 * 2**30)}
    host = read_host(put(tmp_path, {**V2, **limits}))
    assert (host.memory_total, host.memory_available) == (8 * 2**30, 2**30)


def test_memory_limit_of_version_1(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    limits = {f"{group}/memory.limit_in_bytes": str(4 * 2**30), f"{group}/memory.usage_in_bytes": str(2**30)}
    host = read_host(put(tmp_path, {**V1, **limits}))
    assert (host.memory_total, host.memory_available) == (4 * 2**30, 3 * 2**30)


def test_no_limit_is_a_very_large_number_in_version_1(tmp_path):
    limits = {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2**63 - 4096)}
    assert read_host(put(tmp_path, {**V1, **limits})).memory_total == 65536000 * KIB


CPUINFO = "processor : 0\nvendor_id : AuthenticAMD\nmodel name : EPYC\nflags : fpu avx2{}\n\nprocessor : 1\n"
DMI = "sys/class/dmi/id"

MACHINES = {
    # what: (files, the hypervisor)
    "bare metal": ({f"{DMI}/sys_vendor": "NVIDIA", f"{DMI}/product_name": "DGXH100"}, None),
    "bare metal of a cloud": ({f"{DMI}/sys_vendor": "Amazon EC2", f"{DMI}/product_name": "p5.metal"}, None),
    "a flag, no names": ({"proc/cpuinfo": CPUINFO.format(" hypervisor")}, "unknown"),
    "a flag, Xen's own folder": (
        {"proc/cpuinfo": CPUINFO.format(" hypervisor"), "sys/hypervisor/type": "xen\n"},
        "xen",
    ),
    "KVM": ({"proc/cpuinfo": CPUINFO.format(" hypervisor"), f"{DMI}/sys_vendor": "QEMU"}, "kvm"),
    "Azure": (
        {
            "proc/cpuinfo": CPUINFO.format(" hypervisor"),
            f"{DMI}/sys_vendor": "Microsoft Corporation",
            f"{DMI}/product_name": "Virtual Machine",
        },
        "hyper-v",
    ),
    "names without the flag": ({"proc/cpuinfo": CPUINFO.format(""), f"{DMI}/sys_vendor": "QEMU"}, None),
    "Arm has no flag": ({"proc/cpuinfo": "processor : 0\nFeatures : fp asimd\n", f"{DMI}/sys_vendor": "QEMU"}, "kvm"),
    "Arm, bare metal": ({"proc/cpuinfo": "processor : 0\nFeatures : fp asimd\n", f"{DMI}/sys_vendor": "HPE"}, None),
}


@pytest.mark.parametrize("what", MACHINES)
def test_virtual_machine(what, tmp_path):
    files, hypervisor = MACHINES[what]
    assert read_host(put(tmp_path, files), {}).virtual_machine == hypervisor


CONTAINERS = {
    # what: (files, variables, the container)
    "none": ({"proc/self/cgroup": "0::/user.slice/session-1.scope\n"}, {}, None),
    "Docker": ({".dockerenv": ""}, {}, "docker"),
    "Podman": ({"run/.containerenv": ""}, {}, "podman"),
    "Kubernetes over Docker": ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    "Apptainer": ({".singularity.d/runscript": ""}, {}, "apptainer"),
    "LXC": ({"run/systemd/container": "lxc\n"}, {}, "lxc"),
    "systemd's variable": ({}, {"container": "systemd-nspawn"}, "systemd-nspawn"),
    "a pod by its group": ({"proc/self/cgroup": "0::/kubepods/burstable/pod1/2\n"}, {}, "kubernetes"),
    "Docker by its group": ({"proc/self/cgroup": "3:cpu:/docker/0123\n"}, {}, "docker"),
}


@pytest.mark.parametrize("what", CONTAINERS)
def test_container(what, tmp_path):
    files, environ, container = CONTAINERS[what]
    assert read_host(put(tmp_path, files), environ).container == container


def test_the_iommu_groups_of_the_gpus_alone(tmp_path):
    devices = "sys/bus/pci/devices"
    files = {
        "sys/class/iommu/ivhd0/x": "",
        "sys/class/iommu/ivhd1/x": "",
        "proc/driver/nvidia/gpus/0000:41:00.0/information": "",
        "proc/driver/nvidia/gpus/0000:61:00.0/information": "",
        f"{devices}/0000:41:00.0/iommu_group/type": "identity\n",
        f"{devices}/0000:61:00.0/iommu_group/type": "identity\n",
        f"{devices}/0000:99:00.0/iommu_group/type": "DMA\n",
        "sys/kernel/iommu_groups/7/type": "DMA-FQ\n",
    }
    host = read_host(put(tmp_path, files), {})
    assert (host.iommu, host.iommu_types) == (("ivhd0", "ivhd1"), ("identity",))


def test_iommu_groups_without_a_list_of_gpus(tmp_path):
    files = {f"sys/kernel/iommu_groups/{n}/type": "DMA-FQ\n" for n in range(40)} | {"sys/class/iommu/dmar0/x": ""}
    assert read_host(put(tmp_path, files), {}).iommu_types == ("DMA-FQ",)


def test_types_of_groups_mean_nothing_without_an_iommu(tmp_path):
    host = read_host(put(tmp_path, {"sys/kernel/iommu_groups/0/type": "DMA\n"}), {})
    assert (host.iommu, host.iommu_types) == ((), ())


def topology_of_cpus(siblings: dict[int, str], nodes: dict[int, str]) -> dict[str, str]:
    cpus = "sys/devices/system/cpu"
    files = {f"{cpus}/cpu{n}/topology/thread_siblings_list": text for n, text in siblings.items()}
    files |= {f"{cpus}/cpu{n}/topology/physical_package_id": str(int(n >= 4)) for n in siblings}
    return files | {f"sys/devices/system/node/node{n}/cpulist": text for n, text in nodes.items()}


# Eight CPUs in four cores on two nodes, and a node of memory alone.
HYPERTHREADED = topology_of_cpus({n: f"{n - n % 2}-{n - n % 2 + 1}" for n in range(8)}, {0: "0-3", 1: "4-7", 2: ""})

CORES = {
    # what: (affinity, files, usable cores, cores by node)
    "all": (range(8), {}, 4, {0: 2, 1: 2}),
    "one thread of each core": (range(0, 8, 2), {}, 4, {0: 2, 1: 2}),
    "both threads of one core": ((0, 1), {}, 1, {0: 1}),
    "a quota below the cores": (range(8), {**V2, "sys/fs/cgroup/user/job/cpu.max": "300000 100000"}, 3, {0: 2, 1: 2}),
    "one node": ((4, 5, 6), {}, 2, {1: 2}),
}


@pytest.mark.parametrize("what", CORES)
def test_usable_cores_and_nodes(what, tmp_path, monkeypatch):
    affinity, files, cores, nodes = CORES[what]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity))
    host = read_host(put(tmp_path, {**HYPERTHREADED, **files}), {})
    assert (host.usable_cores, host.physical_cores, host.numa_nodes) == (cores, 4, 3)
    assert {node.index: node.cores for node in host.usable_nodes} == nodes
    assert {node.socket for node in host.usable_nodes} <= {0, 1}


def test_threads_are_a_share_of_cores_else_of_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [read_host(tmp_path, {}).threads(ranks) for ranks in (1, 2, 3, 99)] == [8, 4, 2, 1]
    assert read_host(put(tmp_path, HYPERTHREADED), {}).threads(2) == 2


def test_numactl_on_path(tmp_path):
    assert not read_host(tmp_path, {"PATH": "/usr/bin"}).numactl
    program = put(tmp_path, {"usr/bin/numactl": "#!/bin/sh\n"}) / "usr/bin/numactl"
    assert not read_host(tmp_path, {"PATH": "/bin::/usr/bin"}).numactl
    program.chmod(0o755)
    host = read_host(tmp_path, {"PATH": "/bin::/usr/bin"})
    assert host.numactl
    assert host.numa_policy is not None or os.uname().machine not in ("x86_64", "aarch64")
    assert read_host(tmp_path, {"PATH": "/bin"}).numa_policy is None


def test_the_vendor_of_the_cpu_and_nccls_files(tmp_path):
    files = {"proc/cpuinfo": CPUINFO.format(""), "etc/nccl.conf": "NCCL_DEBUG=WARN\n"}
    host = read_host(put(tmp_path, files), {})
    assert (host.cpu_vendor, host.cpu_name) == ("AuthenticAMD", "EPYC")
    assert [(one.name, one.value, one.file) for one in host.nccl_conf] == [("NCCL_DEBUG", "WARN", "/etc/nccl.conf")]


def test_an_empty_root_still_gives_a_host(tmp_path):
    host = read_host(tmp_path)
    assert host.usable_cpus == 64
    assert host.physical_cores >= 1
    assert (host.interfaces, host.infiniband, host.cpu_flags) == ((), (), frozenset())


def test_this_machine(monkeypatch):
    monkeypatch.undo()
    host = read_host()
    assert 1 <= host.usable_cpus <= len(os.sched_getaffinity(0))
    assert 0 < host.memory_available <= host.memory_total
    assert host.hostname
