"""`python -m ddp_train.export FILE -o model.pt2`: export a saved model. Exit status: 0; 2 for a user's mistake.

A .pt2 file is a torch.export program; a .onnx file is for other runtimes (needs the packages onnx and onnxscript). Both
take normalised float32 images [n, C, H, W] and return logits [n, classes]. Nothing is written unless the exported model
reproduces the network's own logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Export a model as the command line says; returns the exit status."""
    return exit_status(lambda: _export(_parse(argv)))


def _export(arguments: argparse.Namespace) -> None:
    """Write the file and print what was written."""
    import torch

    from ddp_train.evaluation.exporting import export
    from ddp_train.evaluation.saved_model import open_saved_model

    print(export(open_saved_model(arguments.file, torch.device("cpu")), arguments.output))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line. Errors: UserError."""
    parser = CommandLine(prog="python -m ddp_train.export", description="Write a model for torch.export or ONNX.")
    parser.add_argument("file", metavar="FILE", help="best_model.pth, checkpoint-latest.pt, or a run folder")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="model.pt2 (torch.export) or model.onnx")
    arguments = parser.parse_args(argv)
    if not arguments.output.endswith((".pt2", ".onnx")):
        raise UserError(f"--output takes a name that ends in .pt2 or .onnx, not {arguments.output!r}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
