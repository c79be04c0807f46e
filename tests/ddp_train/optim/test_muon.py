"""Muon's matrices together: steps that are left out, and batches that are filled up with zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddp_train.optim.muon import Muon, batches_of, orthogonalized, orthogonalized_together
from tests.ghost import cuda


@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_step_of_muon_that_is_left_out_leaves_no_bit(normalize: bool, scale: float | None) -> None:
    """found_inf = 1 between two steps; found_inf = 0 is a step without it, but for rounding."""
    shapes = [(4, 3, 3, 3), (20, 2, 2, 2), (4, 9)]
    start = [torch.randn(shape) for shape in shapes]
    start[0] = start[0].contiguous(memory_format=torch.channels_last)

    def run(verdicts: list[float | None]) -> list[torch.Tensor]:
        matrices = [nn.Parameter(one.clone()) for one in start]
        muon = Muon(matrices, None, lr=0.1, momentum=0.6, weight_decay=0.3, normalize=normalize)
        generator = torch.Generator().manual_seed(1)
        for verdict in verdicts:
            for matrix in matrices:
                wild = verdict == 1
                matrix.grad = (
                    torch.full(matrix.shape, torch.nan) if wild else torch.randn(matrix.shape, generator=generator)
                )
                matrix.grad *= scale or 1.0
            if verdict is not None:
                muon.found_inf = torch.tensor(verdict)
            if scale is not None:
                muon.grad_scale = torch.tensor(scale)
            before = [*matrices, *(state["momentum_buffer"] for state in muon.state.values())]
            before = [one.detach().clone() for one in before]
            muon.step()
            after = [*matrices, *(state["momentum_buffer"] for state in muon.state.values())]
            if verdict == 1:
                assert all(torch.equal(one, other) for one, other in zip(before, after, strict=False))
        return [matrix.detach() for matrix in matrices]

    plain, among = run([None, None]), run([0.0, 1.0, 0.0])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(plain, among, strict=True))


def test_matrices_with_one_short_side_share_a_batch_where_few_zeros_fill_it_up() -> None:
    shapes = [(64, 216), (64, 576), (256, 576), (2304, 256), (256, 2304), (8, 800), (9, 8)]
    assert batches_of(shapes, 1.5) == [[0, 1], [2, 3, 4], [5], [6]]
    assert batches_of(shapes, 1.0) == [[0], [1], [2], [3, 4], [5], [6]]


def test_filled_up_with_zeros_a_matrix_is_orthogonalized_as_by_itself() -> None:
    with cuda():
        gpu = torch.device("cuda", 0)
        matrices = [torch.randn(shape).to(gpu) for shape in ((6, 2, 3, 3), (6, 20), (25, 6), (3, 3))]
        together = orthogonalized_together(matrices)
        for one, matrix in zip(together, matrices, strict=True):
            assert one.shape == matrix.shape
            alone = orthogonalized(matrix.flatten(1)).view(matrix.shape)
            torch.testing.assert_close(one.cpu(), alone.cpu(), atol=1e-5, rtol=1e-4)
