"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982): steps along an
orthogonalised momentum.

The momentum of a matrix is replaced by the nearest matrix whose singular values are all about 1, found by five
Newton-Schulz iterations, so that directions which the gradient rarely takes are learned as fast as the others. A
convolution's kernels count as the matrix [out, in * height * width]. Biases, norms, embeddings, and the first and last
layer are trained by another optimizer, which the authors found to work better. Effect: fewer steps to the same loss.
Cost: fifteen matrix products per matrix and step; one buffer per weight, half as many as AdamW's. No combination with
another technique is known to do harm.

torch.optim.Muon takes 2-D matrices only, so the step is written out here; the tests compare it with torch's.
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
"""Coefficients of a x + b x^3 + c x^5, chosen by the authors to be steep at 0; singular values end near 1."""
ITERATIONS = 5
LEAST_NORM = 1e-7
MOST_PADDED = 1.5
"""Largest factor by which zero padding may enlarge a batch on a GPU: one launch then does the work of several."""

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Muon(torch.optim.Optimizer):
    """One optimizer over two sorts of groups: Muon on the first, `rest` (SGD or AdamW) on all others.

    Schedules, loss scaling and checkpoints see one optimizer: `rest` contributes only its update rule and works on
    the groups and the state of this one.

    matrices: parameters of two or more dimensions; dtype: used in the Newton-Schulz iterations. Weight decay is
    decoupled (w shrinks by lr * weight_decay); the step is lr * sqrt(max(1, rows / columns)) long in each direction.
    normalize: each matrix is first scaled to the Frobenius norm sqrt(rows), as airbench does (Jordan 2024), so that lr
    is a share of the weights; for layers before batch norm, which removes their scale. iterations: of Newton-Schulz.

    Like torch's fused optimizers, it takes `grad_scale` and `found_inf` from GradScaler if `rest` does or is None: the
    host need not wait to learn whether a step is skipped.
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
            self.state.update(rest.state)  # buffers that a fused step needs before its first step
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
        """One step of Muon. left_out: a scalar on the device, 1 if the gradient overflowed, else 0; None: as 0."""
        matrices: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not matrices:
            return
        gradients: list[Any] = [matrix.grad for matrix in matrices]
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta: list[Tensor] = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        momentum, rate = group["momentum"], group["lr"]
        # 0 if the step is skipped: a number to this power is then 1, and a number divided by it is infinite.
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
        """Apply weight decay, which leaves the share `kept` of each weight, and the fixed norm if there is one."""
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
        # load_state_dict makes new objects of these.
        muon.rest.param_groups, muon.rest.state = muon.param_groups[1:], muon.state
        muon.rest.grad_scale, muon.rest.found_inf = scale, left_out
        muon.rest.step()


Muon.step = without_shells(Muon, _step)  # type: ignore[method-assign]


def _finite(gradients: list[Any], like: list[Tensor], scale: Tensor | None, left_out: Tensor) -> list[Tensor]:
    """Copies of the gradients, divided by `scale`, in the memory order of `like`; zeros if the step is skipped.

    They share one block of memory, so that one operation covers all of them.
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
    """Approximately U V^T of a matrix U S V^T: singular values between 0.7 and 1.2, except those that are almost 0.

    matrix: [rows, columns]; the result is computed and returned in `dtype`. Fewer iterations leave more of the small
    singular values small.
    """
    return orthogonalized_together([matrix], dtype, iterations)[0]


def orthogonalized_together(
    matrices: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
    iterations: int = ITERATIONS,
    taken: Tensor | None = None,
) -> list[Tensor]:
    """`orthogonalized` of each matrix, in batches where they fit together. Each: [rows, ...], seen as [rows, columns].

    taken: a scalar; if it is 0, all results are zeros.
    """
    shapes = [(len(matrix), matrix.numel() // len(matrix)) for matrix in matrices]
    places: list[Tensor] = [*matrices]
    device, batches = matrices[0].device, []
    # On a CPU the products with padding take longer than the operations that padding saves.
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
    """Group matrices, given as (rows, columns), into batches that are iterated together; returns their indices.

    Matrices of one shape or its transpose share a batch. So do all with the same short side if padding their long sides
    with zeros, which changes no product, makes the batch at most `most_padded` times as large.
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
    """The part of `padded`, [short, long], that holds a matrix, in its shape: transposed if it is taller than wide."""
    rows, columns = len(matrix), matrix.numel() // len(matrix)
    view = padded[:, : max(rows, columns)]
    return (view.mT if rows > columns else view).unflatten(1, matrix.shape[1:])


def _newton_schulz(batch: Tensor, iterations: int) -> Tensor:
    """Iterate on a batch [n, rows, columns] with rows <= columns and singular values of at most 1."""
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
    still counts as the first.
    """
    layers = [module.weight for module in model.modules() if isinstance(module, MATRICES)]
    weights = {id(weight): weight for weight in layers if isinstance(weight, nn.Parameter)}
    return [weight for weight in list(weights.values())[1:-1] if weight.requires_grad]
