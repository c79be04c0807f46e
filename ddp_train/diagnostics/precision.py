"""`python -m ddp_train.diagnostics.precision`: one batch in each number format of the device, compared with float64.

For each format its range, the share of the gradient's numbers below it (which are rounded to zero, or coarsely), the
relative error of the loss and of the gradient (all weights as one vector), and the time of a forward and backward pass.
Dropout is off, batch statistics are those of training. The table goes to stdout; a user's mistake is one line on stderr
and status 2.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

if __name__ == "__main__":
    from ddp_core.missing_packages import leave_without

    leave_without("torch", "numpy", "jsonargparse", "yaml")

import torch
from torch import Tensor, nn

from ddp_core.cli import exit_status
from ddp_core.errors import UserError
from ddp_train import data, models
from ddp_train.config.options import Config
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks, choose_device, device_name, wait_for_device
from ddp_train.optim.precision import Precision, set_matmul_precision
from gpu_topology.host.host import read_host

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH = 128
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
DTYPES |= {"fp16": torch.float16}
"""Format -> the type that has its range."""
AMP = {"fp32": "off", "tf32": "off", "bf16": "bf16", "fp16": "fp16"}
"""Format -> the value of `--amp` that selects it."""


@dataclass(frozen=True)
class Measured:
    """One format: errors are relative to float64; `milliseconds`: the median of a forward and backward pass.

    smallest, largest: the format's normal numbers; below: the share of the float64 gradient's nonzero numbers that are
    smaller than `smallest`, without loss scaling.
    """

    format: str
    loss: float
    loss_error: float
    gradient_error: float
    milliseconds: float
    smallest: float
    largest: float
    below: float
    note: str = ""


def compare(network: nn.Module, images: Tensor, labels: Tensor, repeats: int = 5) -> list[Measured]:
    """All formats of the device that the network is on; the first entry is float64 itself.

    images: float32 [n, C, H, W]; labels: int64 [n]. The network is left as it was.
    """
    device = images.device
    reference = _Pass(copy.deepcopy(network).double(), images.double(), labels, Precision("off", device))
    exact_loss, exact = reference()
    sizes = exact[exact != 0].abs()

    def within(name: str) -> tuple[float, float, float]:
        """Smallest and largest number of a format, and the share of the gradient below."""
        limits = torch.finfo(DTYPES[name])
        return limits.tiny, limits.max, float((sizes < limits.tiny).double().mean()) if len(sizes) else 0.0

    found = [Measured("fp64", exact_loss, 0.0, 0.0, reference.milliseconds(repeats), *within("fp64"), "the reference")]
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for name, note in _available(device).items():
        set_matmul_precision("high" if name == "tf32" else "highest")
        try:
            attempt = _Pass(copy.deepcopy(network), images, labels, Precision(AMP[name], device))
            loss, gradient = attempt()
            took = attempt.milliseconds(repeats)
        finally:
            torch.set_float32_matmul_precision(products)
            torch.backends.cudnn.allow_tf32 = convolutions
        error = float((gradient - exact).norm() / exact.norm())
        found.append(Measured(name, loss, abs(loss - exact_loss) / abs(exact_loss), error, took, *within(name), note))
    return found


class _Pass:
    """Forward and backward of one batch."""

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor, precision: Precision) -> None:
        self._network, self._images, self._labels, self._precision = network, images, labels, precision
        network.train()
        for module in network.modules():
            if isinstance(module, DROPOUTS):
                module.eval()

    def __call__(self) -> tuple[float, Tensor]:
        """The mean loss, and the gradient of all weights as one vector, float64."""
        self._network.zero_grad(set_to_none=True)
        with self._precision.autocast():
            logits = self._network(self._images)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = nn.functional.cross_entropy(logits, self._labels)
        self._precision.backward(loss)
        scale = self._precision.scaler.get_scale()
        gradients = [p.grad for p in self._network.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([g.double().flatten() for g in gradients]) / scale

    def milliseconds(self, repeats: int) -> float:
        """The median over `repeats` passes; each is timed until the device has finished it."""
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            self()  # reading the loss waits for the forward pass alone
            wait_for_device(self._images.device)
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)


def _available(device: torch.device) -> dict[str, str]:
    """Format that `device` supports -> a note about it."""
    if device.type == "cpu":
        native = read_host().cpu_flags & {"amx_bf16", "avx512_bf16"}
        return {"fp32": "", "bf16": "" if native else "emulated: this CPU has no native bf16"}
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    return {"fp32": "", "tf32": "", "bf16": "", "fp16": "scaled"} if modern else {"fp32": "", "fp16": "scaled"}


def _table(found: Sequence[Measured]) -> str:
    """The measurements as a text table."""
    rows = [("format", "loss", "loss error", "gradient error", "forward + backward", "range", "gradient below", "")]
    for m in found:
        errors = (f"{m.loss_error:.1e}", f"{m.gradient_error:.1e}")
        reach = f"{m.smallest:.0e} to {m.largest:.0e}"
        rows.append((m.format, f"{m.loss:.6f}", *errors, f"{m.milliseconds:.2f} ms", reach, f"{m.below:.2%}", m.note))
    name, *numbers = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:7])
    lines = []
    for first, *cells, note in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, numbers, strict=True))
        lines.append("  ".join((first.ljust(name), *right, note)).rstrip())
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """This program's own options, and those of the trainer. Errors: UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m ddp_train.diagnostics.precision",
        usage="%(prog)s [--json] [--repeats N] [the trainer's options]",
        description="One batch forward and backward in each number format of the device, against float64.",
        epilog="Of the trainer's options, only those of the model, data, batch, device and seed have an effect, as in: "
        "--model power --dataset synthetic --batch-size 256",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="passes that are timed (default 5)")
    try:
        own, others = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(str(error).removeprefix("argument ")) from None
    if not 1 <= own.repeats <= 10**6:
        raise UserError(f"--repeats takes a whole number from 1 to 1000000, not {own.repeats}")
    return own, parse(others)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: _compare(*_parse(argv)))


def _compare(own: argparse.Namespace, wanted: Config) -> None:
    """Measure on one batch and print."""
    device = choose_device(wanted.run.device, Ranks())
    name, note = data.resolve(wanted.data)
    if note:
        print(note, file=sys.stderr)
    data.prepare(name, wanted.data)
    dataset = data.normalised(data.load(name, wanted.data), wanted.data.normalize)
    torch.manual_seed(wanted.run.seed)
    network = models.create_from_options(wanted.model, len(dataset.classes), dataset.image_shape, device)
    size = min(wanted.data.batch_size or BATCH, len(dataset.train.labels))
    here: dict[str, Any] = {"rank": 0, "world_size": 1, "device": device, "seed": wanted.run.seed}
    pipeline = data.build_pipeline(dataset, wanted.data, wanted.augment, global_batch=size, accumulate=1, **here)
    batch = next(next(pipeline.train(0)).batches)  # the first training batch, as a run would see it
    found = compare(network, batch.images, batch.labels, repeats=own.repeats)
    if own.json:
        content = {"schema": "ddp-train-precision/1", "device": device_name(device)}
        print(json.dumps(content | {"formats": [asdict(measured) for measured in found]}, indent=2))
    else:
        print(f"{device_name(device)}\n{_table(found)}")


if __name__ == "__main__":
    sys.exit(main())
