"""The trainer with images that stay files, of which some break when everything is ready and nothing was read yet.

BREAK names them, separated by colons, behind what is done: vanish, truncate or overwrite.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ddp_train.assemble import build
from ddp_train.data.sources import image_folder
from ddp_train.main import program

image_folder._MEMORY_FRACTION = 0  # as on a machine with too little memory for the decoded images
ready = build.build


def then_break(*arguments: Any) -> build.Run:
    """The run, and an accident to its files."""
    run = ready(*arguments)
    what, *files = os.environ.get("BREAK", "nothing").split(":")
    if arguments[1].is_first:
        for file in map(Path, files):
            if what == "vanish":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[:60] if what == "truncate" else b"another content")
    if dist.is_initialized():
        dist.barrier()
    return run


build.build = then_break

if __name__ == "__main__":
    sys.exit(program())
