"""After the last epoch: the best model examined once more, its pictures, and the model card of the run folder.

All ranks take part in the examination, exactly; the first one alone draws and writes.
"""

from __future__ import annotations

import math
import sys

import torch.distributed as dist
from torch import Tensor

from ddp_core.files import write_text
from ddp_train.assemble.build import Run
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.data.sources.samples import DatasetFacts
from ddp_train.distributed.process_group import on_first_rank
from ddp_train.engine.evaluate import Examination, examine
from ddp_train.evaluation.metrics import draw
from ddp_train.evaluation.model_card import model_card
from ddp_train.evaluation.tta import describe_tta, views
from ddp_train.observers.epoch_table import balanced_note, percent
from ddp_train.observers.records import add_examination, read_history
from ddp_train.run_folder.claim import mark_done

WORST = 24


def finish(run: Run) -> None:
    """Finish a run, unless epochs are left (`--stop-after`). Afterwards the network has the best model's weights."""
    progress = run.trainer.progress
    if progress.epoch < run.trainer.components.epochs and not progress.stopped:
        return
    plain, augmented = _examine(run) if run.config.diagnostics.examine else (None, None)
    if not run.trainer.components.ranks.is_first:
        return
    if plain is not None and augmented is not None:
        tta = describe_tta(run.config.diagnostics.tta, run.config.diagnostics.tta_below)
        line = f"the best model: {percent(plain.top1)}, with test-time augmentation ({tta}) "
        print(line + percent(augmented.top1), file=sys.stderr, flush=True)
    if plain is not None and run.dataset.final != run.dataset.selection:
        line = f"the best model on the {run.dataset.final} split: {percent(plain.top1)}"
        print(line + balanced_note(plain.top1, plain.balanced_accuracy), file=sys.stderr, flush=True)
    if run.folder.history.is_file():
        _write(run, plain, augmented)
    epochs, best = run.trainer.components.epochs, run.trainer.best.to_dict()
    mark_done(run.folder.path, epochs=epochs, epoch=progress.epoch, step=progress.step, best=best)


def _write(run: Run, plain: Examination | None, augmented: Examination | None) -> None:
    """Write pictures, metrics and the model card."""
    diagnostics = run.config.diagnostics
    if plain is not None:
        draw(plain, run.dataset, run.folder.path)
        metrics: dict[str, object] = {"samples": plain.samples, "top1": plain.top1}
        if run.dataset.val is not None:  # else the epochs' records have it, for the same split
            metrics |= {"split": run.dataset.final, "balanced_accuracy": plain.balanced_accuracy}
        if augmented is not None:
            metrics |= {"tta": diagnostics.tta, "tta_below": diagnostics.tta_below, "top1_tta": augmented.top1}
        add_examination(run.folder.history, metrics)
    history, data = read_history(run.folder.history), DatasetFacts.of(run.dataset)
    write_text(run.folder.path / "model_card.md", model_card(run.config, run.facts, data, history, plain, augmented))


def _examine(run: Run) -> tuple[Examination | None, Examination | None]:
    """The examination of best_model.pth, and the one with test-time augmentation; None: there is none."""
    components = run.trainer.components
    network = components.evaluated

    def load() -> bool:
        """Load best_model.pth into the network; False where there is no such file."""
        if not run.folder.best_model.is_file():
            return False
        network.load_state_dict(checkpoint_format.load_state_dict(run.folder.best_model))
        return True

    if not on_first_rank(load, components.ranks):
        return None, None
    if components.ranks.world_size > 1:
        state = network.state_dict()
        extra = on_first_rank(
            lambda: {name: value for name, value in state.items() if not isinstance(value, Tensor)}, components.ranks
        )
        for value in state.values():
            if isinstance(value, Tensor):
                dist.broadcast(value, src=0)
        network.load_state_dict(state | extra)
    classes, diagnostics = len(run.dataset.classes), run.config.diagnostics
    pipeline, final = components.pipeline, run.dataset.final
    plain = examine(network, pipeline.evaluate(final), components.precision, classes, worst=WORST)
    pipeline.test_batch = plain.at_a_time or pipeline.test_batch
    if diagnostics.tta == "none" or not run.dataset.flip_ok:  # a mirrored digit is not of its class
        return plain, None
    below = math.inf if diagnostics.tta_below is None else diagnostics.tta_below
    seen = views(diagnostics.tta)
    augmented = examine(network, pipeline.evaluate(final), components.precision, classes, views=seen, below=below)
    return plain, augmented
