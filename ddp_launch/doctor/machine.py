"""The doctor's checks of installation and host, which only read: packages, limits, memory, disk, network. No torch."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ddp_core.missing_packages import REQUIREMENTS as REQUIREMENTS_BY_MODULE
from ddp_launch.doctor.check import INSTALL, Check, Status
from ddp_train.config.options import Config
from gpu_topology.host.host import Host

MIB, GIB = 2**20, 2**30
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
OPEN_FILES = 4096
PROCESSES = 4096
SHM_FLOOR = GIB
DISK_FLOOR, DISK_ENOUGH = 100 * MIB, 2 * GIB
RESOLVE_S = 3.0


def requirements() -> dict[str, str]:
    """Package name -> least version, from requirements.txt; from the metadata where the project was installed."""
    try:
        lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = _of_the_installed_project()
    found = (re.match(r"([A-Za-z0-9_.-]+)[^#]*?>=\s*([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _of_the_installed_project() -> list[str]:
    """The requirements in the project's metadata; without it, as where its folders were copied, those that it knows."""
    try:
        lines = importlib.metadata.requires("ddp-launch") or []
    except importlib.metadata.PackageNotFoundError:
        return [f"{name}>=0" for name in REQUIREMENTS_BY_MODULE.values()]
    return [line for line in lines if "extra" not in line or re.search(r"extra == .train.", line)]


def installed_version(name: str) -> str | None:
    """The version of an installed package; None without one, or where an interrupted pip left a folder without it."""
    try:
        return importlib.metadata.version(name) or None
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return None


def installation() -> Iterator[Check]:
    """Python and the packages of requirements.txt."""
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Check("Python", "ok" if good else "failed", version, None if good else "use Python 3.11 or newer")
    missing: list[str] = []
    old: list[str] = []
    found: list[str] = []
    for name, least in requirements().items():
        have = installed_version(name)
        if have is None:
            missing.append(name)
            continue
        (old if _numbers(have) < _numbers(least) else found).append(f"{name} {have}")
    if missing:
        yield Check("packages", "failed", f"missing: {', '.join(missing)}", INSTALL)
    if old:
        yield Check("packages", "failed", f"too old: {', '.join(old)}", f"{INSTALL} --upgrade")
    if not missing and not old:
        yield Check("packages", "ok", ", ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    """`2.14.1+cu130` as (2, 14, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def resources(host: Host, config: Config) -> Iterator[Check]:
    """/dev/shm, limits of this process, memory, disk."""
    if host.shm_total is not None:
        small = host.shm_total < SHM_FLOOR
        remedy = (
            "in a container, start it with `--shm-size=8g` or `--ipc=host`; else `mount -o remount,size=8G /dev/shm`"
        )
        words = f"{_size(host.shm_total)}, {_size(host.shm_free or 0)} free"
        words += ": DataLoader workers and NCCL can exhaust it" * small
        yield Check("/dev/shm", "warning" if small else "ok", words, remedy if small else None)
    yield _limits(host)
    yield Check("memory", "ok", f"{_size(host.memory_available)} available of {_size(host.memory_total)}")
    yield _disk(Path(config.run.out_dir or "runs"))


def _limits(host: Host) -> Check:
    """Whether the limits of ulimit suffice for a training."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    low = []
    if 0 <= files < OPEN_FILES:
        low.append((f"{files} open files", f"ulimit -n {16 * OPEN_FILES}"))
    if 0 <= processes < PROCESSES:
        low.append((f"{processes} processes", f"ulimit -u {4 * PROCESSES}"))
    if host.infiniband and locked >= 0:
        low.append((f"{_size(locked)} of locked memory, which InfiniBand needs more of", "ulimit -l unlimited"))
    if low:
        return Check("limits", "warning", "; ".join(words for words, _ in low), "; ".join(remedy for _, remedy in low))
    known = [(files, "open files"), (processes, "processes")]
    return Check("limits", "ok", ", ".join(f"{'unlimited' if n < 0 else n} {what}" for n, what in known))


def _disk(folder: Path) -> Check:
    """Whether run folders can be written, and how much space there is."""
    # Path.exists() raises where a folder above cannot be looked into.
    above = (folder, *folder.absolute().parents)
    existing = next((path for path in above if os.path.exists(path)), Path("/"))  # noqa: PTH110
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("disk", "failed", f"no permission to write into {existing}", "name another folder: --out-dir")
    free = shutil.disk_usage(existing).free
    status: Status = "failed" if free < DISK_FLOOR else "warning" if free < DISK_ENOUGH else "ok"
    remedy = None if status == "ok" else "free some space, or name another folder: --out-dir"
    return Check("disk", status, f"{_size(free)} free for run folders", remedy)


def loopback() -> Check:
    """Whether a process can reach another over 127.0.0.1, by which the ranks of one machine meet."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=3),
        ):
            return Check("loopback", "ok", "127.0.0.1 works: the ranks of one machine meet there")
    except OSError as error:
        return Check("loopback", "failed", f"127.0.0.1 does not work ({error.strerror or error})", "ip link set lo up")


def host_name(host: Host) -> Check:
    """Whether this machine's name resolves: a run on several nodes may need that, a run on one does not."""
    found: list[str] = []

    def resolve() -> None:
        """A thread's work: look the host name up."""
        try:
            found.append(str(socket.getaddrinfo(host.hostname, None)[0][4][0]))
        except OSError as error:
            found.append(f"does not resolve ({error.strerror or error})")

    # A silent name server would delay the report without limit.
    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(RESOLVE_S)
    answer = found[0] if found else f"no answer within {RESOLVE_S:g} s"
    interfaces = ", ".join(host.interfaces) or "loopback only"
    if answer[:1].isdigit() or ":" in answer:
        return Check("network", "ok", f"{interfaces}; the host name resolves")
    return Check("network", "ok", f"{interfaces}; the host name {answer}, which runs on one machine do not need")


def _size(size: int) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
