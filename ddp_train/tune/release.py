"""Memory between trials in one process: what one has left behind is given back before the next one is measured."""

from __future__ import annotations

import gc

import torch

__all__ = ["release_memory"]


def release_memory() -> None:
    """Free what nothing refers to any more, cycles included, and give the allocator's cache back to the GPU.

    A model, its optimizer and the error of a trial that ran out of memory must not be referred to any longer. Peak
    statistics start anew. Nothing to give back without a GPU that is in use.
    """
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
