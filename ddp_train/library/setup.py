"""The process of a user's own loop: device, process group, folder, signals and watchdog, and how it all ends."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

import ddp_train
from ddp_core.errors import SharedError, Stopped, TrainingDiverged, UserError
from ddp_core.process import end_process
from ddp_train.assemble.resolve_options import set_threads
from ddp_train.config.validation import resume_target
from ddp_train.distributed import process_group
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks, on_first_rank
from ddp_train.engine.stop_signals import STATUS, StopSignals
from ddp_train.library.model import Joined
from ddp_train.observers.records import Observer
from ddp_train.process_end import end_after_traceback, end_with, report
from ddp_train.process_setup import keep_private
from ddp_train.report.write import write_page_if_possible
from ddp_train.run_folder.claim import claim_folder, is_restart
from ddp_train.run_folder.lock import RunLock
from ddp_train.watchdog import start as watchdog

HERE = str(Path(ddp_train.__file__).parent)


class Process:
    """All that surrounds the loop on this rank. `resume`: as in Run."""

    def __init__(
        self, out_dir: str | Path | None, resume: str | Path | None, device: str, step_timeout: float | None
    ) -> None:
        self._out_dir = None if out_dir is None else str(out_dir)
        self._resume = None if resume is None else str(resume)
        self._wanted, self._step_timeout = device, step_timeout
        self.started = False
        self.stop = StopSignals()
        self.observers: Sequence[Observer] = ()
        self.joined: list[Joined] = []
        self.notes: tuple[str, ...] = ()
        self._lock = RunLock()
        self._stack = ExitStack()
        self._handlers: dict[int, Any] = {}
        self._owns_group = self._failed = False

    def start(self, seed: int) -> None:
        """Prepare everything that needs no network and no data; all ranks alike. Errors: UserError."""
        if self.started:
            raise UserError("a Run is entered once: with Run(...) as run")
        keep_private(os.environ)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in STATUS}
            self.stop.install()
            self._stack.enter_context(self.stop.raising())
        self.ranks = Ranks.from_environment()
        heartbeat.beat("setup")
        if problem := watchdog.start(self.ranks, self._step_timeout):
            self.notes = (problem,)
        if self._wanted not in ("auto", "cpu", "cuda"):
            raise UserError(f"Run(device={self._wanted!r}): it takes auto, cpu or cuda")
        self.device = process_group.choose_device(self._wanted, self.ranks)
        set_threads(self.ranks, self.device)
        if not dist.is_initialized():
            # This module's functions keep the process group that exists when they are defined, as a default argument.
            # torch.compile and the optimizers import it: after the start it would keep this group's threads alive.
            importlib.import_module("torch.distributed.nn")
            process_group.start(self.ranks, self.device)
            self._owns_group = True
        self.flag_exchange = FlagExchange(self.ranks)
        resume = "auto" if self._resume is None and is_restart() else self._resume
        name = Path(sys.argv[0]).stem or "run"
        path, moved = on_first_rank(
            lambda: claim_folder(self._out_dir, name, self._lock, resume=resume, restarted=is_restart()), self.ranks
        )
        self.folder = path
        self.source = on_first_rank(lambda: resume_target(resume, str(path)), self.ranks)
        self.notes = (*self.notes, *([] if moved is None else [moved]))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.started = True

    @contextmanager
    def failing(self) -> Iterator[None]:
        """An error inside ends the process as an error in the `with Run(...)` block does."""
        try:
            yield
        except BaseException as error:
            self.close(error)
            raise

    def close(self, error: BaseException | None) -> None:
        """Restore everything as it was; after an error end the process, unless the caller is to see the error."""
        together = isinstance(error, SharedError | TrainingDiverged) or (isinstance(error, Stopped) and error.together)
        for observer in self.observers:
            observer.close() if error is None or together else observer.leave()
        if self.observers and (error is None or together):
            write_page_if_possible(self.folder)
        self.observers = ()
        if error is None:
            heartbeat.beat("done")
            process_group.wait_for_all()
        elif not isinstance(error, SystemExit | GeneratorExit):
            self._fail(error)
        self._leave()

    def _leave(self) -> None:
        self._lock.release()
        if not self._failed:
            self._leave_group()
        self._stack.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self.started = False

    def _leave_group(self) -> None:
        """Drop all references to the group: its threads live as long, and one left at Python's end may abort it."""
        for joined in self.joined:
            joined.leave()
        if hasattr(self, "flag_exchange"):
            self.flag_exchange.group = None
        if self._owns_group:
            process_group.stop()

    def _fail(self, error: BaseException) -> None:
        """End the process because of `error`; returns only where Python is to show the error itself."""
        alone = not hasattr(self, "ranks") or self.ranks.world_size == 1
        if isinstance(error, UserError):
            error = _placed(error)
        known = isinstance(error, UserError | TrainingDiverged | Stopped)
        if _interactive():
            return
        if known and alone:
            self._end_alone(error)
        if known:
            status = end_with(error, saves=True, leave=end_process)
            self._leave()
            raise SystemExit(status) from None
        if not alone:
            # The other ranks wait for this one in a collective, and Python's own end, after the traceback, would too.
            heartbeat.fail()
            if place := heartbeat.place:
                error.add_note(f"rank {self.ranks.rank} was at {place}")
            report(error, 1)
            self._failed = True
            end_after_traceback(self._leave_group)

    def _end_alone(self, error: BaseException) -> NoReturn:
        status = error.status if isinstance(error, Stopped | UserError) else 1
        heartbeat.withdraw()
        report(error, status, str(error))
        words = str(error)
        if isinstance(error, Stopped) and not error.together:
            words += " before the first step: there is nothing to save" if heartbeat.step < 0 else ""
        print(words if isinstance(error, Stopped) else f"error: {words}", file=sys.stderr, flush=True)
        self._leave()
        raise SystemExit(status) from None


def _interactive() -> bool:
    """Whether this is a session that outlives an error: Python's own prompt, IPython or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return hasattr(sys, "ps1") or (shell is not None and shell() is not None)


def _placed(error: UserError) -> UserError:
    """The error with the place of the user's own line that led to it, and with this library's names for options."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(HERE) and "<frozen" not in frame.filename]
    words = str(error).replace("--out-dir ", "out_dir ").replace("--out-dir", "out_dir")
    words = words.replace("--device ", "Run(device=...) ").replace("--wandb", "Run(wandb=...)")
    if own and "site-packages" not in own[-1].filename:
        words += f" ({Path(own[-1].filename).name}:{own[-1].lineno})"
    if isinstance(error, SharedError):
        return SharedError(words, speaks=error.speaks)
    return UserError(words, error.remedy)
