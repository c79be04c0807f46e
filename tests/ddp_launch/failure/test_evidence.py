"""The kernel's count of processes that it killed for memory."""

from __future__ import annotations

from pathlib import Path

from ddp_launch.failure.evidence import Kills, read_kills


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_version_2(tmp_path: Path) -> None:
    events = {"sys/fs/cgroup/user/job/memory.events": "low 0\noom 5\noom_kill 3\noom_group_kill 1\n"}
    root = tree(tmp_path, {"proc/self/cgroup": "0::/user/job\n", "proc/vmstat": "oom_kill 9\n", **events})
    assert read_kills(root) == Kills(3, "of this job's cgroup")


def test_a_container_whose_cgroup_is_the_top(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/docker/1\n", "sys/fs/cgroup/memory.events": "oom_kill 2\n"})
    assert read_kills(root) == Kills(2, "of this job's cgroup")


def test_version_1(tmp_path: Path) -> None:
    lines = "9:name=systemd:/\n4:memory:/job\n0::/\n"
    control = {"sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}
    assert read_kills(tree(tmp_path, {"proc/self/cgroup": lines, **control})) == Kills(1, "of this job's cgroup")


def test_the_machine_where_no_cgroup_tells(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "proc/vmstat": "pgfault 1\noom_kill 4\n"})
    assert read_kills(root) == Kills(4, "on this machine")


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert read_kills(tmp_path) is None


def test_the_difference() -> None:
    assert Kills(5, "here").since(Kills(3, "here")) == 2
    assert Kills(5, "here").since(Kills(3, "there")) is None
    assert Kills(5, "here").since(None) is None
