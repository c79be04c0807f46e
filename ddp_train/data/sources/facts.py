"""What a trained model has to know of its data: classes, shape, normalisation. dataset.json in a run folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddp_core.errors import UserError
from ddp_train.data.sources.samples import Dataset

SCHEMA = "ddp-train-dataset/1"


@dataclass(frozen=True)
class DatasetFacts:
    """As in `Dataset`: mean and std per channel of images scaled to [0, 1]; image_shape is channels, height, width."""

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip_ok: bool
    train_samples: int
    test_samples: int
    content: str | None = None
    """Hash of the images, their order and their labels."""
    left_out: tuple[str, ...] = ()
    """Files that cannot be used, each with the reason."""

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetFacts:
        """The facts of a loaded dataset."""
        return cls(
            name=dataset.name,
            classes=dataset.classes,
            image_shape=dataset.image_shape,
            mean=dataset.mean,
            std=dataset.std,
            flip_ok=dataset.flip_ok,
            train_samples=len(dataset.train),
            test_samples=len(dataset.test),
            content=dataset.content,
            left_out=tuple(str(sample) for sample in dataset.left_out),
        )

    def refuse_other_data(self, dataset: Dataset) -> None:
        """Errors: UserError where `dataset` is not that of the run with these facts, which is to be continued."""
        if None not in (self.content, dataset.content) and self.content != dataset.content:
            raise UserError(
                f"--resume: the images of {dataset.name} are not those that the run was trained on "
                f"({self.train_samples:,} then, {len(dataset.train):,} now); if that is meant: --changed-data accept"
            )

    def dump(self) -> str:
        """The text of the file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> DatasetFacts:
        """The facts in a file. Errors: UserError, one line naming it, when it is missing or not of this form."""
        try:
            document: dict[str, Any] = json.loads(Path(path).read_bytes())
            if document.pop("schema") != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            document |= {name: tuple(document[name]) for name in ("classes", "image_shape", "mean", "std")}
            document["left_out"] = tuple(document.get("left_out", ()))
            facts = cls(**document)
            if not (len(facts.image_shape) == 3 and len(facts.mean) == len(facts.std) == facts.image_shape[0]):
                raise ValueError("image_shape, mean and std do not fit together")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} does not describe a dataset: {' '.join(str(error).split())}") from error
        return facts
