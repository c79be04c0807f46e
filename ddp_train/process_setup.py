"""Process settings for torch, by environment variables and the C library: memory allocators and the compile cache.

Called once by `main`, in this order: the GPU allocator (`expand_segments`) and the folder of compiled code
(`keep_private`) before torch is imported, which reads their variables; the C library's heap (`keep_heap`) once the
device is known to be the CPU. Torch-free.
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
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc")
_COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def expand_segments(environ: MutableMapping[str, str]) -> None:
    """`--expandable-segments`: add expandable_segments:True to the allocator's settings in the environment.

    A segment is a block of GPU memory that tensors are cut from; one that can grow is not left half empty when a batch
    of another size comes. Both of torch's variables are merged into one, since torch's parsers prefer different ones.
    Errors: UserError where the environment has expandable_segments:False, or is not a list of key:value.
    """
    both = merge(environ.get(_GENERAL, ""), environ.get(_CUDA, ""))
    merged = both and merge(both.value, f"{_KEY}:True")
    if merged is None:
        raise UserError(f"--expandable-segments: {_GENERAL} or {_CUDA} in the environment is not a list of key:value")
    if _KEY in merged.overruled:
        raise UserError(f"--expandable-segments: {_GENERAL} or {_CUDA} in the environment has {_KEY}:False")
    environ[_GENERAL] = merged.value
    environ.pop(_CUDA, None)


def keep_private(environ: MutableMapping[str, str]) -> None:
    """Let torch keep compiled code in the user's cache folder, unless the user has set a folder.

    torch's default is a folder in /tmp with a predictable name: whoever creates it first controls what is loaded from
    it. torch 2.15 creates it with the first optimizer. Where no folder can be made, the default stays.
    """
    if environ.get(_COMPILE_CACHE):
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
        environ[_COMPILE_CACHE] = str(folder)


def keep_heap(environ: Mapping[str, str]) -> bool:
    """Let glibc keep the memory that a training step frees, for the next step. Returns whether that worked.

    glibc returns each large block to the kernel, which clears the pages again at every training step on the CPU
    (`python -m benchmarks.cpu_speed` measures it). The launcher prevents that with MALLOC_MMAP_MAX_ and
    MALLOC_TRIM_THRESHOLD_; this function is for a trainer started without the launcher. The user's settings and other
    allocators are left alone. Source: mallopt(3).
    """
    configured = any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get(
        "GLIBC_TUNABLES", ""
    )
    if configured or any(name in environ.get("LD_PRELOAD", "") for name in _OTHER_ALLOCATORS):
        return False
    with suppress(AttributeError, OSError, ValueError):  # another C library
        if os.confstr("CS_GNU_LIBC_VERSION"):
            mallopt = ctypes.CDLL(None).mallopt
            return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never
    return False
