"""A `Topology` as a JSON file and back, lossless: plan one machine on another, replay a bug report."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from gpu_topology.topology import LinkLevel, Topology, TopologyError

SCHEMA = "gpu-topology/1"

Json = dict[str, object]


def to_dict(topology: Topology) -> Json:
    """Plain lists and dicts for json.dump, with the key "schema" first. Bytes, percent, MHz as in `Topology`."""
    body = asdict(topology)
    return {"schema": SCHEMA, **json.loads(json.dumps(body))}


def from_dict(data: object) -> Topology:
    """The inverse of `to_dict`. Unknown keys are ignored, absent ones are unknown; TopologyError for anything else."""
    if not isinstance(data, dict):
        raise TopologyError(f'not a topology: expected a JSON object with "schema": "{SCHEMA}"')
    schema = data.get("schema")
    if schema != SCHEMA:
        raise TopologyError(f"schema is {schema!r}, this version reads {SCHEMA!r}")
    try:
        topology: Topology = _decode(Topology, data, "the topology")
    except (TypeError, ValueError) as error:
        raise TopologyError(f"not a valid {SCHEMA} topology: {error}") from None
    indices = [gpu.index for gpu in topology.gpus]
    repeated = next((index for index in indices if indices.count(index) > 1), None)
    if repeated is not None:
        raise TopologyError(f"not a valid {SCHEMA} topology: GPU {repeated} occurs twice")
    return topology


def save(topology: Topology, path: Path | str) -> None:
    """Write the snapshot; TopologyError naming the file when it cannot be written."""
    try:
        Path(path).write_text(json.dumps(to_dict(topology), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise TopologyError(f"cannot write {path}: {error.strerror or error}") from None


def load(path: Path | str) -> Topology:
    """Read a snapshot; TopologyError naming the file when it is unreadable, not JSON, or of another schema."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TopologyError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise TopologyError(f"{path} is not JSON: {error}") from None
    try:
        return from_dict(data)
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None


def _decode(kind: Any, value: object, name: str) -> Any:
    """A JSON value as the type that a dataclass field is annotated with; ValueError or TypeError when it is another."""
    if get_origin(kind) is UnionType:
        inner = next(one for one in get_args(kind) if one is not NoneType)
        return None if value is None else _decode(inner, value, name)
    if get_origin(kind) is tuple:
        items, kinds = value, get_args(kind)
        if not isinstance(items, list) or (kinds[-1] is not ... and len(items) != len(kinds)):
            raise ValueError(f"{name} is {value!r}, not a list of {'any length' if ... in kinds else len(kinds)}")
        return tuple(_decode(kinds[0], item, name) for item in items)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} holds {value!r}, not an object")
        hints = get_type_hints(kind)
        return kind(**{key: _decode(hints[key], item, key) for key, item in value.items() if key in hints})
    if issubclass(kind, LinkLevel):
        return kind(value)
    if type(value) is not kind:  # bool is an int to isinstance, and must not be one here
        raise ValueError(f"{name} is {value!r}, not {kind.__name__}")
    return value
