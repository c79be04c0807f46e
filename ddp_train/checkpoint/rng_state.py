"""The states of this process's random generators, as plain values and tensors.

The trainer itself draws nothing from them that a resume would have to know: its draws are keyed. They are kept for
code of the user's that draws from them.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Python's, NumPy's and torch's generators begin anew, for the weights of a network: a user's own model may draw
    from any of them."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def capture(device: torch.device) -> dict[str, Any]:
    """Python's, NumPy's and torch's generators, those of `device` too."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    found: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss),
                  float(cached)],
        "torch": torch.get_rng_state(),
    }  # fmt: skip
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Take captured states back. Errors: KeyError, TypeError, ValueError or RuntimeError for anything else."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
