"""The host's facts from /proc and /sys, over folders that stand in for other machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_topology.host import read_host

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


def test_memory_limit_of_version_1(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    limits = {f"{group}/memory.limit_in_bytes": str(4 * 2**30), f"{group}/memory.usage_in_bytes": str(2**30)}
    host = read_host(put(tmp_path, {**V1, **limits}))
    assert (host.memory_total, host.memory_available) == (4 * 2**30, 3 * 2**30)


def test_no_limit_is_a_very_large_number_in_version_1(tmp_path):
    limits = {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2**63 - 4096)}
    assert read_host(put(tmp_path, {**V1, **limits})).memory_total == 65536000 * KIB


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
