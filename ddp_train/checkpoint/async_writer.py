"""Checkpoints written in the background: the training thread only copies to host memory, another thread writes.

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
"""Failed writes in a row that end the run. With fewer, a disk that is full for a minute would end a run of days."""


class CheckpointWriter:
    """Writes the checkpoints of one run to `path`; the previous one stays beside it as checkpoint-previous.pt.

    `skipped`: periodic checkpoints left out while another was being written. `written`: checkpoints written to disk.
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
        self._missing: Mapping[Path, Mapping[str, object]] = {}
        """Files of a write that failed: the next checkpoint refers to them, too."""

    def save(
        self,
        state: Mapping[str, object],
        *,
        step: int,
        periodic: bool = False,
        first: Mapping[Path, Mapping[str, object]] | None = None,
    ) -> bool:
        """Copy `state` and start to write it as the checkpoint after `step` optimizer steps.

        Waits for a write that is under way; a `periodic` checkpoint is skipped instead, and False is returned.
        `first`: state_dicts by file (the best model), written before the checkpoint that refers to them.
        Raises TypeError for a value that could not be loaded again, and the error of an earlier write: UserError
        from the third failure in a row on.
        """
        if periodic and self._thread is not None and self._thread.is_alive():
            self.skipped += 1
            return False
        self.wait()
        known: dict[object, torch.Tensor] = {}
        files = dict(self._missing)
        files |= {path: copy_to_host(content, "state_dict", known) for path, content in (first or {}).items()}
        content = copy_to_host(state, "state", known)
        self._thread = threading.Thread(target=self._run, args=(content, step, files), name="checkpoint")
        self._thread.start()
        return True

    def wait(self) -> None:
        """Return once no write is under way. Raises the error of an earlier write, as `save` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """As `wait`; also raises UserError when the last checkpoint that was passed to `save` is not on the disk."""
        self.wait()
        if self._failures:
            raise UserError(f"{self.path} is not of the run's last step: {self._failure}")

    def _run(self, state: Mapping[str, object], step: int, first: Mapping[Path, Mapping[str, object]]) -> None:
        """The thread's function: write the files; count failures and keep the error."""
        try:
            for path, content in first.items():
                checkpoint_format.save_state_dict(path, content)
            self._write(state, step)
        except checkpoint_format.NotFinite as error:
            self._error = error  # another attempt would write the same
        except UserError as error:
            self._missing = first
            self._failures, self._failure = self._failures + 1, str(error)
            if self._failures >= GIVE_UP_AFTER:
                self._error = UserError(f"{error}; given up after {self._failures} failures in a row")
            else:
                again = f"{self._failures} of {GIVE_UP_AFTER} failures in a row"
                print(f"warning: no checkpoint of step {step} ({again}): {error}", file=sys.stderr, flush=True)
        except BaseException as error:  # raised again in the training thread
            self._error = error
        else:
            self._failures, self._missing = 0, {}
            self.written += 1

    def _write(self, state: Mapping[str, object], step: int) -> None:
        """Write the checkpoint; the previous one is kept if it belongs to this run."""
        if self._kept is None:
            # A checkpoint of an earlier run is kept if it is good and not ahead of this run, which may continue it.
            found = checkpoint_format.step_of(self.path)
            self._kept = found is not None and found <= step
        checkpoint_format.save(self.path, state, step=step, keep=self.previous if self._kept else None)
        if not self._kept and (checkpoint_format.step_of(self.previous) or 0) > step:
            self.previous.unlink(missing_ok=True)  # it belongs to a run that this one does not continue
        self._kept = True


def copy_to_host(
    state: Mapping[str, object], where: str = "state", known: dict[object, torch.Tensor] | None = None
) -> dict[str, object]:
    """`state` with every tensor copied to host memory, complete on return; containers are new ones too.

    known: the copies by memory location, which several calls may share: tensors on the same memory share one copy.
    Raises TypeError for a value that a checkpoint cannot hold.
    """
    copies = {} if known is None else known
    devices: set[torch.device] = set()

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        """A copy in host memory; copies from a GPU are complete after its stream is synchronized."""
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place in copies and tensor.numel():
            return copies[place]
        source = dense(tensor.detach())
        if source.device.type == "cuda":
            devices.add(source.device)
            # Pinned memory lets the device copy asynchronously; torch caches it for the next checkpoint.
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
