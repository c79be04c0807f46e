"""What a host reports before a run: versions, folder, addresses. Sent to the host: standard library only."""

from __future__ import annotations

import array
import fcntl
import importlib.util
import os
import re
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SIOCGIFADDR, SIOCGIFMTU, SIOCETHTOOL = 0x8915, 0x8921, 0x8946  # linux/sockios.h
ETHTOOL_GSET, GSET_SIZE = 0x1, 44  # linux/ethtool.h
GLOBAL_SCOPE = "00"
LOOPBACK = "127.0.0.1"


def versions(packages: str) -> dict[str, Any]:
    """Versions of Python, torch and this project, null for what is missing, and the words that start the launcher.

    packages: the folder of this project's packages on the machine where the run was started.
    """
    place = Path(packages)
    if not (place / "ddp_launch" / "__main__.py").is_file():
        # Not in the same folder, but perhaps installed. (The modules that were sent hide ddp_launch itself.)
        found = importlib.util.find_spec("ddp_core")
        place = Path(found.origin).parents[1] if found is not None and found.origin else place
    return {
        "python": list(sys.version_info[:3]),
        "torch": _version_of_torch(),
        "project": _version_in(place / "ddp_core" / "__init__.py"),
        "launcher": [str(place / "launch.py")] if (place / "launch.py").is_file() else ["-m", "ddp_launch"],
    }


def _version_of_torch() -> str | None:
    """torch's version without importing it; None where torch is not installed."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    return _version_in(Path(found.submodule_search_locations[0]) / "version.py") or "of unknown version"


def _version_in(file: Path) -> str | None:
    """`__version__` as a Python file assigns it; None where it does not."""
    try:
        match = re.search(r"^__version__\b[^=\n]*= *['\"]([^'\"]+)", file.read_text(encoding="utf-8"), re.M)
    except (OSError, ValueError):
        return None
    return match[1] if match else None


def enter(folder: str) -> str | None:
    """Change to the folder. Returns why that failed, None after a success."""
    try:
        os.chdir(folder)
    except OSError as error:
        return error.strerror or str(error)
    return None


def addresses() -> list[dict[str, Any]]:
    """The addresses of this host: the one that ssh connected to first, loopback last.

    Each has its interface, the largest packet in bytes (`mtu`) and the speed in Mbit/s; null for what is unknown.
    """
    known = {address: name for name, address in _by_interface()}
    called = os.environ.get("SSH_CONNECTION", "").split()
    first = [called[2].partition("%")[0]] if len(called) == 4 else []
    ordered = dict.fromkeys([*first, *known])
    ordered.pop(LOOPBACK, None)
    return [_described(address, known.get(address)) for address in (*ordered, LOOPBACK)]


def _by_interface() -> list[tuple[str, str]]:
    """(interface, address) for every IPv4 address and every global IPv6 address."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append((name, socket.inet_ntoa(answer[20:24])))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, _, _, scope, _, name = line.split()
            if scope == GLOBAL_SCOPE:
                found.append((name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))))
    return found


def _described(address: str, interface: str | None) -> dict[str, Any]:
    """An address with its interface's MTU and speed, null for what is unknown."""
    about: dict[str, Any] = {"address": address, "interface": interface, "mtu": None, "speed": None}
    for name in ("mtu", "speed"):
        with suppress(OSError, ValueError):
            value = int(Path(f"/sys/class/net/{interface}/{name}").read_text())
            about[name] = value if value > 0 else None
    if about["mtu"] is None and interface:
        # sysfs shows the network namespace in which it was mounted, perhaps another one.
        about["mtu"], about["speed"] = _asked(interface.encode()[:15])
    return about


def _asked(interface: bytes) -> tuple[int | None, int | None]:
    """Largest packet in bytes and speed in Mbit/s, from the kernel's interface for ethtool(8)."""
    mtu = speed = None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        with suppress(OSError):
            mtu = struct.unpack_from("i", fcntl.ioctl(any_socket, SIOCGIFMTU, struct.pack("256s", interface)), 16)[0]
        with suppress(OSError):
            command = array.array("B", struct.pack("I", ETHTOOL_GSET) + bytes(GSET_SIZE - 4))
            fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", interface, command.buffer_info()[0]))
            (low,), (high,) = struct.unpack_from("H", command, 12), struct.unpack_from("H", command, 28)
            speed = low + (high << 16)
    # All ones: unknown.
    return mtu, speed if speed and speed < 0xFFFFFFFF and speed != 0xFFFF else None
