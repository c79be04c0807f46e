#!/usr/bin/env python3
"""The front door: one command that plans a distributed run for this machine and runs it.

    python launch.py --auto                    the bundled trainer on the best GPUs
    python launch.py --auto train.py --lr 0.1  your script
    python launch.py --auto --dry-run          the plan alone

The launcher itself is ddp_launch; reading begins in ddp_launch/main.py.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (what many a system still calls python3)
    print(f"error: Python 3.11 or newer is needed, and {sys.executable} is older: bash scripts/run.sh", file=sys.stderr)
    sys.exit(2)

from ddp_launch.__main__ import program

if __name__ == "__main__":
    program()
