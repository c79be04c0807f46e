"""The trainer with image files that take for ever to read, until a file "go" is in the working folder.

A process that waits for them leaves a file "decoding-" and its number there.
"""

import os
import sys
import time
from pathlib import Path

from ddp_train.data import decode
from ddp_train.main import program

at_once = decode._content


def slowly(*arguments: object) -> bytes:
    """The content, when its time has come."""
    Path(f"decoding-{os.getpid()}").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return at_once(*arguments)  # type: ignore[arg-type]


decode._content = slowly  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(program())
