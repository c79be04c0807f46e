"""The trainer in a share of the GPU's memory: python within_memory.py --gib N [--expect WORDS] [options of the trainer]

torch's allocator refuses what goes beyond. --expect: words that the run must write to stderr, as when it recovers from
memory that has run out; without them the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

import torch

from ddp_train.main import main


class Heard:
    """A stream that keeps what it passes on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text = stream, ""

    def write(self, text: str) -> int:
        """Keep the text and pass it on."""
        self.text += text
        return self.stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def run() -> int:
    """The trainer's exit status; 1 where the expected words have not come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, required=True)
    parser.add_argument("--expect", default="")
    arguments, words = parser.parse_known_args()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.gib * 2**30 / total))
    sys.stderr = heard = Heard(sys.stderr)  # type: ignore[assignment]
    status = main(words)
    print(f"peak: {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB of {arguments.gib} GiB")
    if arguments.expect not in heard.text:
        print(f"error: nothing of {arguments.expect!r} was written", file=sys.stderr)
        return status or 1
    return status


if __name__ == "__main__":
    sys.exit(run())
