"""State that differs among the ranks of a run: batch statistics in the middle of an epoch, the state of techniques, and
the states of random generators.

A checkpoint holds the state of rank 0, and of every other rank the leaves (tensors and plain values of the nested
state) that differ from it. A run resumed with the same number of ranks gives each rank its own state back, bit for bit;
with another number all ranks get the mean, as at the end of an epoch.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ddp_train.distributed.process_group import Ranks

Leaves = dict[str, Any]
"""Path in the nested state -> leaf."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ORDERED = 1 << 16
"""Most elements for which a fingerprint depends on their order; for larger tensors the plain sum is enough."""


def leaves(state: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dicts, lists and tuples, each with its path."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from leaves(value, f"{path}/{index}")
    else:
        yield path, state


def differences(state: Mapping[str, object], ranks: Ranks, group: Any) -> list[Leaves]:
    """On rank 0, for each rank the leaves that differ from rank 0's, in host memory; elsewhere []. Called on all ranks.

    `group`: the gloo group over which they are compared and sent.
    """
    if ranks.world_size == 1:
        return [{}]
    mine = dict(leaves(state))
    marks = dict(zip(mine, _fingerprints(list(mine.values())), strict=True))
    reference: list[Any] = [marks if ranks.is_first else None]
    dist.broadcast_object_list(reference, src=0, group=group)
    different = {path: mine[path] for path, mark in marks.items() if reference[0].get(path) != mark}
    different = {path: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf for path, leaf in different.items()}
    gathered: list[Any] | None = [None] * ranks.world_size if ranks.is_first else None
    dist.gather_object(different, gathered, dst=0, group=group)
    return gathered or []


def own(state: object, found: Sequence[Leaves], rank: int) -> Any:
    """The state of `rank`: the saved state with the leaves of this rank."""
    return _mapped(state, lambda path, leaf: found[rank].get(path, leaf))


def mean(state: object, found: Sequence[Leaves]) -> Any:
    """One state for all ranks: the mean of floating-point tensors, and rank 0's value of everything else."""

    def joined(path: str, leaf: object) -> object:
        """The mean over the ranks of a floating-point tensor that differs among them; else the leaf itself."""
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()) or not any(path in one for one in found):
            return leaf
        values = [one.get(path, leaf) for one in found]
        return torch.stack([value.double() for value in values]).mean(0).to(leaf.dtype).view_as(leaf)

    return _mapped(state, joined)


def _mapped(state: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """A copy of the state with `change(path, leaf)` in place of each leaf."""
    if isinstance(state, Mapping):
        return {key: _mapped(value, change, f"{path}/{key}") for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_mapped(value, change, f"{path}/{index}") for index, value in enumerate(state))
    return change(path, state)


def _fingerprints(values: Sequence[object]) -> list[int]:
    """A number for each leaf, on all ranks the same for the same bits. Waits for the device once."""
    sums = [_fingerprint(value) for value in values]
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in sums:
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, []).append(value)
    read: dict[int, int] = {}
    for group in by_device.values():
        read |= zip(map(id, group), torch.stack(group).tolist(), strict=True)
    return [read[id(value)] if isinstance(value, Tensor) else value for value in sums]


def _fingerprint(value: object) -> Tensor | int:
    """A number that differs for different values; it stays on the tensor's device."""
    if not isinstance(value, Tensor):
        return zlib.crc32(repr(value).encode())
    value = value.detach()
    words = torch.view_as_real(value) if value.is_complex() else value
    words = words.view(_WORDS[words.element_size()])
    if words.numel() > _ORDERED:
        return words.sum(dtype=torch.int64)
    order = torch.arange(1, 2 * words.numel() + 1, 2, dtype=torch.int64, device=words.device)  # empty for no words
    return (words.flatten().to(torch.int64) * order).sum()


def generators(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's, torch's and `device`'s random generators, as plain values and tensors.

    The trainer's own draws are keyed, so that a resume does not need these states for them. They are kept for the
    user's code that draws from these generators.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    found: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Restore captured states. Errors: KeyError, TypeError, ValueError or RuntimeError for anything else."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
