"""The file gradient_flow.json: its form, and reading it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict

from ddp_train.config.options import UserError

__all__ = ["SCHEMA", "FlowDocument", "FlowPoint", "read_flow"]

SCHEMA = "ddp-train-gradient-flow/1"


class FlowPoint(TypedDict):
    """One step (from 1, over the run) of an epoch (from 1): mean and largest |gradient| of each layer, None where they
    are not finite."""

    epoch: int
    step: int
    mean: list[float | None]
    largest: list[float | None]


class FlowDocument(TypedDict):
    """The layers in the order of the network, and the points in the order of time."""

    schema: str
    layers: list[str]
    points: list[FlowPoint]


def read_flow(path: str | os.PathLike[str]) -> FlowDocument:
    """The document in `path`. Errors: UserError, one line naming the file, when it is missing or not of this form."""
    try:
        document: FlowDocument = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a gradient flow: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(f'{path} is not a gradient flow: it has no "schema": "{SCHEMA}"')
    layers, points = document.get("layers"), document.get("points")
    if not isinstance(layers, list) or not isinstance(points, list) or not all(map(str.__instancecheck__, layers)):
        raise UserError(f"{path} is not a gradient flow: layers or points is missing")
    for number, point in enumerate(points):
        if not _is_point(point, len(layers)):
            raise UserError(f"{path} is not a gradient flow: points[{number}] has not a mean and a largest per layer")
    return document


def _is_point(point: object, layers: int) -> bool:
    if not isinstance(point, dict) or not all(isinstance(point.get(name), int) for name in ("epoch", "step")):
        return False
    columns = [point.get(name) for name in ("mean", "largest")]
    return all(isinstance(column, list) and len(column) == layers and _are_numbers(column) for column in columns)


def _are_numbers(column: list[object]) -> bool:
    return all(value is None or isinstance(value, (int, float)) for value in column)
