"""Host memory that is left, by the kernel and by the control group."""

from pathlib import Path

import psutil
import pytest

from ddp_core.host_memory import available_memory, control_groups

MIB = 1 << 20


def group(folder: Path, limit: str, used: int = 0, stat: str = "") -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)
    return folder


def test_without_a_limit_it_is_the_kernels_number(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", group(tmp_path, "max")):
        assert available_memory(folder) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_limit_counts_less_what_is_used_but_for_file_pages(tmp_path: Path) -> None:
    stat = f"anon {7 * MIB}\nfile {2 * MIB}\ninactive_file {MIB}\nactive_file {MIB}\nshmem 0\n"
    assert available_memory(group(tmp_path, str(10 * MIB), 9 * MIB, stat)) == 3 * MIB


def test_never_below_nothing(tmp_path: Path) -> None:
    assert available_memory(group(tmp_path, str(MIB), 2 * MIB)) == 0


def test_the_tightest_group_of_this_process_counts(tmp_path: Path) -> None:
    """As under Slurm or systemd outside a container: the group is below the mount, and so is one above it."""
    mount = tmp_path / "sys/fs/cgroup"
    (mount / "slice/job").mkdir(parents=True)
    group(mount / "slice/job", str(10 * MIB), 2 * MIB)
    group(mount / "slice", str(20 * MIB), 17 * MIB, f"inactive_file {MIB}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slice/job\n")
    groups = control_groups(tmp_path)
    assert groups == (mount / "slice/job", mount / "slice", mount)
    assert available_memory(*groups) == 4 * MIB
