"""Memory allocators: torch's on GPUs, told by environment variables before CUDA starts, and the C library's on the CPU.

Torch-free: what concerns torch's is to be called before torch is imported.

Where torch keeps compiled code from one run to the next: a folder of the user's own.

torch's default is a folder in /tmp by a name that anybody can guess, and who makes it first decides what is loaded
from it. torch 2.15 makes it as soon as an optimizer is created. Torch-free: to be called before torch is imported.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

from ddp_core.cache_folder import cache_folder
from ddp_core.errors import UserError
from gpu_topology.environment.alloc_conf import merge

_GENERAL, _CUDA = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
_KEY = "expandable_segments"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_OTHERS = ("jemalloc", "tcmalloc")


def expand_segments(environ: MutableMapping[str, str]) -> None:
    """`--expandable-segments`: put expandable_segments:True beside what the environment says of the allocator.

    A segment is a stretch of the GPU's memory that tensors are cut from; one that can grow is not left behind half
    empty when a batch of another size comes. Both of torch's variables become one, as torch's parsers prefer different
    ones. Errors: UserError where the environment says expandable_segments:False, or no list of key:value.
    """
    both = merge(environ.get(_GENERAL, ""), environ.get(_CUDA, ""))
    merged = both and merge(both.value, f"{_KEY}:True")
    if merged is None:
        raise UserError(f"--expandable-segments: {_GENERAL} or {_CUDA} in the environment is no list of key:value")
    if _KEY in merged.overruled:
        raise UserError(f"--expandable-segments: {_GENERAL} or {_CUDA} in the environment says {_KEY}:False")
    environ[_GENERAL] = merged.value
    environ.pop(_CUDA, None)


def keep_heap(environ: Mapping[str, str]) -> bool:
    """Let glibc keep the memory that a training step frees, for the next step; whether it will.

    glibc gives each large block back to the kernel, which clears the pages anew at every step of a training on the CPU
    (`python -m benchmarks.cpu_speed` measures it). The launcher sets MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_
    against that; this is for a trainer that was started without it. What the user has set, and another allocator, stay
    as they are. Source: mallopt(3).
    """
    told = any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
    if told or any(name in environ.get("LD_PRELOAD", "") for name in _OTHERS):
        return False
    with suppress(AttributeError, OSError, ValueError):  # another C library
        if os.confstr("CS_GNU_LIBC_VERSION"):
            mallopt = ctypes.CDLL(None).mallopt
            return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never
    return False


_NAME = "TORCHINDUCTOR_CACHE_DIR"


def keep_private(environ: MutableMapping[str, str]) -> None:
    """Name the folder below the user's caches, unless the user has named one; torch's own where none can be made."""
    if environ.get(_NAME):
        return
    caches = cache_folder("ddp_train", environ)
    if caches is None:
        return
    folder = caches / "compiled"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return
    if folder.stat().st_uid == os.getuid():
        environ[_NAME] = str(folder)
