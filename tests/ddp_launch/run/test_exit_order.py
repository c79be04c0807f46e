"""In which order the ranks ended."""

from __future__ import annotations

import os
import random
import subprocess
from typing import Any

from ddp_launch.run.exit_order import Endings

TWELVE = """
import os, pathlib, time
gone = pathlib.Path("gone")
if os.environ["RANK"] == "11":
    while len(list(pathlib.Path().glob("here-*"))) < 11:
        time.sleep(0.01)
    gone.touch()
    raise ValueError("the cause")
pathlib.Path("here-" + os.environ["RANK"]).touch()
while not gone.exists():
    time.sleep(0.001)
time.sleep(0.15)
raise RuntimeError("Connection closed by peer [127.0.0.1]:4242")
"""


def test_ends_that_follow_at_once_are_told_apart() -> None:
    """Each as soon as the kernel has seen the one before, in no order of the ranks."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(12)]
    endings = Endings({rank: child.pid for rank, child in enumerate(children)})
    order = random.Random(1).sample(range(12), 12)
    for rank in order:
        children[rank].kill()
        while os.waitid(os.P_PID, children[rank].pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            pass
    for child in children:
        child.wait()
    ended = endings.ended_ms(range(12))
    assert sorted(ended, key=ended.__getitem__) == order
    assert len(set(ended.values())) == 12


def test_first_of_twelve_and_its_victims(launcher: Any) -> None:
    """The last rank fails of itself; the others, which know nothing of torch, on the broken connection 150 ms later."""
    done = launcher.run("--cpu", "--nproc", "12", str(launcher.script(TWELVE)))
    assert done.returncode == 1
    summary = done.stderr[done.stderr.index("rank 11 failed first") :]
    assert "ValueError: the cause" in summary
    assert "ranks 0 to 10: lost the connection" in summary
