"""The installed torch, without importing it: the CUDA that it was built for, the GPUs that it has code for.

Also which published build of torch fits a driver and its GPUs (`build_for`), for scripts/environment.sh and for advice.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddp_core.missing_packages import torch_version

Capability = tuple[int, int]

# The published builds of torch 2.11 and later with their GPUs (pytorch, RELEASE.md, "PyTorch CUDA Support Matrix"), in
# order of preference: cu132 begins with torch 2.12, cu126 ends with 2.14, cu128 with 2.11. Arm builds have sm_110.
_ARM = ("sm_110",) if os.uname().machine == "aarch64" else ()
_TURING_ON = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", *_ARM, "sm_120")
BUILDS = {
    "13.0": _TURING_ON,
    "13.2": _TURING_ON,
    "12.6": ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
    "12.8": _TURING_ON,
}

# The oldest driver for each major version of CUDA (CUDA Compatibility, "Minor Version Compatibility"). Code compiled
# for one minor version runs on the drivers of all of them.
LEAST_DRIVER = {11: "450", 12: "525", 13: "580"}

_LOADED, _READ = 1, 4  # PT_LOAD, and PF_R without PF_W and PF_X (elf.h)


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """`version` with its local part ("2.14.1+cu130"), `cuda` "13.0", `architectures` "sm_90" ...; () when unknown."""

    version: str
    cuda: str
    architectures: tuple[str, ...] = ()

    def runs_on(self, capability: Capability | None) -> bool | None:
        """Whether there is code for GPUs of this compute capability; None where that is not known."""
        if capability is None or not self.architectures:
            return None
        return has_code(self.architectures, capability)

    def no_code_for(self, capability: Capability) -> str:
        """The message about GPUs that this torch has no code for."""
        sm = "sm_{}{}".format(*capability)
        return f"torch {self.version} has no code for {sm}, only for {', '.join(self.architectures)}"

    def too_new_for(self, cuda: str | None, driver: str | None) -> str | None:
        """The message about a driver that supports only an earlier major CUDA; None where it fits, or is unknown."""
        if cuda is None or major(cuda) >= major(self.cuda):
            return None
        return f"torch {self.version} is built for CUDA {self.cuda}, the driver {driver or 'here'} goes up to {cuda}"


def read_torch_build() -> TorchBuild | None:
    """The torch that this Python would import; None where there is none, or one that is not for CUDA."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0])
    try:
        stated = re.search(r"^cuda\b[^=\n]*= *'([^']*)'", (folder / "version.py").read_text(), re.M)
    except (OSError, ValueError):
        stated = None
    version = torch_version()
    local = re.search(r"\+cu(\d+)(\d)", version or "")
    cuda = stated[1] if stated else f"{local[1]}.{local[2]}" if local else None
    if version is None or cuda is None:
        return None
    return TorchBuild(version, cuda, _compiled_for(folder) or BUILDS.get(cuda, ()))


def _compiled_for(folder: Path) -> tuple[str, ...]:
    """What `torch.cuda.get_arch_list` would return: a string constant in torch's library; () where it is not found."""
    try:
        with (
            (folder / "lib" / "libtorch_python.so").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            starts = (data.find(b"\0sm_", first, end) + 1 for first, end in _constants(data))
            start = next(filter(None, starts), 0)
            words = data[start : data.find(b"\0", start)].decode("ascii", "replace") if start else ""
    except (OSError, ValueError, struct.error):
        return ()
    known = tuple(words.split())
    return known if all(re.fullmatch(r"(sm|compute)_\d+[a-z]?", word) for word in known) else ()


def _constants(library: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where to search a library, as (first, end): its read-only data, by the program headers of elf(5), then all of it.
    Most of a library is code, which takes ten times as long to search."""
    if library[:6] == b"\x7fELF\2\1" and len(library) >= 64:  # 64 bits, least byte first
        (first,), (size, count) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<HH", library, 54)
        for number in range(count):
            kind, flags, start, _, _, length = struct.unpack_from("<IIQQQQ", library, first + size * number)
            if (kind, flags) == (_LOADED, _READ):
                yield start, start + length
    yield 0, len(library)


def has_code(architectures: Iterable[str], capability: Capability) -> bool:
    """Whether a GPU runs one of these: code for its major version up to its minor one, or PTX up to its capability."""
    for word in architectures:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", word):
            built = int(match[2]), int(match[3])
            if match[4] == "a":  # for exactly this capability
                fits = built == capability
            else:
                fits = built <= capability and (match[1] == "compute" or built[0] == capability[0])
            if fits:
                return True
    return False


def build_for(capabilities: Collection[Capability], cuda: str | None) -> str | None:
    """The CUDA build with code for most of these GPUs among those that a driver for `cuda` can run; None without any.

    `cuda`: the newest CUDA that the driver supports, None for any driver.
    """
    best, most = None, 0
    for build, architectures in BUILDS.items():
        if cuda is not None and major(build) > major(cuda):
            continue
        has = sum(has_code(architectures, capability) for capability in capabilities)
        if has > most:
            best, most = build, has
    return best


def driver_way_out(needed: str, capabilities: Collection[Capability], cuda: str | None) -> str:
    """What to do about a driver that supports CUDA up to `cuda` where torch is built for a later one, `needed`. The
    advice fits the GPUs too: a newer build may have no code for them."""
    build, any_build = build_for(capabilities, cuda), build_for(capabilities, None)
    if not capabilities or any(has_code(BUILDS.get(needed, ("compute_10",)), one) for one in capabilities):
        return _update(needed) + (f", or install the build that fits this one: {install(build)}" if build else "")
    if build:
        return f"install the build that fits this driver and these GPUs: {install(build)}"
    if any_build:
        return f"{_update(any_build)} and install the build that has code for these GPUs: {install(any_build)}"
    sms = ", ".join("sm_{}{}".format(*one) for one in sorted(capabilities))
    return f"torch 2.11 and later have no code for these GPUs ({sms})"


def _update(build: str) -> str:
    """What to do about a driver that is too old for a CUDA build."""
    least = LEAST_DRIVER.get(major(build))
    return f"update the driver to {least} or newer" if least else "update the driver"


def way_out(capabilities: Collection[Capability], cuda: str | None) -> str:
    """What to do about GPUs that the installed torch has no code for, with a driver for `cuda`."""
    build = build_for(capabilities, cuda)
    return f"install the build that has it: {install(build)}" if build else "torch 2.11 and later have none"


def install(build: str) -> str:
    """The command that installs a build of torch."""
    return f"`pip install --force-reinstall torch torchvision --index-url {index(build)}`"


def index(build: str) -> str:
    """Where pip finds the packages of a CUDA build."""
    return f"https://download.pytorch.org/whl/cu{build.replace('.', '')}"


def major(version: str) -> int:
    """The major version: 12 for "12.4"; 0 for text that is not a version."""
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0
