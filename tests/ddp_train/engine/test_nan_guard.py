"""The watch over losses and gradients: what it flags, for which rank, and what a refused step leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddp_core.errors import TrainingDiverged
from ddp_train.checkpoint.progress import Advice
from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.components import Components
from ddp_train.engine.nan_guard import FILE, SCHEMA, NanGuard, Replay
from ddp_train.technique import Moment
from tests.ddp_train.techniques import runs

STEP = Moment(epoch=1, step=13, seed=0, shard=0)


@pytest.fixture
def components(tmp_path: Path) -> Components:
    return runs.make("", tmp_path / "run", runs.PLAIN).trainer.components


def guard_of(components: Components, folder: Path, ranks: Ranks | None = None) -> NanGuard:
    c = components
    replay = Replay(c.network, c.precision, c.pipeline, ())
    return NanGuard(
        c.network, c.precision, ranks or c.ranks, c.flag_exchange, folder, replay, Advice(f"--resume {folder}")
    )


def give_gradients(components: Components, value: float) -> list[torch.nn.Parameter]:
    parameters = list(components.network.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    assert parameters[-1].grad is not None
    parameters[-1].grad.view(-1)[0] = value
    return parameters


@pytest.mark.parametrize("value", [1.0, torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_number_that_is_not_finite_is_flagged(
    components: Components, tmp_path: Path, where: str, value: float
) -> None:
    guard = guard_of(components, tmp_path)
    parameters = give_gradients(components, value if where == "gradient" else 1.0)
    losses = [torch.tensor(2.0), torch.tensor(value if where == "loss" else 1.0)]
    assert guard.look(parameters, losses, STEP, components.optimizer) == int(value != 1.0)
    assert guard.look_at_losses(losses) == int(value != 1.0 and where == "loss")
    assert guard.look(give_gradients(components, 1.0), [torch.tensor(1.0)], STEP, components.optimizer) == 0, (
        "the next step"
    )


@pytest.mark.parametrize(("rank", "flag"), [(0, 3), (2, 1)])
def test_the_lowest_rank_has_the_largest_flag(components: Components, tmp_path: Path, rank: int, flag: int) -> None:
    guard = guard_of(components, tmp_path, Ranks(rank=rank, world_size=3))
    assert guard.look_at_losses([torch.tensor(torch.nan)]) == flag


def test_a_refused_step_names_its_layer_and_its_samples(components: Components, tmp_path: Path) -> None:
    with torch.no_grad():
        components.network[3].weight[0] = torch.nan
    guard = guard_of(components, tmp_path)
    assert guard.look(give_gradients(components, torch.nan), [], STEP, components.optimizer) == 1
    with pytest.raises(TrainingDiverged, match=r"step 14 \(epoch 2\), rank 0: .*'?3'?.*the same command comes to it"):
        guard.refuse()
    found = json.loads((tmp_path / FILE).read_text())
    window = next(components.pipeline.train(1, 3))
    expected = [int(index) for batch in window.batches for index in batch.indices]
    assert (found["schema"], found["epoch"], found["step"], found["indices"]) == (SCHEMA, 2, 14, [expected])


def test_a_gradient_is_named_where_all_outputs_are_finite(components: Components, tmp_path: Path) -> None:
    guard = guard_of(components, tmp_path)
    guard.look(give_gradients(components, torch.nan), [], STEP, components.optimizer)
    with pytest.raises(TrainingDiverged, match=r"all outputs are finite, the gradient of 6\.bias is not"):
        guard.refuse()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_verdict_that_a_fused_optimizer_reads_is_float32(
    components: Components, tmp_path: Path, dtype: torch.dtype
) -> None:
    components.network.to(dtype)
    guard = guard_of(components, tmp_path)
    guard._late = guard._scaled = True  # the way of a GPU, as far as it needs none
    guard.look(give_gradients(components, torch.inf), [], STEP, components.optimizer)
    assert isinstance(guard._skipped, torch.Tensor)
    assert (guard._skipped.dtype, guard._skipped.item()) == (torch.float32, 1.0)


def test_only_fp16_counts_skipped_steps(components: Components, tmp_path: Path) -> None:
    assert guard_of(components, tmp_path).report() == {}
