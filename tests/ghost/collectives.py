"""NCCL by its name, computed by gloo: which tensors it takes, and what costs a wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from .memory import HOST, allocation_of
from .operations import tensors_in
from .waits import step

if TYPE_CHECKING:
    from .install import Ghost


class Collectives:
    """The process groups that are called NCCL's."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost
        self._nccl: set[str] = set()
        """Their names."""
        self.issued = 0
        """Collectives that this process has given to NCCL."""
        self.stuck_from: int | None = None
        """From this step of the run on, counted from 0, the GPU does not answer any more once NCCL was called."""

    def patch(self) -> None:
        replace = self._ghost.patches.replace
        init, new_group, backend = dist.init_process_group, dist.new_group, dist.get_backend
        object_device = c10d._get_object_coll_device

        def init_process_group(backend: str | None = None, **options: Any) -> None:
            device = options.pop("device_id", None)
            nccl = "nccl" in (backend or ("nccl" if device is not None else ""))
            init("gloo" if nccl else backend, **options)
            if nccl:
                self._nccl.add(c10d._get_default_group().group_name)

        def make_group(ranks: Any = None, timeout: Any = None, backend: str | None = None, **options: Any) -> Any:
            nccl = "nccl" in (backend or dist.get_backend())
            group = new_group(ranks, timeout, "gloo" if nccl else backend, **options)
            if nccl:
                self._nccl.add(group.group_name)
            return group

        def get_backend(group: Any = None) -> str:
            return "nccl" if self.is_nccl(group) else backend(group)

        def device_of_objects(group: Any = None) -> str:
            return "cuda" if self.is_nccl(group) else object_device(group)

        for module in (dist, c10d):
            replace(module, "init_process_group", init_process_group)
            replace(module, "new_group", make_group)
            replace(module, "get_backend", get_backend)
        replace(dist, "is_nccl_available", lambda: True)
        replace(c10d, "_get_object_coll_device", device_of_objects)

    def is_nccl(self, group: Any = None) -> bool:
        if not dist.is_initialized():
            return False
        return (group or c10d._get_default_group()).group_name in self._nccl

    def check(self, name: str, args: tuple[Any, ...]) -> None:
        """One collective, as the dispatcher sees it. Errors: RuntimeError for a tensor where it cannot be used."""
        group = next((one for one in args if isinstance(one, torch.ScriptObject) and "ProcessGroup" in str(one)), None)
        marks = [allocation_of(tensor) for tensor in tensors_in(args)]
        nccl = self._is_nccl_of(group)
        device = next((m.device for m in marks if m is not None and m.gpu is not None), None)
        if nccl and name != "barrier":
            if any(m is HOST for m in marks):
                raise RuntimeError(f"No backend type associated with device type cpu ({name})")
            self.issued += 1
            if self.stuck_from is not None and step() >= self.stuck_from:
                self._ghost.waits.stuck = True
        elif nccl:
            self._ghost.wait("barrier", self._ghost.here)
        elif device is not None:
            self._ghost.wait(f"{name} of gloo with a tensor of a GPU", device)

    def _is_nccl_of(self, group: Any) -> bool:
        if group is None:
            return False
        unboxed = dist.ProcessGroup.unbox(group)
        return unboxed.group_name in self._nccl
