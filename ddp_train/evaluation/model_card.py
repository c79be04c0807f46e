"""The model card of a run: what it is, its data, its results, and how it was made. Only measured numbers.

The form follows Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993), as far as a run can know.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence

from ddp_train.config.declaration import is_set
from ddp_train.config.options import Config, to_dict
from ddp_train.data.sources.samples import DatasetFacts
from ddp_train.engine.evaluate import Examination
from ddp_train.evaluation.tta import describe_tta
from ddp_train.observers.epoch_table import duration
from ddp_train.observers.records import Best, HistoryDocument, RunFacts

NAMED_CLASSES = 30
SETTINGS: tuple[str, ...] = ("epochs", "batch_size", "optimizer", "lr", "lr_scaling", "weight_decay", "scheduler")
SETTINGS += ("warmup_epochs", "augment", "class_weights", "balanced_sampling", "amp", "seed")


def model_card(
    config: Config,
    run: RunFacts,
    data: DatasetFacts,
    history: HistoryDocument,
    found: Examination | None,
    augmented: Examination | None = None,
) -> str:
    """The model card as Markdown. `found`: the examination of the best model, if there was one; `augmented`: that with
    test-time augmentation."""
    diagnostics = config.diagnostics
    tta = None if augmented is None else (describe_tta(diagnostics.tta, diagnostics.tta_below), augmented.top1)
    heading = (
        f"# {run.name}\n\n`{run.model}`, {run.parameters:,} parameters: an image classifier "
        f"for the {len(data.classes)} classes of {data.name}. "
        "The weights are in `best_model.pth`, every setting in `config.yaml`."
    )
    use = (
        "## Use\n\nFrom this folder:\n\n```\npython -m ddp_train.predict best_model.pth IMAGE...\n"
        "python -m ddp_train.evaluate --checkpoint best_model.pth --data-dir DIR\n"
        "python -m ddp_train.export best_model.pth -o model.pt2\n```\n\n"
        f"It knows only the classes of {data.name}: any other image is assigned to one of them."
    )
    environment = history["environment"]
    named = [(name, str(environment[name])) for name in ("python", "torch", "platform") if name in environment]
    parts = [heading, _results(data, history, found, tta), _classes(data, found), _data(data)]
    parts += [_training(config, run, history), "## Versions\n\n" + _table(named), use]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.encode(errors="replace").decode()  # a class name may come from a folder name that is not valid text


def _results(
    data: DatasetFacts, history: HistoryDocument, found: Examination | None, tta: tuple[str, float] | None
) -> str:
    """The section on results. `tta`: the description of test-time augmentation, and the accuracy with it."""
    best, final = Best.of(history), "test" if data.test_samples else "validation"
    rows = [("best epoch", f"{best.epoch} of {history['epochs'][-1]['epoch']}")] if best.epoch else []
    if best.split == "val" and best.accuracy is not None:
        rows += [("validation accuracy of the best epoch", f"{best.accuracy:.2%}"), *_balanced(best)]
    if found is not None:
        rows += [(f"{final} images", f"{found.samples:,}"), ("top-1 accuracy", f"{found.top1:.2%}")]
        rows += [("balanced accuracy (mean over the classes)", f"{found.balanced_accuracy:.2%}")]
        rows += [("top-5 accuracy", f"{found.top5:.2%}")] if found.top5 is not None else []
        rows += [(f"top-1 with test-time augmentation ({tta[0]})", f"{tta[1]:.2%}")] if tta is not None else []
        rows += [("mean cross-entropy", f"{found.loss:.4f}")]
    elif best.split == "test" and best.accuracy is not None:
        rows += [("top-1 accuracy", f"{best.accuracy:.2%}"), *_balanced(best)]
    chosen = "the validation split; the test split had no part in it"
    if best.split == "test" or not data.test_samples:
        chosen = f"this same {final} split"
    return (
        f"## Results on the {final} split\n\n{_table(rows)}\n\nThe best epoch was chosen by the accuracy on {chosen}."
    )


def _balanced(best: Best) -> list[tuple[str, str]]:
    """The row for balanced accuracy, if there is one."""
    return [] if best.balanced is None else [("its balanced accuracy (mean over the classes)", f"{best.balanced:.2%}")]


def _classes(data: DatasetFacts, found: Examination | None) -> str:
    """The section on accuracy by class; empty for many classes."""
    if found is None or len(data.classes) > NAMED_CLASSES:
        return ""
    counted = zip(data.classes, found.hits, found.counts, strict=True)
    rows = [(name, f"{hits / count:.2%} of {count:,}") for name, hits, count in counted if count]
    return "Accuracy by class:\n\n" + _table(rows)


def _data(data: DatasetFacts) -> str:
    """The section on the data."""
    shown = ", ".join(data.classes[:NAMED_CLASSES])
    more = ", ..." if len(data.classes) > NAMED_CLASSES else ""
    channels, height, width = data.image_shape
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (data.mean, data.std))
    held_out = {"validation": data.val_samples, "testing": data.test_samples}
    parts = {"training": data.train_samples} | {name: count for name, count in held_out.items() if count}
    scaled = "" if data.resize is None else f", the centre of images whose shorter side is scaled to {data.resize}"
    rows = [
        ("images", ", ".join(f"{count:,} for {name}" for name, count in parts.items())),
        ("size", f"{channels} x {height} x {width} (channels, height, width){scaled}"),
        ("normalisation", f"scaled to [0, 1], mean {mean}, deviation {std}"),
        ("classes", shown + more),
    ]
    return f"## Data: {data.name}\n\n" + _table(rows)


def _training(config: Config, run: RunFacts, history: HistoryDocument) -> str:
    """The section on training."""
    values, epochs = to_dict(config), history["epochs"]
    ranks = "1 rank" if run.world_size == 1 else f"{run.world_size} ranks"
    seconds = [epoch["seconds"] for epoch in epochs if epoch["seconds"] is not None]
    speeds = [epoch["images_per_second"] for epoch in epochs if epoch["images_per_second"] is not None]
    rows = [(name.replace("_", "-"), str(values[name])) for name in SETTINGS if is_set(values.get(name))]
    rows += [("machine", f"{ranks} on {run.device}")]
    rows += [("time", f"{duration(sum(seconds))} for {len(seconds)} epochs")] if seconds else []
    rows += [("throughput", f"{statistics.median(speeds):,.0f} images/s, the median epoch")] if speeds else []
    busy, memory = (
        [value for epoch in epochs if (value := epoch.get("extra", {}).get(name)) is not None]
        for name in ("gpu_utilization", "gpu_memory")
    )
    rows += [("GPU utilisation", f"{statistics.fmean(busy):.0%}, the mean over the epochs")] if busy else []
    rows += [("GPU memory", f"{max(memory) / 2**30:.1f} GiB in use at most")] if memory else []
    command = history["environment"].get("command")
    shown = f"\n\n```\n{shlex.join(map(str, command))}\n```" if isinstance(command, list) else ""
    return "## Training\n\n" + _table(rows) + shown


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """A Markdown table without titles."""
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    """Text that a Markdown cell can hold."""
    return " ".join(text.replace("|", "/").splitlines())
