"""Random draws as a pure function of what they are for, instead of the next number of a stream.

A draw depends on (seed, epoch, purpose, sample, draw number) and on nothing else: not on the batch it
falls into, the rank, the device or what was drawn before. So a run resumes without generator states and
gives the same augmentation on any number of ranks.

The function is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014;
the constants are David Stafford's variant 13) in two levels: the key's stream gives one word per sample, and
each sample's word is the seed of its own stream of draws. It runs on int64 tensors, whose multiplication
and addition wrap around exactly alike on CPU and CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Purposes: the order of the samples in an epoch; crop, flip and erasing of a sample in an epoch; which samples of a
# dataset are held out; mixup and CutMix of a step; draws of layers in a step, by shard; the images of a class, and the
# classes, that occur once more in an epoch; draws of a user's own dataset while it reads a sample, and of a user's own
# function that collates samples.
ORDER, AUGMENTATION, SPLIT, MIXING, DROPOUT, BALANCE, READING, COLLATING = 1, 2, 3, 4, 5, 6, 7, 8

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FACTOR_1 = 0xBF58476D1CE4E5B9
_FACTOR_2 = 0x94D049BB133111EB


def key(seed: int, epoch: int, purpose: int) -> int:
    """One 64-bit key for all the draws of a purpose in an epoch."""
    value = 0
    for part in (seed, epoch, purpose):
        value = _mix_int((value ^ (part & _MASK)) + _GAMMA)
    return value


def words(key: int, samples: Tensor, draws: int) -> Tensor:
    """Independent 64-bit words for each sample.

    samples: int64 [n], any values. Returns int64 [n, draws] over the whole range, the sign included.
    """
    state = _mix(samples.to(torch.int64) * _signed(_GAMMA) + _signed(key + _GAMMA))
    steps = torch.arange(1, draws + 1, dtype=torch.int64, device=samples.device) * _signed(_GAMMA)
    return _mix(state.unsqueeze(1) + steps)


def integers(words: Tensor, bound: Tensor | int) -> Tensor:
    """Words to integers in [0, bound): the upper 32 bits times the bound, shifted down (Lemire 2019, without
    the rejection: the bias is below bound / 2**32). bound: at most 2**31, a number or int64 like `words`."""
    return (_shift_right(words, 32) * bound) >> 32


def permutation(count: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of 0 .. count - 1, int64 [count]: the samples sorted by their word.

    Words of different samples differ (the hash is a bijection), so the sorted order is the same everywhere.
    """
    samples = torch.arange(count, dtype=torch.int64, device=device)
    return torch.argsort(_mix(samples * _signed(_GAMMA) + _signed(key + _GAMMA)))


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser, element by element."""
    z = (z ^ _shift_right(z, 30)) * _signed(_FACTOR_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_FACTOR_2)
    return z ^ _shift_right(z, 31)


def _mix_int(z: int) -> int:
    """As `_mix`, on a Python integer modulo 2**64."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _FACTOR_1) & _MASK
    z = ((z ^ (z >> 27)) * _FACTOR_2) & _MASK
    return z ^ (z >> 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """An unsigned 64-bit value as the int64 with the same bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
