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

from ddp_train.optim.low_overhead import without_shells
from ddp_train.torch_internals import foreach

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, chosen by the authors for a steep rise at 0; singular values end near 1."""
ITERATIONS = 5
LEAST_NORM = 1e-7
MOST_PADDED = 1.5
"""How many times as large a batch on a GPU may be with the zeros that fill it up: one launch in place of several."""

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
        _step(self)
        return loss

    def step_matrices(self, group: dict[str, Any], scale: Tensor | None, left_out: Tensor | None) -> None:
        """left_out: a scalar on the device, 1 where the gradient has overflowed, else 0; None: it has not."""
        matrices: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not matrices:
            return
        gradients: list[Any] = [matrix.grad for matrix in matrices]
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta: list[Tensor] = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        momentum, rate = group["momentum"], group["lr"]
        # 0 where the step is left out: what has it as an exponent is 1 then, and what is divided by it infinite.
        taken = None if left_out is None else torch.rsub(left_out, 1)
        if left_out is None or taken is None:
            gradients = gradients if scale is None else foreach("div", gradients, scale)
            foreach("lerp_", momenta, gradients, 1 - momentum)
        else:
            gradients = _finite(gradients, momenta, scale, left_out)
            foreach("mul_", momenta, momentum**taken)
            foreach("add_", momenta, gradients, alpha=1 - momentum)
        updates = foreach("lerp", gradients, momenta, momentum)  # Nesterov
        updates = orthogonalized_together(updates, self._dtype, self._iterations, taken)
        self._shrink(matrices, 1.0 - rate * group["weight_decay"], taken)
        by_length: dict[float, list[int]] = {}
        for index, matrix in enumerate(matrices):
            by_length.setdefault(math.sqrt(max(1.0, len(matrix) ** 2 / matrix.numel())), []).append(index)
        for length, chosen in by_length.items():
            both = [matrices[index] for index in chosen], [updates[index] for index in chosen]
            foreach("add_", *both, alpha=-length * rate)

    def _shrink(self, matrices: list[Tensor], kept: float, taken: Tensor | None) -> None:
        """Weight decay, after which `kept` is left, and the fixed norm."""
        if self._normalize:
            norms = foreach("norm", matrices)
            foreach("clamp_min_", norms, LEAST_NORM)
            lengths: list[Any] = [math.sqrt(len(matrix)) * kept for matrix in matrices]
            foreach("div_", norms, lengths)
            if taken is not None:
                foreach("pow_", norms, [taken] * len(norms))
            foreach("div_", matrices, norms)
        elif kept != 1.0:
            foreach("mul_", matrices, kept if taken is None else kept**taken)


def _step(muon: Any) -> None:
    """One step of each group by its rule."""
    scale: Tensor | None = getattr(muon, "grad_scale", None)
    left_out: Tensor | None = getattr(muon, "found_inf", None)
    muon.step_matrices(muon.param_groups[0], scale, left_out)
    if muon.rest is not None:
        # After a load these are new objects.
        muon.rest.param_groups, muon.rest.state = muon.param_groups[1:], muon.state
        muon.rest.grad_scale, muon.rest.found_inf = scale, left_out
        muon.rest.step()


Muon.step = without_shells(Muon, _step)  # type: ignore[method-assign]


def _finite(gradients: list[Any], like: list[Tensor], scale: Tensor | None, left_out: Tensor) -> list[Tensor]:
    """Copies of the gradients, divided by `scale`, in the memory order of `like`; zeros where they are left out.

    In one piece of memory, so that they are one operation's.
    """
    flat = torch.empty(sum(map(torch.Tensor.numel, like)), dtype=like[0].dtype, device=like[0].device)
    parts = flat.split([one.numel() for one in like])
    copies = [
        part.as_strided(one.shape, one.stride(), part.storage_offset()) for part, one in zip(parts, like, strict=True)
    ]
    foreach("copy_", copies, gradients)
    if scale is not None:
        flat.div_(scale)
    flat.masked_fill_(left_out.bool(), 0.0)
    return copies


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32, iterations: int = ITERATIONS) -> Tensor:
    """About U V^T of a matrix U S V^T: singular values between 0.7 and 1.2, but for those that are almost 0.

    matrix: [rows, columns]; the result has `dtype`, in which it is computed. Fewer iterations leave more of the small
    singular values small.
    """
    return orthogonalized_together([matrix], dtype, iterations)[0]


def orthogonalized_together(
    matrices: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
    iterations: int = ITERATIONS,
    taken: Tensor | None = None,
) -> list[Tensor]:
    """`orthogonalized` of each; those that fit together in one batch. Each: [rows, ...], seen as [rows, columns].

    taken: a scalar; where it is 0, all are zeros.
    """
    shapes = [(len(matrix), matrix.numel() // len(matrix)) for matrix in matrices]
    places: list[Tensor] = [*matrices]
    device, batches = matrices[0].device, []
    # A CPU would wait for the zeros' products longer than for the operations that are saved.
    groups = batches_of(shapes, MOST_PADDED if device.type == "cuda" else 1.0)
    sizes = [(len(held), min(shapes[held[0]]), max(max(shapes[index]) for index in held)) for held in groups]
    numbers = [math.prod(size) for size in sizes]
    make = torch.empty if sum(numbers) == sum(map(math.prod, shapes)) else torch.zeros
    for held, size, part in zip(
        groups, sizes, make(sum(numbers), dtype=dtype, device=device).split(numbers), strict=True
    ):
        batch = part.view(size)
        batches.append((held, batch))
        for one, index in zip(batch.unbind(), held, strict=True):
            places[index] = _place(one, matrices[index])
    foreach("copy_", places, matrices)
    norms = foreach("norm", places)
    foreach("clamp_min_", norms, LEAST_NORM)
    if taken is not None:
        foreach("div_", norms, taken.to(dtype))
    foreach("div_", places, norms)  # singular values of at most 1
    for held, batch in batches:
        for one, index in zip(_newton_schulz(batch, iterations).unbind(), held, strict=True):
            places[index] = _place(one, matrices[index])
    return places


def batches_of(shapes: Sequence[tuple[int, int]], most_padded: float) -> list[list[int]]:
    """Indices of the matrices, as (rows, columns), that are iterated upon in one batch.

    Those of one shape, lying or standing, and those with one short side: the long sides are filled up with zeros, which
    changes no product, as long as that makes the batch at most `most_padded` times as large.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    by_short: dict[int, list[int]] = {}
    for index, shape in enumerate(shapes):
        by_shape.setdefault((min(shape), max(shape)), []).append(index)
        by_short.setdefault(min(shape), []).append(index)
    found = []
    for short, held in by_short.items():
        lengths = [max(shapes[index]) for index in held]
        if max(lengths) * len(held) <= most_padded * sum(lengths):
            found.append(held)
        else:
            found += [same for (least, _), same in by_shape.items() if least == short]
    return found


def _place(padded: Tensor, matrix: Tensor) -> Tensor:
    """Where in [short, long] a matrix is, in its shape: transposed where it has more rows than columns."""
    rows, columns = len(matrix), matrix.numel() // len(matrix)
    view = padded[:, : max(rows, columns)]
    return (view.mT if rows > columns else view).unflatten(1, matrix.shape[1:])


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
        gram = torch.bmm(batch, batch.mT)
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
