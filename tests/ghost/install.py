"""Puts the pieces into torch, and takes them out again."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import kernels, runtime, tensors
from .collectives import Collectives
from .memory import CPU, Gpu, allocation_of
from .operations import Operations
from .waits import Waits

_MISSING = object()


class Patches:
    """What was put in the place of something, to be undone in the reverse order."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """`value` for what `owner` itself, and not only its base, has by this name."""
        self._undo.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, value)

    def undo(self) -> None:
        while self._undo:
            owner, name, value = self._undo.pop()
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


class Ghost:
    """The GPUs of this process, and what was seen of its use of them."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = [*gpus]
        self.current = 0
        self.waits = Waits()
        self.patches = Patches()
        self.collectives = Collectives(self)
        self.default_device: torch.device | None = None
        self._modes = contextlib.ExitStack()

    @property
    def here(self) -> torch.device:
        """The current device."""
        return torch.device("cuda", self.current)

    @property
    def gpu(self) -> Gpu:
        return self.gpus[self.current]

    def device(self, wanted: Any) -> torch.device | None:
        """A device in any notation, with its index. Errors: RuntimeError for a GPU that is not there."""
        if wanted is None:
            return None
        device = torch.device("cuda", wanted) if isinstance(wanted, int) else torch.device(wanted)
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= len(self.gpus):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def install(self) -> None:
        """Put everything in place, for this thread and those that start later."""
        runtime.patch(self)
        tensors.patch(self)
        kernels.patch(self)
        self.collectives.patch()
        run = threading.Thread.run

        def run_with_rules(thread: threading.Thread) -> None:
            with Operations(self):
                run(thread)

        self.patches.replace(threading.Thread, "run", run_with_rules)
        self._modes.enter_context(Operations(self))

    def remove(self) -> None:
        """Leave torch as it was."""
        self._modes.close()
        self.patches.undo()

    def wait(self, kind: str, device: torch.device) -> None:
        """The host waits for all that was given to the device."""
        self.waits.note(kind)
        self.gpus[device.index].done = self.gpus[device.index].queued

    def answered(self) -> None:
        """Return where the GPU answers; where it does not, never."""
        if self.waits.stuck:
            self.waits.note("a GPU that does not answer")

    def crossing(self, target: Tensor, source: Tensor, at_once: bool) -> None:
        """A copy between host and device; at_once: the caller does not want to wait."""
        to, of = allocation_of(target), allocation_of(source)
        on_gpu, on_host, way = (to, of, "to") if to is not None and to.gpu is not None else (of, to, "from")
        assert on_gpu is not None and on_gpu.gpu is not None
        pinned = on_host is not None and on_host.pinned
        on_gpu.gpu.queued += 1
        if not pinned:
            self.wait(f"a copy {way} the device, with memory that is not pinned", on_gpu.device)
        elif not at_once:
            self.wait(f"a copy {way} the device that is waited for", on_gpu.device)
        elif way == "from" and on_host is not None:
            on_host.ready, on_host.writer = on_gpu.gpu.queued, on_gpu.gpu
        if way == "to":
            self.must_be_done(source)

    def must_be_done(self, tensor: Tensor) -> None:
        """Pinned memory that the GPU still writes to holds nothing yet. Errors: RuntimeError."""
        held = allocation_of(tensor)
        if held is not None and held.ready and held.writer is not None and held.ready > held.writer.done:
            raise RuntimeError("ghost: read on the host before the copy from the GPU is done")

    @contextlib.contextmanager
    def on(self, device: Any) -> Iterator[None]:
        """torch.cuda.device: another current device for a while."""
        before, found = self.current, self.device(device)
        self.current = before if found is None else found.index
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done here is no operation of the device."""
        with torch.utils._python_dispatch._disable_current_modes():
            yield

    def quietly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which on a GPU does not wait."""

        @functools.wraps(function)
        def quiet(*args: Any, **options: Any) -> Any:
            self.waits.muted += 1
            try:
                return function(*args, **options)
            finally:
                self.waits.muted -= 1

        return quiet


_installed: list[Ghost] = []


def current() -> Ghost:
    """The ghost of this process. Errors: IndexError where none is installed."""
    return _installed[-1]


@contextlib.contextmanager
def cuda(*gpus: Gpu) -> Iterator[Ghost]:
    """GPUs for a while, in this process; without any named, one of 16 GiB."""
    ghost = Ghost(*(gpus or (Gpu(),)))
    ghost.install()
    _installed.append(ghost)
    try:
        yield ghost
    finally:
        _installed.pop()
        ghost.remove()


def for_ever(*gpus: Gpu) -> Ghost:
    """GPUs until this process ends."""
    ghost = Ghost(*gpus)
    ghost.install()
    _installed.append(ghost)
    return ghost


__all__ = ["CPU", "Ghost", "cuda", "current", "for_ever"]
