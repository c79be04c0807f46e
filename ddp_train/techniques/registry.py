"""The techniques of a run, in order: a table of (name, when, module)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ddp_core.errors import UserError
from ddp_train.config.options import Config
from ddp_train.config.user_function import load_function
from ddp_train.technique import Context, Technique


@dataclass(frozen=True)
class Entry:
    """One technique. `wanted`: whether a configuration asks for it; `module`: imported only then, for its `create`.

    `last`: it copies or moves the weights, so it is made after all others, the user's own too, have edited the network.
    """

    name: str
    wanted: Callable[[Config], bool]
    module: str
    last: bool = False


# In the order in which they act: model edits, images, loss, gradient, step, weights, end of an epoch.
TABLE: tuple[Entry, ...] = (
    Entry("progressive_resize", lambda c: c.augment.progressive_resize is not None, "techniques.progressive_resize"),
    Entry("hard_samples", lambda c: c.regularize.hard_samples is not None, "techniques.hard_samples"),
    Entry("stochastic_depth", lambda c: c.regularize.stochastic_depth is not None, "techniques.stochastic_depth"),
    Entry("whiten_bias", lambda c: c.model.whiten_bias_epochs is not None, "techniques.whiten_bias"),
    Entry("checkpoint_activations", lambda c: c.model.checkpoint_activations, "techniques.checkpointing"),
    Entry("sync_batch_norm", lambda c: c.model.sync_batch_norm, "techniques.sync_batch_norm"),
    Entry("mixing", lambda c: bool(c.augment.mixup or c.augment.cutmix), "techniques.mixing"),
    Entry("plateau", lambda c: c.schedule.scheduler == "plateau", "techniques.plateau"),
    Entry("gradient_flow", lambda c: c.diagnostics.gradient_flow, "diagnostics.gradient_flow"),
    Entry("watch_numbers", lambda c: c.diagnostics.watch_numbers, "diagnostics.watch_numbers"),
    Entry("histograms", lambda c: c.diagnostics.histograms, "diagnostics.histograms"),
    Entry("centralize_gradients", lambda c: c.optim.centralize_gradients, "techniques.centralization"),
    Entry("clip_grad", lambda c: c.optim.clip_grad is not None, "techniques.clipping"),
    Entry("sam", lambda c: c.optim.sam is not None, "techniques.sam", last=True),
    Entry("lookahead", lambda c: c.optim.lookahead is not None, "techniques.lookahead", last=True),
    Entry("ema", lambda c: c.regularize.ema is not None, "techniques.ema", last=True),
    Entry("swa", lambda c: c.regularize.swa is not None, "techniques.swa", last=True),
    Entry("early_stopping", lambda c: c.regularize.early_stopping is not None, "techniques.early_stopping"),
    Entry("heartbeat", lambda c: c.run.step_timeout != 0, "diagnostics.heartbeat_phases"),
    Entry("initial_loss_check", lambda c: c.diagnostics.initial_loss_check, "diagnostics.initial_loss"),
    Entry("gpu_usage", lambda c: c.run.device != "cpu", "diagnostics.gpu_usage"),
    Entry("memory_growth_check", lambda c: c.diagnostics.memory_growth_check, "diagnostics.memory_growth"),
    Entry("memory_report", lambda c: c.diagnostics.memory_report, "diagnostics.memory_report"),
    Entry("profile", lambda c: c.diagnostics.profile, "diagnostics.profiling"),
)


def compose(context: Context) -> tuple[Context, tuple[Technique, ...]]:
    """The context with the network that the techniques have edited, and the techniques of a run. Errors: UserError."""
    config = context.config
    wanted = [entry for entry in TABLE if entry.wanted(config)]
    own = [name.strip() for name in (config.regularize.technique or "").split(",") if name.strip()]
    first, last = ([f"ddp_train.{e.module}:create" for e in wanted if e.last is late] for late in (False, True))
    techniques: list[Technique] = []
    for maker in (*first, *own, *last):
        create = load_function("--technique", maker)
        technique = _created(create, context) if maker in last else create(context)
        if not isinstance(technique, Technique):
            raise UserError(f"--technique {maker}: returned a {type(technique).__name__}, not a Technique")
        if technique.edit is not None:
            context = replace(context, network=technique.edit(context.network))
        techniques.append(technique)
    updates = [technique.name for technique in techniques if technique.update is not None]
    if len(updates) > 1:
        raise UserError(f"{' and '.join(updates)} cannot be combined: each replaces the optimizer step")
    names = [technique.name for technique in techniques]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two techniques are named {repeated}: their states in a checkpoint would be mixed up")
    return context, tuple(techniques)


def _created(create: Callable[[Context], Technique], context: Context) -> Technique:
    """A technique that may copy the network. Errors: UserError for a network that cannot be copied."""
    try:
        return create(context)
    except (TypeError, RuntimeError) as error:
        option = create.__module__.rpartition(".")[2]
        raise UserError(f"--{option}: needs a copy of the network, and copy.deepcopy fails ({error})") from error
