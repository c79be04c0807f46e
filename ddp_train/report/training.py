"""The parts of the page about training: curves, their table, time by rank, energy, settings, data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ddp_train.observers.epoch_table import duration, energy, loss, number, percent
from ddp_train.report.charts import Chart, Form, Series, chart, positions
from ddp_train.report.json_value import Value
from ddp_train.report.read_run import RunRecord

MOST_EXTRA = 8
MOST_ROWS = 400
MOST_NAMES = 60
OWN, ENERGY = "columns", "energy_joules"
PHASES = {
    "data": 1,
    "forward": 2,
    "backward": 3,
    "communication": 4,
    "step": 5,
    "waiting for the GPU": 9,
    "evaluation": 6,
    "checkpoint": 7,
    "other": 8,
    "own work": 3,
    "waiting for others": 4,
}
"""Phases of ddp_train/distributed/heartbeat.py that are shown by name, and their colours."""
KNOWN_EXTRA = {
    "gpu_utilization": ("GPU utilisation", "mean over GPUs and epoch"),
    "gpu_memory": ("GPU memory", "highest in use, GiB"),
    "gradient_norm": ("Gradient norm", "before clipping, last step of the epoch"),
}
UNITS = {ENERGY: 3600.0, "gpu_memory": 2.0**30}
"""Divisors of the numbers in a chart: joules to Wh, bytes to GiB."""


def short(value: float) -> str:
    """A number of any size, for an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e7 else f"{value:.4g}"


def share(value: float) -> str:
    """A fraction of 1 for an axis and for its curve: 50%, 98.61%."""
    return f"{value:.2%}".replace(".00%", "%")


def _in(unit: float, values: Iterable[float | None]) -> list[float | None]:
    """The values in a unit."""
    return [None if value is None else value / unit for value in values]


def charts(record: RunRecord) -> list[Chart]:
    """Loss, accuracy, learning rate, throughput, energy, and other numbers that the run reported."""
    made = (chart(*found, may_be_log=log) for *found, log in _curves(record))
    return [one for one in made if one is not None]


def _curves(record: RunRecord) -> Iterator[Any]:
    """The arguments of each chart."""
    epochs, split = _numbers(record), record.split
    both: tuple[tuple[str, str, Form], ...] = (
        ("Loss", "mean per sample", short),
        ("Accuracy", "share of images", share),
    )
    for title, unit, form in both:
        names = {"train": f"train_{title.lower()}", split: f"{split}_{title.lower()}"}
        pair = [Series(name, record.column(column), color) for color, (name, column) in enumerate(names.items(), 1)]
        yield title, unit, epochs, pair, form, title == "Loss"
    for name in _own(record):
        yield name, "as the run logged it", epochs, [Series(name, record.column(name), 4)], short, False
    for name, title, about, color in (
        ("learning_rate", "Learning rate", "at the end of the epoch", 3),
        ("images_per_second", "Throughput", "samples per second, all ranks", 5),
        (ENERGY, "Energy", "Wh of each epoch, all GPUs", 6),
    ):
        values = _in(UNITS.get(name, 1.0), record.column(name))
        yield title, about, epochs, [Series(title.lower(), values, color)], short, False
    for name in _extra(record):
        title, about = KNOWN_EXTRA.get(name, (name.replace("_", " ").capitalize(), "at the end of the epoch"))
        values = _in(UNITS.get(name, 1.0), record.column(name))
        yield title, about, epochs, [Series(title, values, 7)], share if name == "gpu_utilization" else short, False


def _numbers(record: RunRecord) -> list[int]:
    return [Value(row)["epoch"].whole or 0 for row in record.epochs]


def _own(record: RunRecord) -> list[str]:
    """The columns that the user's own training loop has logged."""
    names = (item.text for row in record.epochs for item in Value(row)[OWN])
    return list(dict.fromkeys(names))[:MOST_EXTRA]


def _extra(record: RunRecord) -> list[str]:
    seen = dict.fromkeys(name for row in record.epochs for name, _ in Value(row)["extra"].items())
    return [name for name in KNOWN_EXTRA | seen if name in seen and name != ENERGY][:MOST_EXTRA]


def table(record: RunRecord) -> dict[str, object]:
    """The table of the epochs, with the numbers of the curves."""
    split, own = record.split, _own(record)
    columns: dict[str, tuple[str, Form]] = {
        "train loss": ("train_loss", loss),
        "train accuracy": ("train_accuracy", percent),
        f"{split} loss": (f"{split}_loss", loss),
        f"{split} accuracy": (f"{split}_accuracy", percent),
        **{name: (name, short) for name in own},
        "learning rate": ("learning_rate", lambda value: number(value, ".3g")),
        "samples/s": ("images_per_second", lambda value: number(value, ",.0f")),
        "time": ("seconds", duration),
        "energy": (ENERGY, energy),
    }
    values = {head: (record.column(name), form) for head, (name, form) in columns.items()}
    values = {head: pair for head, pair in values.items() if any(value is not None for value in pair[0])}
    kept, epochs = positions(len(record.epochs), MOST_ROWS), _numbers(record)
    rows = [
        [epochs[at], *("-" if column[at] is None else form(column[at]) for column, form in values.values())]  # type: ignore[arg-type]
        for at in kept
    ]
    caption = "All epochs" if len(kept) == len(epochs) else f"{len(kept)} of the {len(epochs):,} epochs"
    return {"caption": caption, "heads": ["epoch", *values], "rows": rows}


def bars(shares: Mapping[int, Mapping[str, float]], caption: str, form: Form) -> dict[str, object] | None:
    """One bar for each rank. shares: rank -> phase -> seconds or shares; phases that no rank has are left out."""
    summed = {rank: _by_phase(parts) for rank, parts in sorted(shares.items()) if any(parts.values())}
    used = [name for name in PHASES if any(parts.get(name) for parts in summed.values())]
    if not used:
        return None
    longest = max(sum(parts.values()) for parts in summed.values())
    rows = [
        {
            "rank": rank,
            "parts": [
                {
                    "name": name,
                    "color": PHASES[name],
                    "percent": f"{100 * parts.get(name, 0.0) / longest:.2f}",
                    "text": form(parts.get(name, 0.0)),
                }
                for name in used
            ],
        }
        for rank, parts in summed.items()
    ]
    phases = [{"name": name, "color": PHASES[name]} for name in used]
    return {"caption": caption, "phases": phases, "rows": rows, "unit": ""}


def _by_phase(parts: Mapping[str, float]) -> dict[str, float]:
    """Sum by the names of PHASES, into which the launcher's names are translated; any other phase counts as "other"."""
    names = {"input": "data", "communication wait": "communication", "device": "waiting for the GPU"}
    found: dict[str, float] = {}
    for name, value in parts.items():
        name = names.get(name, name)
        name = name if name in PHASES else "other"
        found[name] = found.get(name, 0.0) + max(0.0, value)
    return found


def energy_to(record: RunRecord) -> tuple[str, float] | None:
    """("94%", joules): energy up to the target accuracy, or up to the best one if there is no target or it was missed.

    None where an epoch on the way has no reading.
    """
    accuracies, joules = record.column(f"{record.split}_accuracy"), record.column(ENERGY)
    target = Value(record.config.get("target")).number
    reached = [at for at, value in enumerate(accuracies) if target and value is not None and value >= target]
    if reached and target:
        at, words = reached[0], share(target)
    elif record.best is not None and record.best[0] in _numbers(record):
        at, words = _numbers(record).index(record.best[0]), share(record.best[1])
    else:
        return None
    known = [value for value in joules[: at + 1] if value is not None]
    return (words, sum(known)) if len(known) == at + 1 else None


def changed(record: RunRecord, typed: Sequence[str], reasons: Mapping[str, str]) -> list[list[str]]:
    """Rows of the options that differ from their defaults: name, value, default, where the value is from."""
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in typed if word.startswith("--")}
    # A value that was not typed comes from a config file or preset, if one was named, or from the trainer.
    file = "a file or preset, or chosen by the trainer" if given & {"config", "preset"} else "chosen by the trainer"
    rows = []
    for name, (value, default) in record.changed.items():
        source = "the command line" if name in given else reasons.get(name, file)
        rows.append([f"--{name.replace('_', '-')}", _shown(value), _shown(default), source])
    return rows


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "not set" if value is None else str(value)


def data(record: RunRecord) -> dict[str, object] | None:
    """The rows about the dataset."""
    found = record.data
    if found is None:
        return None
    counts = {"for training": found.train, "for validation": found.val, "for testing": found.test}
    images = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
    rows = [("images", images), ("size", " × ".join(map(str, found.image_shape)))]
    rows += [("classes", named(found.classes))] if found.classes else []
    rows += [("SHA-256", found.content)] if found.content else []
    left = found.left_out
    return {
        "caption": found.name or "The dataset",
        "rows": [(name, value) for name, value in rows if value],
        "left_out": "\n".join(left[:MOST_NAMES]),
        "left_out_title": f"{len(left):,} files could not be used"
        + f", the first {MOST_NAMES}" * (len(left) > MOST_NAMES),
    }


def named(names: Iterable[str]) -> str:
    """The number of names, and the names; of more than MOST_NAMES only the first ones."""
    found = [name if len(name) <= 80 else f"{name[:40]}…{name[-39:]}" for name in names]
    more = f" and {len(found) - MOST_NAMES:,} more" if len(found) > MOST_NAMES else ""
    return f"{len(found):,}: " + ", ".join(found[:MOST_NAMES]) + more
