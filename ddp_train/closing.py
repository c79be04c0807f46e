"""After the last epoch: the best model examined once more, its pictures, and the model card of the run folder.

All ranks take part in the examination, exactly; the first one alone draws and writes.
"""

from __future__ import annotations

import torch.distributed as dist

from ddp_train import checkpoint, done
from ddp_train.atomic import write_text
from ddp_train.build import Run
from ddp_train.data.facts import DatasetFacts
from ddp_train.distributed import on_first_rank
from ddp_train.evaluation.figures import draw
from ddp_train.evaluation.model_card import model_card
from ddp_train.records import read_history
from ddp_train.scores import Examination, examine

__all__ = ["finish"]

WORST = 24


def finish(run: Run) -> None:
    """Nothing where epochs are left (`--stop-after`). The network holds the best model's weights afterwards."""
    progress = run.trainer.progress
    if progress.epoch < run.trainer.parts.epochs and not progress.stopped:
        return
    found = _examine(run) if run.config.looking.examine else None
    if not run.trainer.parts.ranks.is_first:
        return
    if run.folder.history.is_file():
        _write(run, found)
    best = {"epoch": progress.best_epoch or None, "test_accuracy": progress.best_accuracy}
    done.mark(run.folder.path, epochs=run.trainer.parts.epochs, epoch=progress.epoch, step=progress.step, best=best)


def _write(run: Run, found: Examination | None) -> None:
    if found is not None:
        draw(found, run.dataset, run.folder.path)
    history = read_history(run.folder.history)
    card = model_card(run.config, run.facts, DatasetFacts.of(run.dataset), history, found)
    write_text(run.folder.path / "model_card.md", card)


def _examine(run: Run) -> Examination | None:
    """The figures of best_model.pth; None where there is none."""
    parts = run.trainer.parts
    network = parts.evaluated

    def load() -> bool:
        if not run.folder.best_model.is_file():
            return False
        network.load_state_dict(checkpoint.load_state_dict(run.folder.best_model))
        return True

    if not on_first_rank(load, parts.ranks):
        return None
    if parts.ranks.world_size > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, src=0)
    classes = len(run.dataset.classes)
    return examine(network, parts.pipeline.evaluate(), parts.precision, classes, worst=WORST)
