"""What happens to a rank in the middle of a step, as a technique of its own: `--technique tests.faults.accident:plan`.

The environment variable ACCIDENTS names a JSON file: a list of {"rank", "step", "what", ...}; each happens once in a
run, however often it is started again: the rank leaves a file beside the list before it acts.

    kill       SIGKILL to itself                    term, int, stop   that signal to itself
    launcher   SIGKILL to the launcher              exit              exit(0)
    all        SIGKILL to the launcher and all its processes
    raise      an exception                         sleep             for an hour
    wait       until a signal that ends the run has come; the file "waiting" beside the list says that it waits
    fill       /dev/shm is filled up
    nan        the images of this step are not finite
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_train.engine.stop_signals import STATUS
from ddp_train.technique import Context, Moment, Technique
from tests.ddp_launch.conftest import MARK

VARIABLE = "ACCIDENTS"
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "stop": signal.SIGSTOP}


def plan(context: Context) -> Technique:
    """Acts before the forward pass of the step, or, with "after", behind the optimizer's step."""
    file = Path(os.environ[VARIABLE])
    mine = [one for one in json.loads(file.read_text()) if one["rank"] == context.ranks.rank]

    def at(moment: Moment, *, after: bool) -> list[dict[str, Any]]:
        now = [one for one in mine if one["step"] == moment.step and bool(one.get("after")) == after]
        return [one for one in now if _first_time(file, one)]

    def batch(images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        for one in at(moment, after=False):
            if one["what"] == "nan":
                images = images * torch.nan
            else:
                happen(one["what"], file)
        return images, targets

    def after_step(moment: Moment) -> None:
        for one in at(moment, after=True):
            happen(one["what"], file)

    return Technique(name="accident", batch=batch, after_step=after_step)


def happen(what: str, file: Path) -> None:
    """Do it now."""
    if what in SIGNALS:
        os.kill(os.getpid(), SIGNALS[what])
    elif what in ("launcher", "all"):
        launcher = int((file.parent / "launcher.pid").read_text())
        os.kill(launcher, signal.SIGKILL)
        if what == "all":
            for pid in marked(os.environ[MARK]):
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the kernel ends this rank with its launcher
    elif what == "exit":
        os._exit(0)
    elif what == "raise":
        raise RuntimeError("this rank was told to fail")
    elif what == "sleep":
        time.sleep(3600)
    elif what == "wait":
        listen, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell)
        (file.parent / "waiting").touch()
        while os.read(listen, 1)[0] not in STATUS:
            pass
    elif what == "fill":
        with suppress(OSError), open("/dev/shm/filler", "wb", buffering=0) as filler:  # noqa: PTH123
            while True:
                filler.write(bytes(4096))
    else:
        raise ValueError(what)


def marked(mark: str) -> list[int]:
    """The processes whose environment carries `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _first_time(file: Path, one: dict[str, Any]) -> bool:
    """Whether it has not happened yet in this run; from now on it has."""
    name = "-".join(str(one[key]) for key in ("rank", "step", "what"))
    try:
        descriptor = os.open(file.parent / f"happened-{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.close(descriptor)
    return True
