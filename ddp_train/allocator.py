"""torch's memory allocator on GPUs: told by environment variables, which count until CUDA starts.

Torch-free: to be called before torch is imported.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from ddp_train.options import UserError
from gpu_topology.alloc_conf import merge

__all__ = ["expand_segments"]

_GENERAL, _CUDA = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
_KEY = "expandable_segments"


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
