"""Which techniques a run has, in which order: a table of (name, when, where it is made)."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ddp_core.errors import UserError
from ddp_train.config.options import Config
from ddp_train.technique import Context, Technique


@dataclass(frozen=True)
class Entry:
    """One technique: `wanted` by the configuration or not; `make`: module:function, imported only then.

    `last`: it copies or moves the weights of the network as all others, the user's own too, have left it.
    """

    name: str
    wanted: Callable[[Config], bool]
    make: str
    last: bool = False


# In the order in which they act: model edits, images, loss, gradient, step, weights, end of an epoch.
TABLE: tuple[Entry, ...] = (
    Entry(
        "progressive_resize",
        lambda c: c.augment.progressive_resize is not None,
        "ddp_train.techniques.progressive_resize:create",
    ),
    Entry(
        "stochastic_depth",
        lambda c: c.regularize.stochastic_depth is not None,
        "ddp_train.techniques.stochastic_depth:create",
    ),
    Entry(
        "checkpoint_activations",
        lambda c: c.model.checkpoint_activations,
        "ddp_train.techniques.checkpointing:create",
    ),
    Entry("sync_batch_norm", lambda c: c.model.sync_batch_norm, "ddp_train.techniques.sync_batch_norm:create"),
    Entry("mixing", lambda c: bool(c.augment.mixup or c.augment.cutmix), "ddp_train.techniques.mixing:create"),
    Entry("plateau", lambda c: c.schedule.scheduler == "plateau", "ddp_train.techniques.plateau:create"),
    Entry("gradient_flow", lambda c: c.diagnostics.gradient_flow, "ddp_train.diagnostics.gradient_flow:create"),
    Entry("watch_numbers", lambda c: c.diagnostics.watch_numbers, "ddp_train.diagnostics.numbers:create"),
    Entry("histograms", lambda c: c.diagnostics.histograms, "ddp_train.diagnostics.histograms:create"),
    Entry(
        "centralize_gradients",
        lambda c: c.optim.centralize_gradients,
        "ddp_train.techniques.centralization:create",
    ),
    Entry("clip_grad", lambda c: c.optim.clip_grad is not None, "ddp_train.techniques.clipping:create"),
    Entry("sam", lambda c: c.optim.sam is not None, "ddp_train.techniques.sam:create", last=True),
    Entry("lookahead", lambda c: c.optim.lookahead is not None, "ddp_train.techniques.lookahead:create", last=True),
    Entry("ema", lambda c: c.regularize.ema is not None, "ddp_train.techniques.ema:create", last=True),
    Entry("swa", lambda c: c.regularize.swa is not None, "ddp_train.techniques.swa:create", last=True),
    Entry(
        "early_stopping",
        lambda c: c.regularize.early_stopping is not None,
        "ddp_train.techniques.early_stopping:create",
    ),
    Entry("beats", lambda c: c.run.step_timeout != 0, "ddp_train.diagnostics.beats:create"),
    Entry(
        "initial_loss_check", lambda c: c.diagnostics.initial_loss_check, "ddp_train.diagnostics.initial_loss:create"
    ),
    Entry("gpu_usage", lambda c: c.run.device != "cpu", "ddp_train.diagnostics.gpu_usage:create"),
    Entry("memory_report", lambda c: c.diagnostics.memory_report, "ddp_train.diagnostics.memory_report:create"),
    Entry("profile", lambda c: c.diagnostics.profile, "ddp_train.diagnostics.profiling:create"),
)


def compose(context: Context) -> tuple[Context, tuple[Technique, ...]]:
    """The techniques of a run, and the context with the network that they have edited. Errors: UserError."""
    config = context.config
    wanted = [entry for entry in TABLE if entry.wanted(config)]
    own = [name.strip() for name in (config.regularize.technique or "").split(",") if name.strip()]
    makers = [*(e.make for e in wanted if not e.last), *own, *(e.make for e in wanted if e.last)]
    techniques: list[Technique] = []
    for maker in makers:
        technique = _find(maker)(context)
        if not isinstance(technique, Technique):
            raise UserError(f"--technique {maker}: returned a {type(technique).__name__}, not a Technique")
        if technique.edit is not None:
            context = replace(context, network=technique.edit(context.network))
        techniques.append(technique)
    updates = [technique.name for technique in techniques if technique.update is not None]
    if len(updates) > 1:
        raise UserError(f"{' and '.join(updates)} exclude each other: each takes a step of its own kind")
    names = [technique.name for technique in techniques]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two techniques are named {repeated}: their states in a checkpoint would be mixed up")
    return context, tuple(techniques)


def _find(maker: str) -> Callable[[Context], object]:
    """The function named module:function; looked for in the working directory too, as `python -m` would."""
    module, _, function = maker.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Callable[[Context], object] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise UserError(f"--technique {maker}: no module named {error.name!r} here or among the packages") from None
    except (AttributeError, ValueError):
        raise UserError(f"--technique {maker}: {module or 'it'} has no function {function!r}") from None
    try:
        inspect.signature(found).bind(None)
    except (TypeError, ValueError) as error:
        raise UserError(f"--technique {maker}: cannot be called with the run's Context ({error})") from None
    return found
