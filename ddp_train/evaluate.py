"""`python -m ddp_train.evaluate --checkpoint FILE --data-dir DIR`: evaluate a saved model on a test split.

Exact under torchrun: each image counts once, on any number of ranks. The trainer's own evaluation is in
engine/evaluate.py. Exit status: 0; 2 for a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

if __name__ == "__main__":
    from ddp_core.missing_packages import leave_without

    leave_without("torch", "numpy", "jsonargparse", "yaml")

import torch

from ddp_core.cli import CommandLine, prepare_output
from ddp_core.errors import SharedError, UserError, one_line
from ddp_train.assemble.resolve_options import set_threads
from ddp_train.data.sources.dataset import describe_left_out
from ddp_train.data.sources.samples import Policy
from ddp_train.distributed import process_group
from ddp_train.distributed.process_group import Ranks, together
from ddp_train.engine.evaluate import examine
from ddp_train.evaluation.metrics import as_json, as_text, draw
from ddp_train.evaluation.saved_model import ChangedData, SavedModel, load_split, open_saved_model, test_batches
from ddp_train.evaluation.tta import Tta, describe_tta, views
from ddp_train.optim.precision import Precision

WORST = 24
LARGEST_BATCH = 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a model as the command line says; returns the exit status."""
    prepare_output()
    ranks = Ranks()
    try:
        ranks = Ranks.from_environment()
        arguments = _parse(argv)
        device = process_group.choose_device(arguments.device, ranks)
        set_threads(ranks, device)
        process_group.start(ranks, device)
        _run(arguments, ranks, device)
    except UserError as error:
        if error.speaks if isinstance(error, SharedError) else ranks.is_first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(0.3)  # let the rank that prints exit first, so that no other looks like the cause
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line. Errors: UserError."""
    parser = CommandLine(prog="python -m ddp_train.evaluate", description="Evaluate a saved model on a test split.")
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="best_model.pth, checkpoint-latest.pt, or a run folder")
    add("--data-dir", metavar="DIR", help="folder of the data (default: where the run had them)")
    add(
        "--tta", choices=get_args(Tta), default="none", help="test-time augmentation: probabilities averaged over views"
    )
    add("--tta-below", type=float, metavar="P", help="tta: only images whose highest probability is below P [all]")
    add("--batch-size-per-rank", type=int, default=512, metavar="N", help="images at a time [512]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute [auto]")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="precision of the forward passes [off]")
    add("--pictures", metavar="DIR", help="write confusion_matrix.png and worst_images.png there")
    add("--changed-data", choices=get_args(ChangedData), default="stop", help="test images that have changed [stop]")
    add("--on-bad-sample", choices=get_args(Policy), help="test images that cannot be read (default: as the run did)")
    add("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    if not 1 <= (size := arguments.batch_size_per_rank) <= LARGEST_BATCH:
        raise UserError(f"--batch-size-per-rank takes a number from 1 to {LARGEST_BATCH}, not {size}")
    if arguments.tta_below is not None and not (arguments.tta != "none" and 0 < arguments.tta_below <= 1):
        raise UserError(f"--tta-below takes a probability above 0, beside --tta, not {arguments.tta_below}")
    return arguments


def _run(arguments: argparse.Namespace, ranks: Ranks, device: torch.device) -> None:
    """Evaluate on all ranks; rank 0 prints."""
    saved = together(lambda: _open(arguments, device), ranks)
    dataset = load_split(
        saved,
        arguments.data_dir,
        ranks,
        changed_data=arguments.changed_data,
        on_bad_sample=arguments.on_bad_sample,
    )
    precision = Precision(arguments.amp, device)
    found = examine(
        saved.network,
        test_batches(dataset, saved, ranks, arguments.batch_size_per_rank),
        precision,
        len(dataset.classes),
        views=views(arguments.tta),
        below=math.inf if arguments.tta_below is None else arguments.tta_below,
        worst=WORST if arguments.pictures else 0,
    )
    if not ranks.is_first:
        return
    for note in (*dataset.notes, *describe_left_out(dataset)):
        print(f"note: {one_line(note)}", file=sys.stderr)
    what = {"checkpoint": str(saved.file), "model": saved.config.model.model, "dataset": dataset.name}
    what |= {"tta": arguments.tta, "tta_below": arguments.tta_below}
    if arguments.json:
        document = as_json(found, dataset.classes)
        print(json.dumps({"schema": document["schema"], **what} | document))
    else:
        tta = "" if arguments.tta == "none" else f", {describe_tta(arguments.tta, arguments.tta_below)}"
        where = f"the {dataset.final} split of {dataset.name}"
        print(f"{what['model']} from {saved.file} on {where}: {found.samples:,} images{tta}")
        print("\n".join(as_text(found, dataset.classes)))
    if arguments.pictures:
        for path in draw(found, dataset, Path(arguments.pictures)):
            print(path, file=sys.stderr)


def _open(arguments: argparse.Namespace, device: torch.device) -> SavedModel:
    """Open the saved model and check the options against it. Errors: UserError."""
    if arguments.pictures and not Path(arguments.pictures).is_dir():
        raise UserError(f"--pictures {arguments.pictures}: is not a folder")
    if arguments.amp == "fp16" and device.type != "cuda":
        raise UserError("--amp fp16 needs a GPU; on the CPU use --amp off")
    saved = open_saved_model(arguments.checkpoint, device)
    if arguments.tta != "none" and not saved.facts.flip_ok:
        raise UserError(f"--tta {arguments.tta}: a mirrored image of {saved.facts.name} is not of its class; use none")
    return saved


def program() -> NoReturn:
    """Run `main` as a program, which exits as soon as everything is printed."""
    process_group.leave(main())


if __name__ == "__main__":
    program()
