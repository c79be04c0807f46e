"""Checkpoints written beside the training: the training thread pays for a copy in host memory, a thread for the rest.

At most one write is under way. The two newest good generations stay on the disk (see format.py).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint.values import checked_copy, dense
from ddp_train.config.validation import PREVIOUS
from ddp_train.distributed.heartbeat import heartbeat

GIVE_UP_AFTER = 3
"""Failed writes in a row. Fewer, and a disk that is full for a minute would end a run of days."""


class CheckpointWriter:
    """Writes the checkpoints of one run to `path`; the one before stays beside it as checkpoint-previous.pt.

    `skipped`: periodic checkpoints left out because one was under way. `written`: those on the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(PREVIOUS)
        self.skipped = 0
        self.written = 0
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._failure = ""
        self._error: BaseException | None = None
        self._kept: bool | None = None

    def save(
        self,
        state: Mapping[str, object],
        *,
        step: int,
        periodic: bool = False,
        first: Mapping[Path, Mapping[str, object]] | None = None,
    ) -> bool:
        """Copy `state` and start to write it as the checkpoint after `step` optimizer steps.

        Waits for a write that is under way; a `periodic` one is skipped instead. `first`: state_dicts by file
        (the best model), which are on the disk before the checkpoint that speaks of them. False: skipped.
        Raises TypeError for a value that could not be loaded again, and what went wrong in an earlier write:
        UserError from the third failure in a row on.
        """
        if periodic and self._thread is not None and self._thread.is_alive():
            self.skipped += 1
            return False
        self.wait()
        known: dict[object, torch.Tensor] = {}
        files = {path: copy_to_host(content, "state_dict", known) for path, content in (first or {}).items()}
        content = copy_to_host(state, "state", known)
        self._thread = threading.Thread(target=self._run, args=(content, step, files), name="checkpoint")
        self._thread.start()
        return True

    def wait(self) -> None:
        """Return once nothing is under way. Raises what ended a write, as `save` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """As `wait`. Raises UserError also when the last checkpoint that was handed over is not on the disk."""
        self.wait()
        if self._failures:
            raise UserError(f"{self.path} is not of the run's last step: {self._failure}")

    def _run(self, state: Mapping[str, object], step: int, first: Mapping[Path, Mapping[str, object]]) -> None:
        """A thread's work: write the files; count failures and keep the error."""
        try:
            for path, content in first.items():
                checkpoint_format.save_state_dict(path, content)
            self._write(state, step)
        except checkpoint_format.NotFinite as error:
            self._error = error  # another attempt would write the same
        except UserError as error:
            self._failures, self._failure = self._failures + 1, str(error)
            if self._failures >= GIVE_UP_AFTER:
                self._error = UserError(f"{error}; given up after {self._failures} failures in a row")
            else:
                again = f"{self._failures} of {GIVE_UP_AFTER} failures in a row"
                print(f"warning: no checkpoint of step {step} ({again}): {error}", file=sys.stderr, flush=True)
        except BaseException as error:  # raised again in the training thread
            self._error = error
        else:
            self._failures = 0
            self.written += 1

    def _write(self, state: Mapping[str, object], step: int) -> None:
        """Write the checkpoint; the previous one is kept if it belongs to this run."""
        if self._kept is None:
            # What an earlier run left: kept where it is good and this run resumes from it.
            found = checkpoint_format.step_of(self.path)
            self._kept = found is not None and found <= step
        checkpoint_format.save(self.path, state, step=step, keep=self.previous if self._kept else None)
        if not self._kept and (checkpoint_format.step_of(self.previous) or 0) > step:
            self.previous.unlink(missing_ok=True)  # of a run that this one does not continue
        self._kept = True


def copy_to_host(
    state: Mapping[str, object], where: str = "state", known: dict[object, torch.Tensor] | None = None
) -> dict[str, object]:
    """`state` with every tensor copied to host memory, complete on return; containers are new ones too.

    known: the copies by place, which several calls may share: what is the same memory in two places is one copy in
    both. Raises TypeError for a value that a checkpoint cannot hold.
    """
    copies = {} if known is None else known
    devices: set[torch.device] = set()

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place in copies and tensor.numel():
            return copies[place]
        source = dense(tensor.detach())
        if source.device.type == "cuda":
            devices.add(source.device)
            # Pinned, so that the device copies by itself; torch keeps the memory for the next time.
            host = torch.empty_like(source, device="cpu", pin_memory=True)
            copies[place] = host.copy_(source, non_blocking=True)
        else:
            copies[place] = source.to("cpu", copy=True)
        return copies[place]

    copied = checked_copy(state, where, copy)
    for device in devices:
        with heartbeat.during("device"):
            torch.cuda.current_stream(device).synchronize()
    return copied
