"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982): steps along an
orthogonalised momentum.

The momentum of a matrix is replaced by the nearest matrix whose singular values are all about 1, found by five
Newton-Schulz iterations, so that directions which the gradient rarely takes are learned as fast as the others. A
convolution's kernels count as the matrix [out, in * height * width]. Biases, norms, embeddings, and the first and last
layer are trained by another rule, as the authors found to be better. Effect: fewer steps to the same loss. Cost:
fifteen matrix products a matrix and step; one buffer a weight, half of AdamW's. Nothing in particular speaks against
a combination.

torch.optim.Muon takes matrices alone, so this step is written out here; it is what the tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddp_train.torch_internals import foreach

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, chosen by the authors for a steep rise at 0; singular values end near 1."""
ITERATIONS = 5
LEAST_NORM = 1e-7

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Muon(torch.optim.Optimizer):
    """One optimizer over two sorts of groups: Muon on the first, `rest` (SGD or AdamW) on all others.

    Schedules, loss scaling and checkpoints see one optimizer: `rest` lends its rule alone and works on the groups and
    the state of this one.

    matrices: parameters of two or more dimensions; dtype: that of the Newton-Schulz iteration. Weight decay is
    decoupled (w shrinks by lr * weight_decay); the step is lr * sqrt(max(1, rows / columns)) long in each direction.
    normalize: each matrix is first scaled to the Frobenius norm sqrt(rows), as airbench does (Jordan 2024), so that lr
    is a share of the weights; for layers whose scale batch norm takes out. iterations: of Newton and Schulz.

    As torch's fused optimizers, and where `rest` is one, it takes `grad_scale` and `found_inf` from GradScaler: the
    host need not wait to know whether a step is to be left out.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rest: torch.optim.Optimizer | None,
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        normalize: bool = False,
        iterations: int = ITERATIONS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.rest = rest
        self._normalize, self._iterations, self._dtype = normalize, iterations, dtype
        if rest is not None:
            self.param_groups += rest.param_groups
            self.state.update(rest.state)  # what a fused step needs before its first
        self._step_supports_amp_scaling = rest is None or bool(getattr(rest, "_step_supports_amp_scaling", False))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of each group by its rule."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale: Tensor | None = getattr(self, "grad_scale", None)
        left_out: Tensor | None = getattr(self, "found_inf", None)
        self._step_matrices(self.param_groups[0], scale, left_out)
        if self.rest is not None:
            # After a load these are new objects.
            self.rest.param_groups, self.rest.state = self.param_groups[1:], self.state
            self.rest.grad_scale, self.rest.found_inf = scale, left_out  # type: ignore[attr-defined]
            self.rest.step()
        return loss

    def _step_matrices(self, group: dict[str, Any], scale: Tensor | None, left_out: Tensor | None) -> None:
        """left_out: a scalar on the device, not 0 where the gradient has overflowed; None: it has not."""
        matrices: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not matrices:
            return
        found: list[Any] = [matrix.grad for matrix in matrices]
        gradients: list[Tensor] = found if scale is None else [gradient / scale for gradient in found]
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta: list[Tensor] = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        if left_out is None:
            self._step(matrices, gradients, momenta, group)
            return
        before = [(value, value.clone()) for value in (*matrices, *momenta)]
        self._step(matrices, gradients, momenta, group)
        for value, earlier in before:
            value.copy_(torch.where(left_out.bool(), earlier, value))

    def _step(
        self, matrices: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
    ) -> None:
        """Few operations, each on all matrices: a small network's step is otherwise as long as its launches take."""
        foreach("lerp_", momenta, gradients, 1 - group["momentum"])
        updates = foreach("lerp", gradients, momenta, group["momentum"])  # Nesterov
        updates = orthogonalized_together(updates, self._dtype, self._iterations)
        if self._normalize:
            scales = foreach("norm", matrices)
            foreach("clamp_min_", scales, LEAST_NORM)
            foreach("reciprocal_", scales)
            lengths: list[Any] = [math.sqrt(len(matrix)) for matrix in matrices]
            foreach("mul_", scales, lengths)
            foreach("mul_", matrices, scales)
        foreach("mul_", matrices, 1.0 - group["lr"] * group["weight_decay"])
        by_length: dict[float, list[int]] = {}
        for index, matrix in enumerate(matrices):
            by_length.setdefault(math.sqrt(max(1.0, len(matrix) ** 2 / matrix.numel())), []).append(index)
        for length, chosen in by_length.items():
            both = [matrices[index] for index in chosen], [updates[index] for index in chosen]
            foreach("add_", *both, alpha=-length * group["lr"])


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32, iterations: int = ITERATIONS) -> Tensor:
    """About U V^T of a matrix U S V^T: singular values between 0.7 and 1.2, but for those that are almost 0.

    matrix: [rows, columns]; the result has `dtype`, in which it is computed. Fewer iterations leave more of the small
    singular values small.
    """
    return orthogonalized_together([matrix], dtype, iterations)[0]


def orthogonalized_together(
    matrices: Sequence[Tensor], dtype: torch.dtype = torch.float32, iterations: int = ITERATIONS
) -> list[Tensor]:
    """`orthogonalized` of each; those of one shape in one batch. Each: [rows, ...], seen as [rows, columns]."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault((len(matrix), matrix.numel() // len(matrix)), []).append(index)
    batches = {
        shape: torch.empty(len(held), *shape, dtype=dtype, device=matrices[0].device)
        for shape, held in by_shape.items()
    }
    places: list[Tensor] = [*matrices]
    for shape, held in by_shape.items():
        for place, index in zip(batches[shape].unbind(), held, strict=True):
            places[index] = place.view(matrices[index].shape)
    foreach("copy_", places, matrices)
    norms = foreach("norm", places)
    foreach("clamp_min_", norms, LEAST_NORM)
    foreach("div_", places, norms)  # singular values of at most 1
    for (rows, columns), batch in batches.items():
        found = _newton_schulz(batch.mT if rows > columns else batch, iterations)
        found = found.mT if rows > columns else found
        for one, index in zip(found.unbind(), by_shape[rows, columns], strict=True):
            places[index] = one.reshape(matrices[index].shape)
    return places


def _newton_schulz(batch: Tensor, iterations: int) -> Tensor:
    """[n, rows, columns], rows <= columns, singular values of at most 1."""
    a, b, c = COEFFICIENTS
    if len(batch) == 1:
        x = batch[0]
        for _ in range(iterations):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.unsqueeze(0)
    for _ in range(iterations):
        gram = batch @ batch.mT
        batch = torch.baddbmm(batch, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), batch, beta=a)
    return batch


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers and convolutions, but for the first and the last one of the model.

    In the order in which the model defines them; a weight that two layers share counts once, and a frozen first layer
    is the first one too.
    """
    layers = [module.weight for module in model.modules() if isinstance(module, MATRICES)]
    weights = {id(weight): weight for weight in layers if isinstance(weight, nn.Parameter)}
    return [weight for weight in list(weights.values())[1:-1] if weight.requires_grad]
