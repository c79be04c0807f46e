"""The batch finder for any module.

BatchSizeOptimizer(model).find_optimal_batch_size(sample, target_gpu_util=85.0)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.tune.batch_report import utilization_of
from ddp_train.tune.batch_size import MARGIN, Found, find_batch_size

__all__ = ["BatchSizeOptimizer"]

Sample = Tensor | tuple[Tensor, Tensor]


class BatchSizeOptimizer:
    """Finds the batch size that suits a module on its device, by training steps that leave no trace.

    loss: (outputs, targets) -> a scalar; by default the mean square of the outputs. optimizer: takes part in the steps,
    so that its state is counted; without one a step is the forward and the backward pass. device: by default that of
    the module's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        min_batch_size: int = 1,
        max_batch_size: int | None = None,
        margin: float = MARGIN,
        time_limit_s: float = 30.0,
    ) -> None:
        first = next(model.parameters(), None)
        own = first.device if first is not None else torch.device("cpu")
        self.device = torch.device(device) if device is not None else own
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if self.device != own:
            model.to(self.device)
        self.model, self._loss, self._optimizer = model, loss, optimizer
        self._range = (min_batch_size, max_batch_size)
        self._margin, self._time_limit_s = margin, time_limit_s
        self.found: Found | None = None
        """All that the last search has measured."""

    def find_optimal_batch_size(self, sample: Sample, target_gpu_util: float | None = 85.0) -> int:
        """The smallest batch that reaches `target_gpu_util` percent; where none does, or where
        utilisation is unknown, the smallest within 3% of the best throughput (`found.reason` says which).

        sample: one input, or a batch of them (its first row is taken), or a pair of input and target. Errors: UserError
        where not even the smallest batch fits, or the model does not take the sample.
        """
        inputs, targets = sample if isinstance(sample, tuple) else (sample, None)
        inputs = self._row(inputs).to(self.device)
        targets = None if targets is None else torch.atleast_1d(targets)[:1].to(self.device)
        if self._loss is not None and targets is None:
            raise UserError("a loss needs targets: give the sample as a pair of input and target")
        self.found = find_batch_size(
            lambda batch: self._step(inputs, targets, batch),
            target_utilization=target_gpu_util,
            smallest=self._range[0],
            largest=self._range[1],
            margin=self._margin,
            time_limit_s=self._time_limit_s,
            device=self.device,
            utilization=utilization_of(self.device),
            keep=[part for part in (self.model, self._optimizer) if part is not None],
        )
        return self.found.recommended

    def _row(self, inputs: Tensor) -> Tensor:
        """One input with a dimension for the batch: the first row of a batch, or else the input itself."""
        training = self.model.training
        self.model.eval()
        reasons = []
        try:
            for candidate in (inputs[:1] if inputs.ndim > 1 else inputs.unsqueeze(0), inputs.unsqueeze(0)):
                try:
                    with torch.no_grad():
                        self.model(torch.cat([candidate, candidate]).to(self.device))
                    return candidate
                except (RuntimeError, ValueError) as error:
                    reasons.append(" ".join(str(error).split())[:200])
        finally:
            self.model.train(training)
        raise UserError(f"the model does not take the sample of shape {tuple(inputs.shape)} ({reasons[0]})")

    def _step(self, inputs: Tensor, targets: Tensor | None, batch: int) -> None:
        """One training step on a batch of this size."""
        self.model.train()
        outputs = self.model(inputs.repeat(batch, *[1] * (inputs.ndim - 1)))
        if self._loss is None or targets is None:
            value = outputs.float().square().mean()
        else:
            value = self._loss(outputs, targets.repeat(batch, *[1] * (targets.ndim - 1)))
        value.backward()
        if self._optimizer is not None:
            self._optimizer.step()
        self.model.zero_grad(set_to_none=True)
