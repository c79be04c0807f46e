"""Train on the hard part of each global batch, which a small proxy network chooses (Jordan 2024, airbench96_faster;
Coleman et al. 2020, "Selection via Proxy", arXiv:1906.11829; Loshchilov and Hutter 2016, arXiv:1511.06343).

Each step, the proxy sees the whole global batch; the SHARE of it with the largest losses trains the network, with the
mean over that part. In every fourth step the proxy itself learns from it too, by SGD at a constant rate. Effect: a step
costs the network SHARE of its time for most of what the batch can teach; fewer samples are seen, so compare at equal
time. Cost: the proxy's forward pass over the batch; in a fourth of the steps another forward and a backward pass over
the part; on several ranks an all-reduce of the losses and of their counts, after which the host waits for the device to
learn how many of the samples it has. With one rank and one micro-batch it need not wait. Training loss and accuracy are
those of the hard samples. Not to be combined with class weights: their sum would include other samples. Of little
use where labels are wrong: such samples stay hard.

The part is chosen from the whole global batch, not from each rank's part, and of equal losses the first in its order is
chosen. The proxy has no batch statistics, so that a sample's loss does not depend on the samples beside it, and its
gradients are added up without rounding: the number of ranks changes the choice only where two losses at its edge differ
by less than rounding, and under --reproducible not at all. A rank may be left with any number of samples, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.process_group import sum_over_ranks
from ddp_train.technique import Context, Moment, Technique
from ddp_train.torch_internals import foreach

WIDTHS = (32, 64, 64)
"""Channels of the proxy's layers, each of which halves the image."""
EVERY = 4
"""The proxy learns in one of so many steps."""
RATE, MOMENTUM = 0.1, 0.9
_GRAINS = 2.0**36
"""float64 adds up multiples of 1 / _GRAINS without rounding as long as the sum is below 2^16."""


def create(context: Context) -> Technique:
    """Create the technique of `--hard-samples SHARE`; it does nothing where SHARE is 1."""
    share = context.config.regularize.hard_samples
    assert share is not None
    if share == 1:
        return Technique(name="hard_samples")
    hard = HardSamples(context, share)
    return Technique(name="hard_samples", choose=hard.choose, after_step=hard.after_step, state=hard)


def proxy_network(channels: int, classes: int) -> nn.Module:
    """Images float [n, C, H, W] to logits [n, classes]; each sample by itself."""
    layers: list[nn.Module] = []
    for inside, outside in zip((channels, *WIDTHS), WIDTHS, strict=False):
        convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(1, outside), nn.SiLU()]
    return nn.Sequential(*layers, _Mean(), nn.Linear(WIDTHS[-1], classes))


class _Mean(nn.Module):
    """The mean over the pixels, by a kernel that adds up in a deterministic order."""

    def forward(self, x: Tensor) -> Tensor:
        """x: float [n, C, H, W]; returns float [n, C]."""
        return x.mean((2, 3))


class HardSamples:
    """The proxy, and the samples that it chooses. share: of each global batch, above 0 and below 1."""

    def __init__(self, context: Context, share: float) -> None:
        self._share, self._ranks, self._precision = share, context.ranks, context.precision
        self._equal_passes = context.config.model.sync_batch_norm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.config.run.seed)
            proxy = proxy_network(context.image_shape[0], context.classes)
        layout = torch.channels_last if context.config.model.channels_last else torch.contiguous_format
        self._proxy = proxy.to(context.device, memory_format=layout)  # type: ignore[call-overload]
        self._weights = list(self._proxy.parameters())
        self._momenta = [torch.zeros_like(weight) for weight in self._weights]
        self._gradients: list[Tensor] | None = None

    def choose(self, window: Window, moment: Moment) -> Window:
        """The hard samples of a window, in its order; a micro-batch without any is left out. See technique.choose."""
        batches, wanted = list(window.batches), max(1, round(self._share * window.size))
        rows = self._rows(batches, window.size, wanted)
        least = 0 if self._equal_passes else 1
        chosen = [
            (batch.take(part), shard)
            for batch, part, shard in zip(batches, rows, window.shards, strict=True)
            if len(part) >= least
        ]
        hard = [batch for batch, _ in chosen]
        self._gradients = self._gradient(hard, wanted) if moment.step % EVERY == 0 else None
        return replace(
            window,
            batches=iter(hard),
            count=len(hard),
            samples=sum(len(batch.labels) for batch in hard),
            size=wanted,
            shards=tuple(shard for _, shard in chosen),
        )

    @torch.no_grad()
    def _rows(self, batches: Sequence[Batch], size: int, wanted: int) -> list[Tensor]:
        """The chosen rows of each micro-batch, int64."""
        losses = torch.cat([self._losses(batch) for batch in batches]) if batches else self._weights[0].new_zeros(0)
        everyone, here = self._of_all_ranks(losses, size)
        order = everyone.sort(descending=True, stable=True).indices[:wanted]
        if len(batches) == 1 and self._ranks.world_size == 1:  # their number is known, so the host need not wait for it
            return [order.sort().values]
        taken = torch.zeros(size, dtype=torch.bool, device=losses.device).index_fill_(0, order, True)
        mine = taken.index_select(0, here).split([len(batch.labels) for batch in batches])
        return [part.nonzero()[:, 0] for part in mine]

    def _losses(self, batch: Batch) -> Tensor:
        """The proxy's loss of each sample, float32 [n]."""
        with self._precision.autocast() if self._precision.mode == "bf16" else torch.no_grad():
            logits = self._proxy(batch.images)
        return functional.cross_entropy(logits.float(), batch.labels, reduction="none")

    def _of_all_ranks(self, losses: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The losses of the global batch, float32 [size], and the positions of this rank's samples in it, int64 [n]."""
        here = torch.arange(len(losses), device=losses.device)
        if self._ranks.world_size == 1:
            return losses, here
        counts = torch.zeros(self._ranks.world_size, dtype=torch.int64, device=losses.device)
        counts[self._ranks.rank : self._ranks.rank + 1].fill_(len(losses))
        sum_over_ranks(counts)
        here += counts[: self._ranks.rank].sum()
        return sum_over_ranks(losses.new_zeros(size).index_copy_(0, here, losses)), here

    def _gradient(self, hard: Sequence[Batch], wanted: int) -> list[Tensor]:
        """The gradient of the proxy's mean loss over the chosen samples of all ranks."""
        device = self._weights[0].device
        total = torch.zeros(sum(weight.numel() for weight in self._weights), dtype=torch.float64, device=device)
        for batch in hard:
            if not len(batch.labels):
                continue
            loss = functional.cross_entropy(self._proxy(batch.images.float()), batch.labels, reduction="sum") / wanted
            found = torch.autograd.grad(loss, self._weights)
            flat = torch.cat([gradient.reshape(-1) for gradient in found]).double()
            total += (flat * _GRAINS).round_().div_(_GRAINS)
        if self._ranks.world_size > 1:
            sum_over_ranks(total)
        parts = total.float().split([weight.numel() for weight in self._weights])
        return [part.view(weight.shape) for part, weight in zip(parts, self._weights, strict=True)]

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """The proxy's own step, by SGD with Nesterov momentum: after the network's step, which may be retried."""
        if self._gradients is None:
            return
        foreach("mul_", self._momenta, MOMENTUM)
        foreach("add_", self._momenta, self._gradients)
        foreach("add_", self._gradients, self._momenta, alpha=MOMENTUM)
        foreach("add_", self._weights, self._gradients, alpha=-RATE)
        self._gradients = None

    def state_dict(self) -> dict[str, Any]:
        """Weights and momenta of the proxy."""
        return {"weights": [weight.detach() for weight in self._weights], "momenta": self._momenta}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the proxy. Errors: ValueError for a proxy of other sizes."""
        for name, own in (("weights", self._weights), ("momenta", self._momenta)):
            if [one.shape for one in state[name]] != [one.shape for one in own]:
                raise ValueError("its proxy network is for other images or classes")
            for mine, saved in zip(own, state[name], strict=True):
                mine.copy_(saved)
