"""Keyed draws: the published function, statistically sound, independent of company."""

import torch

from ddp_train.data.augment import keyed_random


def splitmix64(seed: int, count: int) -> list[int]:
    """The reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) on Python integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_reference_gives_the_published_values() -> None:
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_words_are_two_levels_of_splitmix64() -> None:
    key = 0xFEDCBA9876543210
    words = keyed_random.words(key, torch.tensor([0, 1, 2, 12345]), 5)
    streams = splitmix64(key, 12346)
    for row, sample in enumerate([0, 1, 2, 12345]):
        assert [value % 2**64 for value in words[row].tolist()] == splitmix64(streams[sample], 5)


def test_key_is_a_chain_of_splitmix64() -> None:
    expected = 0
    for part in (7, 2**64 - 3, 1):  # -3 counts modulo 2**64
        (expected,) = splitmix64(expected ^ part, 1)
    assert keyed_random.key(7, -3, 1) == expected


def test_key_depends_on_every_part() -> None:
    keys = {
        keyed_random.key(seed, epoch, purpose)
        for seed in (-1, 0, 1, 7, 2**63)
        for epoch in range(4)
        for purpose in (1, 2)
    }
    assert len(keys) == 5 * 4 * 2
    assert keyed_random.key(0, 1, 2) != keyed_random.key(1, 0, 2) != keyed_random.key(2, 0, 1)


def test_a_sample_draws_the_same_in_any_company() -> None:
    key = keyed_random.key(3, 5, keyed_random.AUGMENTATION)
    whole = keyed_random.words(key, torch.arange(1000), 7)
    some = torch.tensor([999, 0, 17, 17])
    assert torch.equal(keyed_random.words(key, some, 7), whole[some])
    assert torch.equal(keyed_random.words(key, some, 3), whole[some, :3])


def test_bits_are_balanced_and_uncorrelated() -> None:
    words = keyed_random.words(keyed_random.key(0, 0, 2), torch.arange(20_000), 2)
    bits = ((words.unsqueeze(-1) >> torch.arange(64)) & 1).flatten(1).double()  # [n, 2 * 64]
    deviation = 0.5 / 20_000**0.5
    assert (bits.mean(0) - 0.5).abs().max() < 5 * deviation
    correlation = torch.corrcoef(torch.cat([bits[:-1], bits[1:]], 1).T).fill_diagonal_(0)  # with the next sample's, too
    assert correlation.abs().max() < 6 / 20_000**0.5


def test_consecutive_epochs_are_uncorrelated() -> None:
    first, second = (
        keyed_random.words(keyed_random.key(0, epoch, 2), torch.arange(20_000), 1)[:, 0] for epoch in (0, 1)
    )
    agreeing = ~(first ^ second)
    share = ((agreeing.unsqueeze(1) >> torch.arange(64)) & 1).double().mean(0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / 20_000**0.5


def test_integers_are_uniform_up_to_their_bound() -> None:
    words = keyed_random.words(keyed_random.key(1, 2, 2), torch.arange(90_000), 1)[:, 0]
    counts = torch.bincount(keyed_random.integers(words, 9), minlength=9)
    assert len(counts) == 9
    chi_squared = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_squared < 26.1  # 8 degrees of freedom: exceeded once in a thousand


def test_integers_scale_the_upper_half_of_a_word() -> None:
    words = torch.tensor([-1, 0, 2**63 - 1, -(2**63), 123456789 << 32], dtype=torch.int64)
    expected = [((word % 2**64) >> 32) * 1000 >> 32 for word in words.tolist()]
    assert keyed_random.integers(words, 1000).tolist() == expected == [999, 0, 499, 500, 28]


def test_integers_take_a_bound_per_draw() -> None:
    words = keyed_random.words(5, torch.arange(4000), 2)
    bounds = torch.tensor([1, 1000])
    drawn = keyed_random.integers(words, bounds)
    assert drawn[:, 0].eq(0).all()
    assert drawn[:, 1].min() < 10 and 990 <= drawn[:, 1].max() < 1000


def test_permutation_holds_everything_once_and_depends_on_the_key() -> None:
    first, again, other = (
        keyed_random.permutation(5000, keyed_random.key(0, epoch, keyed_random.ORDER)) for epoch in (0, 0, 1)
    )
    assert torch.equal(first.sort().values, torch.arange(5000))
    assert torch.equal(first, again)
    assert (first == other).sum() < 20  # expected: 1
    assert (first - torch.arange(5000)).double().abs().mean() > 1400  # a random order moves each by a third of 5000


def test_permutation_of_nothing() -> None:
    assert keyed_random.permutation(0, 1).tolist() == []
