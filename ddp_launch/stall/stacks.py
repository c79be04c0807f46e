"""The stacks that faulthandler wrote, by thread, and the user's own line in them."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress

from ddp_train.watchdog.python_stacks import FRAME, OWN_BACKWARD, Frame, waits

THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
OURS = "ddp_launch/stall/in_rank/torch_internals.py"
LIBRARIES = ("/site-packages/", "/dist-packages/", f"/lib/python{sys.version_info.major}.", "<")
STANDARD = sysconfig.get_paths()["stdlib"]
DISTRIBUTED = "torch/distributed/"
IMPORTING = "<frozen importlib"
STORE = "torch/distributed/rendezvous.py"
SPAWN = "torch/multiprocessing/spawn.py"
CHILDREN = "multiprocessing/popen_"
WRAPPERS = ("wrapper", "inner", "_fn")
LINE_CHARS = 100

Stacks = dict[int, tuple[Frame, ...]]


def parse(text: str) -> Stacks:
    """The latest dump: thread -> its stack, outermost call first; the main thread last. Our own thread is left out."""
    threads: Stacks = {}
    number = 0
    for line in text.splitlines():
        if head := THREAD.match(line):
            number = int(head[1], 16)
            threads.pop(number, None)
            threads[number] = ()
        elif threads and (found := FRAME.match(line)):
            frame = Frame(found[1], int(found[2]) if found[2].isdigit() else 0, found[3])
            threads[number] = (frame, *threads[number])
    return {
        number: frames for number, frames in threads.items() if not any(frame.file.endswith(OURS) for frame in frames)
    }


def thread_of(stacks: Stacks, preferred: int) -> int:
    """The thread that shows what a rank does: the one that calls its collectives, else the main thread; while that
    waits for a backward function that Python runs in another thread, the latter. 0 without stacks."""
    if preferred in stacks:
        return preferred
    main = next(reversed(stacks), 0)
    if waits([*stacks.get(main, ())]):
        runs = (one for one, frames in stacks.items() if any(frame.file.endswith(OWN_BACKWARD) for frame in frames))
        return next(runs, main)
    return main


def users_line(frames: Sequence[Frame]) -> Frame | None:
    """The innermost call outside libraries and Python itself; else the innermost of all."""
    own = (frame for frame in reversed(frames) if not _library(frame.file))
    return next(own, frames[-1] if frames else None)


def _library(file: str) -> bool:
    """Whether a file belongs to an installed package or to Python."""
    return any(part in file if part != "<" else file.startswith(part) for part in LIBRARIES) or file.startswith(
        STANDARD
    )


def place_of(frames: Sequence[Frame]) -> str:
    """The user's line: `train.py:30 in evaluate: time.sleep(600)`; empty without a stack."""
    if (frame := users_line(frames)) is None:
        return ""
    source = ""
    with suppress(Exception):
        source = linecache.getline(frame.file, frame.line).strip()[:LINE_CHARS]
    where = f"{frame.file}:{frame.line}" + (f" in {frame.function}" if frame.function != "<module>" else "")
    return f"{where}: {source}" if source else where


def kept_by(stacks: Stacks) -> str | None:
    """The place of the thread that the main thread waits for at the end of its program, empty where it is unknown; None
    where the main thread is not waiting there."""
    main = next(reversed(stacks), 0)
    frames = stacks.get(main, ())
    if not frames or frames[0].function != "_shutdown" or not frames[0].file.endswith("/threading.py"):
        return None
    places = (place_of(frames) for number, frames in stacks.items() if number != main)
    return next(filter(None, places), "")


def is_loading(frames: Sequence[Frame]) -> bool:
    """Whether the stack is inside an import."""
    return any(frame.file.startswith(IMPORTING) for frame in frames)


def waits_in(frames: Sequence[Frame]) -> str:
    """The function of torch.distributed in which a rank waits, by its stack; empty where it does not wait."""
    if not waits([*frames]):
        return ""
    calls = [f.function for f in frames if DISTRIBUTED in f.file and f.function not in WRAPPERS]
    return calls[0] if calls else "backward"


def seeks_store(frames: Sequence[Frame]) -> bool:
    """Whether a rank is connecting to torch's store, which it does before it has a process group."""
    return any(frame.file.endswith(STORE) for frame in frames)


def spawned(frames: Sequence[Frame]) -> str:
    """The module with which a rank started the processes that it waits for; empty where it waits for none."""
    if any(frame.file.endswith(SPAWN) for frame in frames):
        return "torch.multiprocessing.spawn"
    return "multiprocessing" if frames and CHILDREN in frames[-1].file else ""
