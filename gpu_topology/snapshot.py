"""A `Topology` as a JSON file and back, lossless: plan one machine on another, replay a bug report."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, MigDevice, Topology, TopologyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import DataclassInstance

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
        return Topology(
            gpus=tuple(_gpu(item) for item in data.get("gpus", [])),
            links=tuple(_link(item) for item in data.get("links", [])),
            driver_version=data.get("driver_version"),
            cuda_version=data.get("cuda_version"),
            warnings=tuple(data.get("warnings", [])),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TopologyError(f"not a valid {SCHEMA} topology: {type(error).__name__}: {error}") from None


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


def _known(kind: type[DataclassInstance], item: Mapping[str, object]) -> Json:
    """The fields that `kind` has: a file written by a later minor version may carry more."""
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in item.items() if key in names}


def _gpu(item: Mapping[str, object]) -> Gpu:
    known = _known(Gpu, item)
    capability = known.get("compute_capability")
    if isinstance(capability, list):
        major, minor = capability
        known["compute_capability"] = (int(major), int(minor))
    processes = known.get("processes")
    if isinstance(processes, list):
        known["processes"] = tuple(GpuProcess(**_known(GpuProcess, process)) for process in processes)  # type: ignore[arg-type]
    slices = known.get("mig_devices")
    if isinstance(slices, list):
        known["mig_devices"] = tuple(MigDevice(**_known(MigDevice, one)) for one in slices)  # type: ignore[arg-type]
    return Gpu(**known)  # type: ignore[arg-type]


def _link(item: Mapping[str, object]) -> Link:
    known = _known(Link, item)
    for key in ("level", "pcie_level"):
        if known.get(key) is not None:
            known[key] = LinkLevel(str(known[key]))
    return Link(**known)  # type: ignore[arg-type]
