"""`python -m ddp_launch`, the command `ddp-launch`, and what `launch.py` calls."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn


def program() -> NoReturn:
    """Run the launcher as a program. A signal that arrives while modules are imported ends it without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    from ddp_launch import main

    main.program()


if __name__ == "__main__":
    # `python -m` puts the current folder first, where the user may have modules with the names of this project's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    program()
