"""A rank in trouble, as a technique: `--technique tests.faults.trouble:make`, told by the variable TROUBLE.

TROUBLE is a list of {"kind", "rank", "step"}, one for each attempt of the run: in its `step`-th step (from 1) the
rank does `kind`, within the network's forward pass. When that was stands in the file trouble-A, A the attempt's number.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ddp_train.technique import Context, Moment, Technique


def sleep() -> None:
    """Without an end."""
    time.sleep(3600)


def hold() -> None:
    """The same, with Python's lock held: no other thread of this process runs."""
    ctypes.PyDLL(None).sleep(3600)


def spin() -> None:
    """Without an end, and busy."""
    while True:
        pass


def fail() -> None:
    """An error of its own."""
    raise ValueError("the true cause")


KINDS: dict[str, Callable[[], object]] = {
    "sleep": sleep,
    "hold": hold,
    "spin": spin,
    "raise": fail,
    "exit": lambda: os._exit(0),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "ready": lambda: None,
}


def make(context: Context) -> Technique:
    """Trouble for the rank whose turn it is; nothing for the others."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    told = json.loads(os.environ["TROUBLE"])
    plan = told[attempt] if attempt < len(told) else None
    if plan is None or plan["rank"] != context.ranks.rank:
        return Technique(name="trouble")
    done = 0

    def after(moment: Moment) -> None:
        nonlocal done
        done += 1

    def before_forward(network: nn.Module, inputs: object) -> None:
        if network.training and done == plan["step"] - 1:
            note(f"trouble-{attempt}")
            KINDS[plan["kind"]]()

    def edit(network: nn.Module) -> nn.Module:
        network.register_forward_pre_hook(before_forward)
        return network

    return Technique(name="trouble", edit=edit, after_step=after)


def note(name: str) -> None:
    """Say when the trouble begins, and whose it is."""
    hidden = Path(f".{name}")
    hidden.write_text(json.dumps({"at": time.monotonic(), "pid": os.getpid()}))
    hidden.rename(name)
