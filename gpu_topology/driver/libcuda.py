"""The order in which CUDA itself counts GPUs, read from the driver library libcuda.

`cuInit` fixes order and mask for the rest of a process and takes memory on the GPUs in some drivers, so the library is
called in its own process, which runs only this file: `python libcuda.py` prints a UUID and a PCI bus id per line.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

# cuInit wakes every GPU, which takes seconds for each GPU that is not in persistence mode.
TIME_LIMIT_S = 30.0


def cuda_order(environ: Mapping[str, str], time_limit_s: float = TIME_LIMIT_S) -> tuple[str, ...] | None:
    """UUIDs ("GPU-..."), or PCI bus ids where libcuda reports no UUID, in CUDA's order; None where libcuda fails.

    `environ` is the environment of the program in question: CUDA_DEVICE_ORDER applies; CUDA_VISIBLE_DEVICES is removed,
    so that every GPU is listed.
    """
    import subprocess  # most machines never need it, and `select` is used in shell prompts

    unmasked = {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-I", "-S", __file__]
    try:
        done = subprocess.run(command, env=unmasked, capture_output=True, text=True, timeout=time_limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return tuple(line.split()[0] for line in done.stdout.splitlines() if line.strip())


def main() -> int:
    """Print the GPUs in CUDA's order; exit status 1 when libcuda is absent or refuses."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 1
        for ordinal in range(count.value):
            print(*_names(library, ordinal))
    except (OSError, AttributeError):  # no library; a library without these functions
        return 1
    return 0


def _names(library: ctypes.CDLL, ordinal: int) -> list[str]:
    """The UUID and bus id of one GPU. Errors: OSError where it has neither: a missing line would shift the others."""
    device = ctypes.c_int()
    if library.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
        raise OSError(f"no device {ordinal}")
    names = [name for name in (_uuid(library, device), _bus_id(library, device)) if name]
    if not names:
        raise OSError(f"device {ordinal} has no name")
    return names


def _uuid(library: ctypes.CDLL, device: ctypes.c_int) -> str | None:
    """The UUID as NVML writes it. Version 2, since CUDA 11.4, gives that of a MIG slice rather than of its GPU."""
    raw = (ctypes.c_ubyte * 16)()
    for function in ("cuDeviceGetUuid_v2", "cuDeviceGetUuid"):
        ask = getattr(library, function, None)
        if ask is not None and ask(ctypes.byref(raw), device) == 0:
            text = bytes(raw).hex()
            return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    return None


def _bus_id(library: ctypes.CDLL, device: ctypes.c_int) -> str | None:
    """The PCI bus id of a CUDA device; None where it is not reported."""
    raw = ctypes.create_string_buffer(32)
    return raw.value.decode() if library.cuDeviceGetPCIBusId(raw, len(raw), device) == 0 else None


if __name__ == "__main__":
    sys.exit(main())
