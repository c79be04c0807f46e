"""A configuration made to fit this machine: `auto_optimize_config("IN.yaml", "IN_optimized.yaml")`.

`suggest` is a pure function of hardware and configuration; `auto_optimize_config` reads and writes around it. Options
for the mathematics of the run (epochs, optimizer, augmentation) stay as the user set them. Where the global batch
changes, the learning rate is scaled by the square root, as it is without a file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.config import recommend
from ddp_train.config.batch_split import ceil_div, scale_learning_rate
from ddp_train.config.options import Config, to_dict
from ddp_train.config.parse import parse, with_values
from ddp_train.config.validation import check
from gpu_topology.driver.read import read_or_explain
from gpu_topology.host.host import read_host
from gpu_topology.select.select import SelectionRequest, select

__all__ = ["Change", "Machine", "Measured", "auto_optimize_config", "place", "read_machine", "suggest", "table"]

Value = int | float | str | bool | None
BEYOND = 4
"""Where time ran out, a result counts only if so many times the recommended size was tried."""
TUNED = ("batch_size", "num_workers", "amp")
MODEL_SIZES = {"power": ("width_mult",), "vit": ("hidden_dim", "n_layers")}


@dataclass(frozen=True)
class Change:
    """One option: its value before (None: not set) and after, and why. Equal values: kept, with the reason."""

    name: str
    before: Value
    after: Value
    reason: str

    @property
    def changed(self) -> bool:
        """Whether the file gets another value."""
        return self.before != self.after


@dataclass(frozen=True)
class Machine:
    """The facts that decide: hardware as config/recommend.py takes it, whether kernels can be compiled, and a note on
    what is missing."""

    hardware: recommend.Hardware
    can_compile: bool
    note: str | None = None


@dataclass(frozen=True)
class Measured:
    """What a measured search has found: per-rank batch, and the largest that fits."""

    recommended: int
    largest: int

    @classmethod
    def of(cls, recommended: int, largest: int, ended: str) -> Measured | None:
        """From the end of a search (see batch_size.Found); None where time ran out before larger sizes were shown to
        buy nothing."""
        return cls(recommended, largest) if ended != "time" or largest >= BEYOND * recommended else None


def auto_optimize_config(
    in_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str] | None = None,
    *,
    machine: Machine | None = None,
    measured: Measured | None = None,
) -> tuple[Change, ...]:
    """Read a configuration, write it with this machine's settings, and say what changed and why.

    out_path: by default IN_optimized.yaml beside IN.yaml. measured: from a benchmark; without it sizes follow from the
    hardware alone. The new file holds the options of the first one, and those that this machine decides.

    Errors: UserError for a file that is no configuration, or a place that cannot be written.
    """
    source = Path(in_path)
    target = Path(out_path) if out_path is not None else source.with_name(f"{source.stem}_optimized{source.suffix}")
    wanted = parse(["--config", str(source)])
    machine = machine or read_machine()
    changes = tuple(suggest(machine, wanted, measured))
    options = to_dict(wanted)
    values = {name: options[name] for name in options if name in wanted.given}
    values |= {change.name: change.after for change in changes if change.changed}
    check(with_values(wanted, values))
    import yaml

    hardware = machine.hardware
    about = f"{hardware.cpus} CPU cores, no GPU"
    if hardware.device == "cuda":
        memory = f"{hardware.gpu_memory / recommend.GB:.0f} GB"
        about = f"{hardware.world_size} GPU(s), {memory}, {hardware.cpus} CPU cores"
    header = f"# {source.name} for this machine: {about}\n"
    write_text(target, header + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return changes


def place(source: Path, output: Path | None = None) -> Path:
    """The path for this machine's configuration. Errors: UserError where it could not be written."""
    target = output or source.with_name(f"{source.stem}_optimized{source.suffix}")
    name = f"--output {target}" if output is not None else str(target)
    other = "" if output is not None else "; --output FILE takes another place"
    if target.is_dir():
        raise UserError(f"{name}: a folder, not a file{other}")
    if not target.parent.is_dir():
        raise UserError(f"{name}: there is no folder {target.parent}{other}")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{name}: the folder {target.parent} cannot be written to{other}")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{name} is the file that is read, and would lose its comments: choose another one")
    return target


def read_machine() -> Machine:
    """This machine as the launcher would use it: its best group of GPUs, or the CPU with a note."""
    topology, host = read_or_explain(), read_host()
    selection = select(topology, SelectionRequest())
    gpus = [topology.gpu(index) for index in selection.indices]
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability is not None]
    ranks = max(1, len(gpus))
    hardware = recommend.Hardware(
        device="cuda" if gpus else "cpu",
        world_size=ranks,
        local_world_size=ranks,
        gpu_memory=sum(each) if all(each := [gpu.memory_total or 0 for gpu in gpus]) else 0,
        compute_capability=min(capabilities) if capabilities else None,
        cpus=host.usable_cpus,
        cpu_flags=host.cpu_flags,
    )
    tools = importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
    return Machine(hardware, tools, None if gpus else f"no GPU to use ({selection.reason}): settings for the CPU")


def suggest(machine: Machine, wanted: Config, measured: Measured | None = None) -> Iterator[Change]:
    """The options that this machine decides about, one by one."""
    hardware, options = machine.hardware, to_dict(wanted)
    sizes = MODEL_SIZES.get(wanted.model.model or "", ())
    unset: dict[str, object] = dict.fromkeys((*TUNED, *sizes)) | {"amp": "auto", "accumulate": None}
    unset["batch_size_per_rank"] = None
    found = {r.name: r for r in recommend.recommend(hardware, with_values(wanted, unset))}
    if measured is not None:
        batch, parts = measured.recommended * hardware.world_size, ceil_div(measured.recommended, measured.largest)
        why = f"measured: {measured.recommended} per rank is the smallest within 3% of the best throughput"
        why_parts = f"measured: {measured.largest} per rank fit at once"
    else:
        batch, why = int(found["batch_size"].value), found["batch_size"].reason
        parts, why_parts = 1, "one micro-batch; --benchmark measures whether it fits"
        if "accumulate" in found:
            parts, why_parts = int(found["accumulate"].value), found["accumulate"].reason
    if wanted.data.batch_size_per_rank is not None:
        yield Change(
            "batch_size_per_rank", wanted.data.batch_size_per_rank, None, "batch_size is the total over all ranks"
        )
    yield Change("batch_size", wanted.data.batch_size, batch, why)
    yield from _rate(wanted, hardware, batch)
    yield Change("accumulate", wanted.data.accumulate, parts, why_parts)
    for name in ("num_workers", "amp", *sizes):
        if name in found:
            yield Change(name, options[name] if name in wanted.given else None, found[name].value, found[name].reason)
    yield Change("compile", wanted.model.compile if "compile" in wanted.given else None, *_compile(machine, wanted))
    if wanted.model.model != "vit":
        before = wanted.model.channels_last if "channels_last" in wanted.given else None
        yield Change("channels_last", before, True, "the layout in which convolution kernels work")


def _rate(wanted: Config, hardware: recommend.Hardware, batch: int) -> Iterator[Change]:
    """Scale a given rate by the square root of the batch; a rate that is not set follows by itself."""
    before = wanted.data.batch_size
    if wanted.data.batch_size_per_rank is not None:
        before = wanted.data.batch_size_per_rank * hardware.world_size
    if wanted.optim.lr is None or wanted.optim.lr_scaling not in (None, "none") or before in (None, batch):
        return
    assert before is not None
    factor = scale_learning_rate(1.0, batch, "sqrt") / scale_learning_rate(1.0, before, "sqrt")
    after = float(f"{wanted.optim.lr * factor:.4g}")
    yield Change(
        "lr",
        wanted.optim.lr,
        after,
        f"the global batch goes from {before} to {batch}: scaled by the square root of the ratio",
    )


def _compile(machine: Machine, wanted: Config) -> tuple[bool, str]:
    """Whether to compile, and why."""
    capability = machine.hardware.compute_capability
    if machine.hardware.device == "cpu" or capability is None:
        return False, "no GPU: no measurement shows that it helps"
    if wanted.model.checkpoint_activations or wanted.run.reproducible:
        return False, "excluded by another option of the file"
    shown = f"compute capability {capability[0]}.{capability[1]}"
    if capability < (7, 0):
        return False, f"{shown}: torch.compile's kernels need 7.0"
    if not machine.can_compile:
        return False, "torch.compile needs Triton and a C compiler, which are not here"
    return True, f"{shown}, Triton and a C compiler are here"


def table(changes: Sequence[Change]) -> str:
    """What changed and what stays, with the reasons."""
    rows = [("option", "before", "now", "why")]
    for change in changes:
        now = _shown(change.after) if change.changed else "kept"
        rows.append((change.name.replace("_", "-"), _shown(change.before), now, change.reason))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows)


def _shown(value: Value) -> str:
    """A value as YAML shows it, None as "unset"."""
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
