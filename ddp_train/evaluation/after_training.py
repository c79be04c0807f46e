"""After the last epoch: the best model examined once more, its pictures, and the model card of the run folder.

All ranks take part in the examination, exactly; the first one alone draws and writes.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch.distributed as dist

from ddp_core.files import write_text
from ddp_train.assemble.build import Run
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.options import DiagnosticsOptions
from ddp_train.data.sources.facts import DatasetFacts
from ddp_train.distributed.process_group import on_first_rank
from ddp_train.engine.evaluate import Examination, examine
from ddp_train.evaluation.figures import draw
from ddp_train.evaluation.model_card import model_card
from ddp_train.evaluation.views import tta_in_words, views
from ddp_train.observers.epoch_table import percent
from ddp_train.observers.records import add_examination, read_history
from ddp_train.run_folder import done_marker

WORST = 24


def finish(run: Run) -> None:
    """Nothing where epochs are left (`--stop-after`). The network holds the best model's weights afterwards."""
    progress = run.trainer.progress
    if progress.epoch < run.trainer.parts.epochs and not progress.stopped:
        return
    found = _examine(run) if run.config.diagnostics.examine else None
    if not run.trainer.parts.ranks.is_first:
        return
    if found is not None and found.augmented is not None:
        print(_in_words(found, found.augmented, run.config.diagnostics), file=sys.stderr, flush=True)
    if run.folder.history.is_file():
        _write(run, found)
    best = {"epoch": progress.best_epoch or None, "test_accuracy": progress.best_accuracy}
    done_marker.mark(
        run.folder.path, epochs=run.trainer.parts.epochs, epoch=progress.epoch, step=progress.step, best=best
    )


@dataclass(frozen=True)
class _Found:
    """The examination of the best model; `augmented`: the one with test-time augmentation, where it was asked for."""

    plain: Examination
    augmented: Examination | None


def _in_words(found: _Found, augmented: Examination, diagnostics: DiagnosticsOptions) -> str:
    return (
        f"the best model: {percent(found.plain.top1)}, with test-time augmentation "
        f"({tta_in_words(diagnostics.tta, diagnostics.tta_below)}) {percent(augmented.top1)}"
    )


def _write(run: Run, found: _Found | None) -> None:
    diagnostics = run.config.diagnostics
    if found is not None:
        draw(found.plain, run.dataset, run.folder.path)
        figures: dict[str, object] = {"samples": found.plain.samples, "top1": found.plain.top1}
        if found.augmented is not None:
            figures |= {"tta": diagnostics.tta, "tta_below": diagnostics.tta_below, "top1_tta": found.augmented.top1}
        add_examination(run.folder.history, figures)
    history = read_history(run.folder.history)
    card = model_card(
        run.config,
        run.facts,
        DatasetFacts.of(run.dataset),
        history,
        None if found is None else found.plain,
        None if found is None else found.augmented,
    )
    write_text(run.folder.path / "model_card.md", card)


def _examine(run: Run) -> _Found | None:
    """The figures of best_model.pth; None where there is none."""
    parts = run.trainer.parts
    network = parts.evaluated

    def load() -> bool:
        if not run.folder.best_model.is_file():
            return False
        network.load_state_dict(checkpoint_format.load_state_dict(run.folder.best_model))
        return True

    if not on_first_rank(load, parts.ranks):
        return None
    if parts.ranks.world_size > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, src=0)
    classes, diagnostics = len(run.dataset.classes), run.config.diagnostics
    plain = examine(network, parts.pipeline.evaluate(), parts.precision, classes, worst=WORST)
    if diagnostics.tta == "none" or not run.dataset.flip_ok:  # a mirrored digit is not of its class
        return _Found(plain, None)
    below = math.inf if diagnostics.tta_below is None else diagnostics.tta_below
    seen = views(diagnostics.tta)
    augmented = examine(network, parts.pipeline.evaluate(), parts.precision, classes, views=seen, below=below)
    return _Found(plain, augmented)
