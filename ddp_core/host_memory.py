"""How much host memory is still available, by the kernel and by the control groups of this process."""

from __future__ import annotations

from pathlib import Path

from ddp_core import sysfs


def available_memory(*groups: Path) -> int:
    """Bytes that the kernel reports as available, and at most what the limit of any of the control groups leaves.

    groups: folders of control groups; by default those of this process.
    """
    import psutil  # planning and the topology tool, which use the rest of this module, do without it

    available = int(psutil.virtual_memory().available)
    for group in groups or control_groups():
        if (found := limit_and_left(group)) is not None:
            available = min(available, found[1])
    return available


def control_groups(root: Path = Path("/")) -> tuple[Path, ...]:
    """The control-group folders of this process, from its own up to the mount: the limit of every level counts."""
    folders: list[Path] = []
    for line in (sysfs.text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        # In a container's own namespace the path may not exist below the mount: then the mount itself is the group.
        parts = Path(path.lstrip("/")).parts
        folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1) if ".." not in parts[:depth]]
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def limit_and_left(group: Path) -> tuple[int, int] | None:
    """A control group's memory limit and how much of it is left, in bytes; None without a limit.

    The page cache counts as left: the kernel frees it when memory is needed. In version 1 a group without a limit has
    a huge number as its limit.
    """
    limit = sysfs.number(group / "memory.max") or sysfs.number(group / "memory.limit_in_bytes")
    if limit is None:
        return None
    used = sysfs.number(group / "memory.current") or sysfs.number(group / "memory.usage_in_bytes") or 0
    return limit, max(0, limit - used + _page_cache(group))


def _page_cache(group: Path) -> int:
    """Bytes of the group's page cache. The totals of version 1 include the groups below, as its usage does."""
    lines = (line.split() for line in (sysfs.text(group / "memory.stat") or "").splitlines())
    values = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
    return sum(values.get(f"total_{name}", values.get(name, 0)) for name in ("inactive_file", "active_file"))
