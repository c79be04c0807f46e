"""The steps of a user's own loop: which loader they are counted by, a batch's gradient, and the optimizer's step.

A step of the run is one pass through the loop's body, however many losses and optimizers are in it. It ends when the
loader is asked for the next batch: the run's state is complete then, so that checkpoints are written and the run stops
there. With accumulation a step is one pass for each micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import average_buffers
from ddp_train.engine.components import LoopParts
from ddp_train.engine.gradient_sync import seed_shard
from ddp_train.engine.loop import Loop
from ddp_train.library.late_gradients import LateGradients, versions
from ddp_train.library.loader import Loader, Part
from ddp_train.library.model import Joined
from ddp_train.technique import Moment, Technique


class Steps:
    """The steps of one run; see loader.Turns. `networks`: without wrappers; `joined`: wrapped for several ranks."""

    def __init__(
        self,
        parts: LoopParts,
        loop: Loop,
        networks: Sequence[nn.Module],
        joined: Sequence[Joined],
        techniques: Sequence[Technique],
    ) -> None:
        self._parts, self._loop, self._networks, self._joined = parts, loop, networks, joined
        self._late = LateGradients(joined, networks, parts.ranks)
        self._parameters = [parameter for network in networks for parameter in network.parameters()]
        self._known = {id(parameter) for parameter in self._parameters}
        self._of: dict[int, list[nn.Parameter]] = {}
        self._gradient = [t.gradient for t in techniques if t.gradient is not None]
        self._after_step = [t.after_step for t in techniques if t.after_step is not None]
        self._report = [t.report for t in techniques if t.report is not None]
        self._update = next((t.update for t in techniques if t.update is not None), None)
        self._counts = True
        self.device = parts.device
        self.part: Part | None = None
        self._moment = Moment(0, 0, parts.seed, parts.ranks.rank)
        """The moment of the running step."""
        self._batches = 0
        """Batches of the running pass since the last step, the present one included."""
        self.optimizer: torch.optim.Optimizer | None = None
        """The optimizer of the latest step."""
        self._owner: Loader | None = None
        """The loader by whose batches the steps are counted."""
        self._active: dict[Loader, Part] = {}
        self._stepped = self._counted = self._began = False
        self._size = 0
        self._scaled: set[int] = set()
        """Under fp16, ids of the optimizers that have stepped with the present loss scale, which changes over time."""
        self._earlier: list[nn.Parameter] = []
        """Parameters with a gradient of earlier micro-batches."""
        self._done: list[nn.Parameter] = []
        """Parameters whose optimizer will step only after a later micro-batch, and was asked to in this one."""
        self._unjoined = ExitStack()

    # Called between batches, see loader.Turns.

    def within(self) -> bool:
        """See Turns."""
        return bool(self._active)

    def finish(self, loader: Loader) -> None:
        """End the step of the previous batch, unless it belongs to another loader whose loop is still running."""
        if self._owner in (None, loader) or self._owner not in self._active:
            self.end_step()
            self._owner = loader

    def samples(self) -> tuple[int, int]:
        """How many own samples this rank has in the batches that are in use: the fewest, and the most."""
        if len(self._active) < 2:
            mine = 1 if self.part is None else self.part.samples
            return mine, mine
        counts = [part.samples for part in self._active.values() if part is not None]
        return min(counts, default=1), max(counts, default=1)

    def begin(self, loader: Loader, part: Part) -> None:
        """Hand a batch to the loop's body; the first of a step begins the step."""
        starts = loader not in self._active
        self.part = self._active[loader] = part
        if self._owner is not loader:
            return
        self._counted, self._done = False, []
        self._unjoined.close()
        self._earlier = [] if part.first else [p for p in self._parameters if p.grad is not None]
        if not part.last:
            self._unjoined = ExitStack()
            for model in self._joined:
                self._unjoined.enter_context(model.no_sync())
        if part.first:
            progress, ranks = self._parts.progress, self._parts.ranks
            if not self._began:  # a resumed epoch has made the user's draws before the loop already: undo them
                self._began = True
                if progress.step_in_epoch and self._parts.saver is not None:
                    self._parts.saver.restore_generators()
            heartbeat.at(progress.epoch, progress.step)
            self._moment = Moment(progress.epoch, progress.step, self._parts.seed, ranks.rank)
            self._batches = 1 if starts else self._batches + 1
            seed_shard(self.device, self._moment, self._batches - 1)
            self._loop.begin_step()

    def end(self, loader: Loader) -> None:
        """The loader's last batch is done: batch statistics become the same on all ranks."""
        if loader.trained:
            for network in self._networks:
                average_buffers(network, self._parts.ranks)

    def leave(self, loader: Loader) -> None:
        """The loop over `loader` is left: the batch of the loop around it, if there is one, is current again."""
        self._active.pop(loader, None)
        self.part = next(reversed(self._active.values()), None)

    def end_step(self) -> None:
        """Count the running step, if the optimizer has stepped, and do what is due after it. Errors: Stopped."""
        self._unjoined.close()
        owner, self._owner = self._owner, None
        if not self._stepped or owner is None:
            return
        self._stepped, self._batches = False, 0
        for parameter in self._parameters:  # a loss may leave gradients in networks it does not train, as in a GAN
            parameter.grad = None
        self._late.clear()
        self._end_scale()
        for after_step in self._after_step:
            after_step(self._moment)
        self._parts.progress.step += 1
        self._loop.end_step(self._size, owner.steps_per_epoch)

    def _end_scale(self) -> None:
        if self._scaled:
            self._parts.precision.end_step()
            self._scaled.clear()

    # Called in the loop's body.

    def backward(self, loss: Tensor, *, mean: bool, retain_graph: bool = False, of: Loader | None = None) -> None:
        """See Run.backward."""
        part = self._part_of(of)
        if any(parameter.grad is None for parameter in self._earlier):
            raise UserError(
                "run.backward(): the gradients of this step's earlier micro-batches were cleared: leave out "
                "zero_grad(); run.step() clears them after the last"
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"run.backward() takes one number, the sum over this rank's part of the batch, not {shape}")
        if loss.ndim:
            loss = loss.reshape(())
        weight = self._parts.ranks.world_size / part.size
        if part.samples and not self._counts:
            weight = weight * part.samples if mean else weight
        elif part.samples:
            samples = 0 if self._counted else part.samples
            self._loop.metrics.add_loss(loss.detach(), samples, part.samples if mean else 1)
            weight = weight * part.samples if mean else weight
        else:
            weight = 0.0
        self._counted = True
        if self._scaled and all(parameter.grad is None for parameter in self._parameters):
            self._end_scale()
        heartbeat.beat("backward")
        marks, done = self._late.before(), versions(self._done)
        # Without samples the gradient is zero: 0 / 0 in the pass over a made-up one must not count.
        zeroed = (
            [] if part.samples else [p.register_hook(torch.zeros_like) for p in self._parameters if p.requires_grad]
        )
        self._parts.precision.backward(loss, weight, retain_graph=retain_graph)
        for hook in zeroed:
            hook.remove()
        self._late.after(marks)
        if versions(self._done) != done:
            raise UserError(
                "run.backward(): with accumulate this loss adds to the gradient of an optimizer that run.step() was "
                "called for before it, as in a GAN, and the step would include that: accumulate=1"
            )
        heartbeat.beat("forward")

    def _part_of(self, loader: Loader | None) -> Part:
        """The batch that a loss belongs to."""
        part = self.part if loader is None else self._active.get(loader)
        if part is None:
            where = "a run.loader(...)" if loader is None else loader.name
            raise UserError(f"run.backward() outside a loop over {where}: there is no batch that it belongs to")
        if loader is None and len(self._active) > 1:
            first, *others = self._active
            if other := next((other for other in others if not first.like(other)), None):
                raise UserError(
                    f"run.backward(): batches of two loaders are in hand, {first.name} and {other.name}, whose sizes "
                    "differ: name the one that the loss belongs to, run.backward(loss, of=loader)"
                )
        return part

    def extra(self) -> dict[str, float]:
        """What the techniques report now."""
        return {name: value for report in self._report for name, value in report().items()}

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], object] | None = None) -> bool:
        """See Run.step."""
        owner = self._owner
        part = None if owner is None else self._active.get(owner) or self.part
        if part is None:
            raise UserError("run.step() outside a loop over a run.loader(...)")
        if self._update is not None and (closure is None or not (part.first and part.last)):
            raise UserError("run.use(sam=...): run.step(optimizer, closure), and no accumulate: it takes two gradients")
        if not part.last:
            if closure is not None:
                closure()
            self._done += self._parameters_of(optimizer)
            return False
        parameters = self._parameters_of(optimizer)
        if id(optimizer) in self._scaled:
            raise UserError(
                "run.step(): under fp16 an optimizer steps a second time within a batch only with a gradient that was "
                "computed after all optimizers had stepped: the gradients of a loss scale are stepped with once"
            )
        for loader in self._active:
            loader.stepped()
        self._size = part.size
        heartbeat.beat("step")

        def apply() -> None:
            """Exchange the flags and take the optimizer's step."""
            if self._late.average(parameters):
                self._loop.boundary.begin_step()  # the flags of an exchange in a backward pass came before these
            self._loop.exchange_flags(optimizer, parameters, self._moment)
            self._loop.apply(optimizer, parameters, self._prepare(parameters), last=False)
            if self._parts.precision.scales:
                self._scaled.add(id(optimizer))

        if self._update is not None and closure is not None:
            self._update(partial(self._gradients, closure), apply, optimizer)
        else:
            if closure is not None:
                closure()
            apply()
        self._loop.begin_step()
        self._earlier = [p for p in self._earlier if p.grad is not None]  # the step has cleared its own
        self._stepped, self.optimizer = True, optimizer
        heartbeat.beat("forward")
        return True

    def _gradients(self, closure: Callable[[], object], *, communicate: bool = True, count: bool = True) -> None:
        """See technique.Gradients: the same draws in each pass."""
        seed_shard(self.device, self._moment, self._batches - 1)
        self._counts = count
        with ExitStack() as apart:
            for model in () if communicate else self._joined:
                apart.enter_context(model.no_sync())
            closure()
        self._counts = True

    def _prepare(self, parameters: Sequence[nn.Parameter]) -> Callable[[], None] | None:
        if not self._gradient:
            return None
        moment = self._moment

        def prepare() -> None:
            """Let the techniques change the gradients."""
            for change in self._gradient:
                change(parameters, moment)

        return prepare

    def _parameters_of(self, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        known = self._of.get(id(optimizer))
        if known is None or len(known) != sum(len(group["params"]) for group in optimizer.param_groups):
            known = self._of[id(optimizer)] = [p for group in optimizer.param_groups for p in group["params"]]
            if strangers := sum(id(parameter) not in self._known for parameter in known):
                raise UserError(
                    f"run.step(): {strangers} of the optimizer's {len(known)} parameters belong to no network of "
                    "run.model(...): the ranks would train them apart"
                )
        return known
