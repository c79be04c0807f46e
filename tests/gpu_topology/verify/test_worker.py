"""The data that verify sends, and how it compares them."""

from __future__ import annotations

import pytest
import torch

from gpu_topology.verify.worker import MODULUS, SIZES, _data, _difference, _numbers

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", SIZES["gloo"])
def test_turns_are_unlike_and_the_second_is_the_opposite_of_the_first(size: int) -> None:
    first, second, third = (_data(size, turn, CPU) for turn in range(3))
    assert first.dtype == torch.uint8
    assert first.numel() == size
    assert torch.equal(first ^ second, torch.full_like(first, 0xFF))
    if size > 1:
        # As likely as for random bytes: stale data of an earlier turn do not pass, nor do shifted ones.
        assert (first == third).float().mean() < 0.1
        assert (first[:-1] == first[1:]).float().mean() < 0.1


def test_every_byte_value_occurs() -> None:
    counts = torch.bincount(_data(2**20, 4, CPU).int(), minlength=256)
    assert counts.min() > 0.5 * counts.float().mean()


def test_the_first_wrong_byte_is_named() -> None:
    expected = _data(4099, 0, CPU)
    assert _difference(expected.clone(), expected) is None
    found = expected.clone()
    found[4097] ^= 1
    found[[70, 4098]] ^= 0xF0
    was, should = int(found[70]), int(expected[70])
    assert _difference(found, expected) == (
        f"byte 70 is 0x{was:02x} and should be 0x{should:02x}, 3 of 4099 bytes are wrong"
    )


def test_sums_of_64_ranks_are_exact_in_every_order() -> None:
    parts = torch.stack([_numbers(1000, rank, CPU) for rank in range(64)])
    exact = parts.double().sum(0)
    assert torch.equal(parts.sum(0).double(), exact)
    assert torch.equal(parts.flip(0).cumsum(0)[-1].double(), exact)
    assert exact.max() <= 64 * (MODULUS - 1) < 2**24
    assert not torch.equal(parts[0], parts[1])
