"""The trainer with image files that take for ever to decode, until a file "go" is in the working folder.

A process that waits for them leaves a file "decoding-" and its number there.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddp_train.data.sources import decode
from ddp_train.main import program

at_once = decode.fit


def slowly(*arguments: Any) -> np.ndarray:
    """The image, when its time has come."""
    Path(f"decoding-{os.getpid()}").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return at_once(*arguments)


decode.fit = slowly

if __name__ == "__main__":
    sys.exit(program())
