"""Reads and collates this rank's part of a global batch, in the training process or in a loader's worker.

What a dataset draws while it reads a sample (torch, NumPy, random) is keyed by (seed, epoch, sample): the same on any
number of ranks and workers, and after a resume. Most datasets draw nothing, so a part is first read with the generators
as they are. Only if a generator has moved is the part read again, with separate seeds for each sample; all parts after
it are read in that way at once. The same holds for a function that collates: its key is that of the first sample.

A rank without samples of a global batch gets an empty batch: tensors of length 0 where the others have their samples.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import random
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, TensorDataset, default_collate, get_worker_info

from ddp_train.data.augment import keyed_random

Collate = Callable[[list[Any]], Any]
Request = tuple[int, list[int]]
"""Epoch, and the indices of the samples."""
_MT_WORDS = 624  # numpy/random/src/mt19937: uint32 key[624], then the int position
_PYTHON = f"=i{_MT_WORDS}I"


class CannotBeEmpty(Exception):
    """The batch has a value that is neither a tensor nor plain: its form without samples is unknown."""


class BatchReader(Dataset[Any]):
    """`reader[(epoch, indices)]` is the collated batch, and whether it holds a sample in place of an empty batch.

    `dataset`: map-style; `collate`: turns a list of samples into a batch.
    """

    def __init__(self, dataset: Any, collate: Collate | None, seed: int) -> None:
        self._dataset, self._collate, self._seed = dataset, collate or default_collate, seed
        # Tensors are indexed as a whole, without a Python call for each sample: the values are the same.
        self._tensors = dataset.tensors if type(dataset) is TensorDataset and collate is None else None
        self._draws = self._collate_draws = False
        self._known: Any = None

    def __getitem__(self, request: Request) -> tuple[Any, bool]:
        epoch, indices = request
        if self._tensors is not None:
            rows = torch.as_tensor(indices, dtype=torch.int64)
            return [tensor[rows] for tensor in self._tensors], False
        if not indices:
            return self._empty(epoch)
        return self._collated(epoch, indices), False

    def _empty(self, epoch: int) -> tuple[Any, bool]:
        if self._known is None:
            self._known = self._read(epoch, [0])[0]
        return empty_batch(functools.partial(self._collate_keyed, epoch, 0), self._known)

    def _collated(self, epoch: int, indices: Sequence[int]) -> Any:
        first, samples = self._known is None, self._read(epoch, indices)
        self._known = samples[-1]
        if self._collate is default_collate:
            return default_collate(samples)
        if not self._collate_draws:
            before = _Generators(thorough=first)
            batch = self._collate(samples)
            if not before.moved():
                return batch
            before.restore()
            self._collate_draws = True
            samples = self._read(epoch, indices)  # it may have changed them
        return self._collate_keyed(epoch, indices[0], samples)

    def _collate_keyed(self, epoch: int, index: int, samples: list[Any]) -> Any:
        """Collate with generators seeded for the sample `index`."""
        before = _Generators()
        key = keyed_random.key(self._seed, epoch, keyed_random.COLLATING)
        _seed_all(keyed_random.key(key, index, keyed_random.COLLATING))
        batch = self._collate(samples)
        if get_worker_info() is None:
            before.restore()  # in the training process the generators are the user's
        return batch

    def _read(self, epoch: int, indices: Sequence[int]) -> list[Any]:
        if not self._draws:
            before = _Generators(thorough=self._known is None)  # thorough for the first part
            samples = self._samples(indices)
            if not before.moved():
                return samples
            before.restore()
            self._draws = True
        before = _Generators()
        key = keyed_random.key(self._seed, epoch, keyed_random.READING)
        samples = []
        for index in indices:
            _seed_all(keyed_random.key(key, index, keyed_random.READING))
            samples += self._samples([index])
        if get_worker_info() is None:
            before.restore()  # in the training process the generators are the user's
        return samples

    def _samples(self, indices: Sequence[int]) -> list[Any]:
        if getattr(self._dataset, "__getitems__", None):
            return list(self._dataset.__getitems__(list(indices)))
        return [self._dataset[index] for index in indices]


def empty_batch(collate: Collate, sample: Any) -> tuple[Any, bool]:
    """The batch without samples, and False; where it cannot be made, the batch of `sample`, and True."""
    one, two = collate([sample]), collate([sample] * 2)
    try:
        return emptied(one, two), False
    except CannotBeEmpty:
        return one, True


def emptied(one: Any, two: Any, *, lists: bool = False) -> Any:
    """The batch without samples, from the batches of one sample and of the same sample twice. Errors: CannotBeEmpty.

    Dimensions in which the two differ count the samples; what is the same in both does not depend on their number.
    lists: cut a list of the samples' own tensors too. A network that takes one, as for detection, needs a sample in it.
    """
    cut = functools.partial(emptied, lists=lists)
    if isinstance(one, Tensor | np.ndarray) and type(one) is type(two):
        if one.ndim != two.ndim:
            raise CannotBeEmpty
        return one[tuple(slice(0, 0 if a != b else None) for a, b in zip(one.shape, two.shape, strict=True))]
    if isinstance(one, Mapping):
        return with_values(one, {name: cut(value, two[name]) for name, value in one.items()})
    if isinstance(one, PackedSequence):  # a namedtuple whose fields belong together
        raise CannotBeEmpty
    if isinstance(one, tuple) and hasattr(one, "_fields"):
        return type(one)(*map(cut, one, two))
    if type(one) in (list, tuple):
        if len(one) == len(two):
            return type(one)(map(cut, one, two))
        if lists or all(isinstance(item, str | bytes | int | float | None) for item in one):
            return type(one)()
        raise CannotBeEmpty
    if one is None or (isinstance(one, str | bytes | bool) and one == two):
        return one
    if isinstance(one, int | float) and isinstance(two, int | float):
        return 2 * one - two  # a count goes down to 0, what is the same stays
    raise CannotBeEmpty


def with_values(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """A copy of the mapping, of its class, with these values for its names; `values` where it does not take them."""
    if type(mapping) is dict:
        return values
    try:
        clone: Any = copy.copy(mapping)
        for name, value in values.items():
            clone[name] = value
        taken = all(clone[name] is value for name, value in values.items())
    except (TypeError, RuntimeError, ValueError):  # read-only, or with rules of its own, such as one length for all
        return values
    return clone if taken else values


class _Generators:
    """The states of torch's, NumPy's and Python's generators on the host, as they are now."""

    _numpy_known: tuple[object, Any] = (None, None)
    """NumPy's latest mark and whole state: copying the state takes a hundred times as long as copying the mark."""

    def __init__(self, *, thorough: bool = False) -> None:
        """thorough: also notice the use of NumPy's cached second normal number, which does not change its mark."""
        self._torch, self._numpy, self._python = torch.default_generator.get_state(), _numpy_mark(), _python_mark()
        self._thorough = thorough
        if thorough or self._numpy != _Generators._numpy_known[0]:
            _Generators._numpy_known = self._numpy, np.random.get_state(legacy=False)
        self._numpy_state = _Generators._numpy_known[1]

    def moved(self) -> bool:
        """Whether anything has been drawn since."""
        if _numpy_mark() != self._numpy or _python_mark() != self._python:
            return True
        if self._thorough and np.random.get_state(legacy=False)["has_gauss"] != self._numpy_state["has_gauss"]:
            return True
        now = torch.default_generator.get_state()
        return _bytes_of(now) != _bytes_of(self._torch)

    def restore(self) -> None:
        """Set the generators back to these states."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy_state)
        state = self._python
        if isinstance(state[0], bytes):
            index, *words = struct.unpack(_PYTHON, state[0])
            state = (random.getstate()[0], (*words, index), state[1])
        random.setstate(state)


def _bytes_of(state: Tensor) -> bytes:
    """The bytes of a torch state, uint8 on the CPU: comparing by torch.equal takes longer than all else here."""
    return ctypes.string_at(state.data_ptr(), state.numel())


def _numpy_mark() -> object:
    """A value that changes whenever NumPy's generator moves on."""
    generator = np.random.mtrand.get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return repr(generator.state)
    return ctypes.string_at(generator.ctypes.state_address, 4 * (_MT_WORDS + 1))


def _python_mark() -> Any:
    """Python's state: index and words as in memory (CPython's _randommodule.c), gauss_next; else random.getstate()."""
    generator: Any = random.random.__self__  # type: ignore[attr-defined]
    address = _python_address()
    if address is None:
        return random.getstate()
    return ctypes.string_at(address, struct.calcsize(_PYTHON)), generator.gauss_next


@functools.cache
def _python_address() -> int | None:
    """The address of index and words of Python's generator; None where its layout is not that of CPython."""
    generator = random.random.__self__  # type: ignore[attr-defined]
    address, (_, words, _) = id(generator) + object.__basicsize__, random.getstate()
    if sys.implementation.name != "cpython" or type(generator).__basicsize__ < object.__basicsize__ + 4 * len(words):
        return None
    found = struct.unpack(_PYTHON, ctypes.string_at(address, struct.calcsize(_PYTHON)))
    return address if (*found[1:], found[0]) == words else None


def _seed_all(key: int) -> None:
    torch.default_generator.manual_seed(key % 2**63)
    random.seed(key)
    np.random.seed(key % 2**32)
