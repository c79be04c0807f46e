"""Peak memory by phase: of forward and backward pass, optimizer step and evaluation, and what the backward pass needs.

Effect: shows what a smaller batch, accumulation or activation checkpointing would save; training is not touched. The
table is printed at the end of the run, and written to memory.json. On a GPU the peaks are those of torch's allocator,
and reading them is free. On the CPU they are the peak of the whole process's resident memory (Linux; unknown where the
kernel does not let a process reset it), with two small files read in each phase. "Kept" are the tensors that autograd
keeps from a forward pass, parameters left out; unknown under torch.compile. It combines with everything.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddp_core.files import write_text
from ddp_train.distributed.process_group import Ranks, sum_over_ranks
from ddp_train.observers.records import Best, EpochRecord, Observer
from ddp_train.technique import Context, Technique

PHASES = ("forward", "backward", "step", "evaluation")
COLUMNS = (*PHASES, "kept")
SCHEMA = "ddp-train-memory/1"
_MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def create(context: Context) -> Technique:
    """`--memory-report`. The ranks' peaks are gathered after each epoch; the first rank writes them."""
    report = _PeakMemory(context)
    return Technique(name="memory_report", phase=report.phase, after_epoch=report.after_epoch, observer=report)


class _PeakMemory(Observer):
    def __init__(self, context: Context) -> None:
        self._file = context.run_folder / "memory.json"
        self._device, self._ranks = context.device, context.ranks
        on_gpu = context.device.type == "cuda"
        self._what = "allocated by torch on the GPU" if on_gpu else "resident memory of the whole process"
        self._network, self._hooks = context.network, not context.config.model.compile
        self._peaks: dict[str, int] = {}
        self._all: list[dict[str, int | None]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak memory of a phase."""
        counting = name == "forward" and self._hooks
        known = reset_peak(self._device)
        with contextlib.ExitStack() as hooks:
            kept = hooks.enter_context(kept_bytes(self._network)) if counting else {}
            yield
        found = {name: read_peak(self._device) if known else None, "kept": sum(kept.values()) if counting else None}
        for column, value in found.items():
            if value is not None:
                self._peaks[column] = max(value, self._peaks.get(column, 0))

    def after_epoch(self, record: EpochRecord) -> bool:
        """Gather the ranks' peaks so far and write them; never ends the run."""
        self._all = _gather(self._peaks, self._ranks, self._device)
        if self._ranks.is_first:
            document = {"schema": SCHEMA, "unit": "bytes", "of": self._what, "ranks": self._all}
            write_text(self._file, json.dumps(document, indent=2) + "\n")
        return False

    def on_end(self, best: Best) -> None:
        """See Observer: print the table."""
        if self._all:
            print(table(self._all, self._what), file=sys.stderr, flush=True)


@contextlib.contextmanager
def kept_bytes(network: nn.Module) -> Iterator[dict[int, int]]:
    """Storages that autograd saves in the block for the backward pass: address -> bytes; without parameters."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        """Note the tensor's storage, unless it is a parameter's."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself could keep itself alive, in a reference cycle with its graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def reset_peak(device: torch.device) -> bool:
    """Restart the peak from what is in use now; returns whether the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak of the resident memory
    except OSError:
        return False
    return True


def read_peak(device: torch.device) -> int | None:
    """The peak in bytes since it was reset; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def table(ranks: list[dict[str, int | None]], what: str) -> str:
    """The peaks of all ranks in MiB, one row each."""
    lines = [f"peak memory in MiB ({what}); kept: what autograd saves for the backward pass"]
    lines.append("  rank" + "".join(f"{name:>12}" for name in COLUMNS))
    for rank, peaks in enumerate(ranks):
        cells = ("-" if (value := peaks[name]) is None else f"{value / _MIB:,.1f}" for name in COLUMNS)
        lines.append(f"{rank:>6}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _gather(peaks: Mapping[str, int], ranks: Ranks, device: torch.device) -> list[dict[str, int | None]]:
    """Every rank's peaks on every rank; None is unknown."""
    values = torch.zeros((ranks.world_size, len(COLUMNS)), dtype=torch.float64, device=device)
    values[ranks.rank] = torch.tensor([float(peaks.get(name, -1)) for name in COLUMNS], dtype=torch.float64)
    return [
        {name: None if value < 0 else int(value) for name, value in zip(COLUMNS, row, strict=True)}
        for row in sum_over_ranks(values).tolist()
    ]
