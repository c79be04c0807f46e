"""What a rank of `--scaling` spends its time on: a thread samples the program's stack a hundred times a second.

The Python stack of the thread that trains names the kind of work, from the innermost frame outwards: loading data,
forward, backward, optimizer, communication, or the program's other code. The kernel's scheduler says for how much of
that time the thread ran, waited for a CPU core, or was blocked. Optimizer steps are counted by torch's own hook, those
of the bundled trainer by its heartbeat. Loaded by file (sitecustomize.py), in the Python of the rank.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time

TYPE_CHECKING = False  # that of typing takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

INTERVAL_S = 0.01
WARM_S, WARM_STEPS = 1.0, 3
"""The time before these is not counted: libraries are loaded and kernels chosen in it."""
INPUT, COMMUNICATION, FORWARD, BACKWARD, OPTIMIZER, OTHER = (
    "input",
    "communication",
    "forward",
    "backward",
    "optimizer",
    "other",
)
KINDS = (
    (("torch/distributed/elastic/",), ""),  # its wrapper is around the whole of some programs
    (("torch/utils/data/", "torchdata/", "webdataset/", "nvidia/dali/", "ddp_train/data/"), INPUT),
    (("torch/optim/", "torch/distributed/optim/", "ddp_train/optim/"), OPTIMIZER),
    (("torch/distributed/", "torch/nn/parallel/", "ddp_train/distributed/"), COMMUNICATION),
    (("torch/autograd/", "torch/_tensor.py"), BACKWARD),
    (("torch/nn/",), FORWARD),
)
"""Parts of file names, and the kind of work that the code in these files does."""
ASIDE = ("evaluation", "checkpoint")
"""Phases of the bundled trainer that are not part of a step."""
TRAINER = "ddp_train.distributed.heartbeat"
PLACES = 3


class Observer:
    """The totals since the end of the warm-up. `exposed_ns`, `batch_size`: the functions of torch_internals.py."""

    def __init__(self, exposed_ns: Callable[[Any], float | None], batch_size: Callable[[Any], int]) -> None:
        self._exposed_ns, self._batch_size = exposed_ns, batch_size
        self._thread, self._native = threading.main_thread().ident, os.getpid()
        self._watches_steps = False
        self._optimizer: Any = None
        self._first_ns = self._begun_ns = self._latest_ns = self._aside_ns = 0
        self._steps = self._begun = 0
        self._batches: list[int] = []
        self._wrappers: list[Any] = []
        self._spent: dict[str, list[int]] = {}
        self._places: dict[tuple[str, str], int] = {}

    def begin(self) -> None:
        """Start the thread that samples."""
        _thread.start_new_thread(self._look_on, ())

    def facts(self) -> dict[str, Any]:
        """The observations, in nanoseconds; the times of a kind are its total, blocked, and waiting for a CPU core."""
        places: dict[str, list[tuple[str, int]]] = {}
        for (kind, place), ns in sorted(self._places.copy().items(), key=lambda item: -item[1]):
            if len(places.setdefault(kind, [])) < PLACES:
                places[kind].append((place, ns))
        torch = sys.modules.get("torch")
        return {
            "steps": self._steps - self._begun if self._begun_ns else 0,
            "ns": max(0, self._latest_ns - self._begun_ns - self._aside_ns) if self._begun_ns else 0,
            "spent_ns": {kind: list(ns) for kind, ns in self._spent.copy().items()},
            "places": places,
            "batches": self._batches,
            "threads": torch.get_num_threads() if torch else 0,
            "cuda": bool(torch and torch.cuda.is_initialized()),
            "exposed_ns": sum(self._exposed_ns(one) or 0.0 for one in self._wrappers),
        }

    def _look_on(self) -> None:
        """The thread's work: at each interval add the time that passed to what the observed thread is doing."""
        before_ns, before = time.monotonic_ns(), _scheduled(self._native)
        while True:
            time.sleep(INTERVAL_S)
            now_ns, now = time.monotonic_ns(), _scheduled(self._native)
            if not self._watches_steps:
                self._watch_steps()
            phase = self._trainers_phase(now_ns)
            if self._begun_ns and self._begun_ns <= before_ns:
                took = now_ns - before_ns
                ran, queued = (min(new - old, took) for new, old in zip(now, before))  # noqa: B905 (Python 3.8)
                if phase in ASIDE:
                    self._aside_ns += took
                else:
                    self._add(took, took - min(ran + queued, took), queued)
            before_ns, before = now_ns, now

    def _add(self, took: int, blocked: int, queued: int) -> None:
        """Add an interval to what the observed thread is doing now; all times in ns."""
        # This thread holds Python's lock, so the observed thread's frames do not change meanwhile.
        kind, place = _kind(sys._current_frames().get(self._thread))  # type: ignore[arg-type]
        spent = self._spent.setdefault(kind, [0, 0, 0])
        for index, ns in enumerate((took, blocked, queued)):
            spent[index] += ns
        self._places[kind, place] = self._places.get((kind, place), 0) + took

    def _watch_steps(self) -> None:
        """Register for optimizer steps once torch is loaded; the bundled trainer counts its own steps."""
        if TRAINER in sys.modules:
            self._watches_steps = True
            return
        module = sys.modules.get("torch.optim")
        if module is None or getattr(module.__spec__, "_initializing", False):
            return
        self._watches_steps = True
        register = getattr(sys.modules.get("torch.optim.optimizer"), "register_optimizer_step_post_hook", None)
        if register is not None:
            register(self._stepped)

    def _stepped(self, optimizer: object, *_: object) -> None:
        """torch's hook: an optimizer made a step. With several optimizers, only the first one's steps count."""
        if TRAINER in sys.modules:
            return
        if self._optimizer is None:
            self._optimizer = optimizer
            self._thread, self._native = threading.get_ident(), threading.get_native_id()
        if self._optimizer is optimizer:
            self._count(self._steps + 1, time.monotonic_ns())

    def _trainers_phase(self, now_ns: int) -> str:
        """Count the bundled trainer's steps; returns its present phase, empty for another program."""
        heart = getattr(sys.modules.get(TRAINER), "heartbeat", None)
        if heart is None:
            return ""
        if heart.step >= 0 and (steps := heart.step - heart.first_step) != self._steps:
            self._count(steps, now_ns)
        return str(heart.phase)

    def _count(self, steps: int, now_ns: int) -> None:
        """Note the steps so far; after the warm-up the measurement begins."""
        self._steps, self._latest_ns = steps, now_ns
        self._first_ns = self._first_ns or now_ns
        if not self._begun_ns and steps >= WARM_STEPS and now_ns - self._first_ns >= WARM_S * 1e9:
            self._take_stock()
            self._begun, self._begun_ns = steps, time.monotonic_ns()

    def _take_stock(self) -> None:
        """Read the loaders' batch sizes, and start DistributedDataParallel's own statistics."""
        loaders = _objects("torch.utils.data.dataloader", "DataLoader", "_BaseDataLoaderIter")
        self._batches = sorted({size for one in loaders if (size := self._batch_size(one))})
        self._wrappers = _objects("torch.nn.parallel", "DistributedDataParallel")
        for wrapper in self._wrappers:
            self._exposed_ns(wrapper)


def _kind(frame: FrameType | None) -> tuple[str, str]:
    """A stack's kind of work, and its place: the innermost line outside of Python and installed packages."""
    kind, place = "", ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not kind:
            kind = next((kind for parts, kind in KINDS if any(part in name for part in parts)), "")
        if not place and not name.startswith((sys.prefix, sys.base_prefix, "<")):
            place = "{}:{} ({})".format(os.path.basename(name), frame.f_lineno, frame.f_code.co_name)  # noqa: PTH119, UP032
        if kind and place:
            break
        frame = frame.f_back
    return kind or OTHER, place


def _scheduled(thread: int) -> tuple[int, int]:
    """How long a thread has run, and how long it waited for a CPU core (schedstat, see proc(5)), in nanoseconds."""
    try:
        with open("/proc/self/task/%d/schedstat" % thread) as file:  # noqa: PTH123, UP031
            ran, waited, _ = file.read().split()
        return int(ran), int(waited)
    except (OSError, ValueError):
        return time.monotonic_ns(), 0  # as if it had always run


def _objects(module: str, *names: str) -> list[Any]:
    """The program's objects of these classes."""
    import gc

    kinds = tuple(kind for name in names if (kind := getattr(sys.modules.get(module), name, None)))
    return [one for one in gc.get_objects() if issubclass(type(one), kinds)]
