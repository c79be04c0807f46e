"""The tree of sums, the buffers of shards, and what a run under --reproducible refuses, tells and records."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.batch_split import shards_of_rank
from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.shard_reduce import Buffers, ShardTree, add_up, cover
from tests.ddp_train.techniques import runs

SHORT = "--synthetic-samples 40 --epochs 1 --reproducible"


def values(shards: int) -> list[Tensor]:
    """Numbers of such different size that every order of adding them up rounds in another way."""
    draw = torch.Generator().manual_seed(shards)
    return [torch.randn(50, generator=draw) * 10.0 ** (shard % 7) for shard in range(shards)]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 7, 8, 12])
def test_any_number_of_ranks_adds_up_the_same_tree(shards: int) -> None:
    leaves = values(shards)
    alone = ShardTree(Ranks(), shards).add_up(lambda shard: [leaves[shard].clone()])
    for ranks in range(1, shards + 1):
        # What each rank adds up by itself, and what all add up of that.
        whole = (0, shards)
        found = {}
        for rank in range(ranks):
            for node in cover(shards_of_rank(shards, rank, ranks), whole):
                mine = {(shard, shard + 1): [leaves[shard].clone()] for shard in range(*node)}
                found[node] = add_up(node, mine.get)
        assert torch.equal(add_up(whole, found.get)[0], alone[0]), ranks
    assert torch.allclose(alone[0].double(), sum(leaf.double() for leaf in leaves), rtol=1e-4)
    if shards > 3:
        assert not torch.equal(alone[0], sum(leaves)), "the order must matter for the comparison to mean something"


def test_each_shard_has_one_rank() -> None:
    for shards, ranks in itertools.product(range(1, 20), range(1, 20)):
        parts = [shards_of_rank(shards, rank, ranks) for rank in range(ranks)]
        assert list(itertools.chain(*parts)) == list(range(shards))
        assert ranks > shards or all(parts)


def test_buffers_move_by_the_weighted_mean_of_their_shards() -> None:
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    buffers, start = Buffers(norm), None
    images, sizes = torch.randn(12, 3), [5, 4, 3, 0]
    start = buffers.read()
    moves, expected = [], torch.zeros(3, dtype=torch.float64)
    for shard, part in enumerate(images.split(sizes)):
        buffers.write(start)
        if len(part):
            norm(part)
            expected += len(part) / 12 * part.double().mean(0)
        moves.append(buffers.moved(start, shard, len(part)))
    buffers.move(start, [torch.stack([move for (move,) in moves]).sum(0)], 12)
    assert torch.allclose(norm.running_mean.double(), 0.1 * expected, atol=1e-7)
    assert norm.num_batches_tracked == 1, "a step counts once"
    assert norm.mask.tolist() == [0.0, -torch.inf], "what nothing moved stays, infinite or not"


def test_the_gradient_is_that_of_the_mean_over_the_global_batch() -> None:
    plain, sharded = runs.train("", runs.PLAIN), runs.train("--reproducible", runs.PLAIN)
    for name, value in plain.items():
        assert torch.allclose(sharded[name], value, rtol=1e-4, atol=1e-6), name
    assert any(not torch.equal(sharded[name], value) for name, value in plain.items())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--reproducible-shards 4",
            "into 8 logical shards (--reproducible-shards), and those of this run are cut into 4",
        ),
        ("--no-reproducible", "into 8 logical shards (--reproducible-shards), and those of this run are cut by the"),
    ],
)
def test_another_cut_is_refused_on_resume(words: str, expected: str, tmp_path: Path) -> None:
    runs.make(SHORT, tmp_path / "run", runs.STATEFUL).trainer.fit()
    state = checkpoint_format.newest(tmp_path / "run").state
    assert state["run"]["config"]["reproducible_shards"] == 8
    assert state["run"]["config"]["reproducible_threads"] == torch.get_num_threads()
    with pytest.raises(UserError, match=re.escape(expected)):
        runs.make(f"{SHORT} --epochs 2 --resume auto {words}", tmp_path / "run", runs.STATEFUL)


def test_other_threads_are_told_on_resume_and_the_cost_of_every_run(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run = runs.make(SHORT, tmp_path / "run", runs.STATEFUL)
    run.trainer.fit()
    (cost,) = [note for note in run.facts.notes if "without --reproducible (" in note]
    assert re.search(r"8 logical shards, threads a rank: \d+; [\d.]+ ms for the gradient of a step, [\d.]+ ms w", cost)
    torch.set_num_threads(before + 1)
    try:
        again = runs.make(f"{SHORT} --epochs 2 --resume auto", tmp_path / "run", runs.STATEFUL)
    finally:
        torch.set_num_threads(before)
    assert any(f"(threads {before} -> {before + 1})" in note for note in again.facts.notes)


def test_more_ranks_than_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 ranks for 1 logical shards"):
        from ddp_train import data
        from ddp_train.assemble.factories import create_pipeline
        from ddp_train.config.parse import parse

        chosen = parse(f"{runs.COMMON} --reproducible --reproducible-shards 1 --accumulate 1".split())
        create_pipeline(chosen, data.load("synthetic", chosen.data), Ranks(0, 0, 2, 2), runs.CPU)


class Scattering(nn.Module):
    """Writes where another writes: torch's kernel does not say who is last."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat[:, :10].clone().put_(torch.tensor([0]), flat[0, :1])


def scattering(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(image_shape[0], 4, 3), Scattering())


def test_a_layer_without_a_deterministic_kernel_is_refused(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(
            UserError, match=r"--reproducible: put_ does not have a deterministic implementation; take an"
        ):
            runs.make(SHORT, tmp_path / "run", "tests.ddp_train.engine.test_reproducible:scattering")
    finally:
        torch.use_deterministic_algorithms(False)


def drawn(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Draws its weights from every generator that there is."""
    layer = nn.Linear(4, num_classes)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([random.random() + np.random.random() for _ in range(num_classes)]))
    return nn.Sequential(nn.Conv2d(image_shape[0], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)


def test_weights_that_are_drawn_from_any_generator_follow_the_seed(tmp_path: Path) -> None:
    model = "tests.ddp_train.engine.test_reproducible:drawn"
    makes = [runs.make(f"--seed {seed}", tmp_path / str(n), model) for n, seed in enumerate((3, 3, 4))]
    first, again, other = ([*run.trainer.components.network.parameters()] for run in makes)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[-1], other[-1])
