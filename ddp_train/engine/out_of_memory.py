"""Telling an error that means "no memory left" from every other."""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory"]

# torch raises its own class for the CUDA allocator alone; libraries and the CPU's allocator say it in words.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cuda_error_out_of_memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
