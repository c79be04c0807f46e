"""Pickles functions, arguments and results between the caller of `ddp_launch.launch` and its ranks: cloudpickle sends
objects that are defined in a script or a notebook cell by value."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import cloudpickle


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        """Pickle tensors as CPU tensors, and code objects with their file name."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor) and obj.device.type != "cpu":
            # The receiver may have no GPU, or different ones.
            moved = obj.detach().cpu().requires_grad_(obj.requires_grad)
            if isinstance(obj, torch.nn.Parameter):  # a module finds its parameters by their class
                moved = torch.nn.Parameter(moved, obj.requires_grad)
            return moved.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        if isinstance(obj, CodeType):
            # cloudpickle drops the file name, which a traceback should show.
            build, parts, *_ = self.dispatch_table[CodeType](obj)
            return _code, (build, parts, obj.co_filename)
        return super().reducer_override(obj)


def _code(build: Callable[..., CodeType], parts: tuple[Any, ...], filename: str) -> CodeType:
    """Rebuild a code object with its file name."""
    return build(*parts).replace(co_filename=filename)


def dumps(obj: object) -> bytes:
    """Pickle `obj`, tensors as CPU tensors. Errors: those of cloudpickle, of many types."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(obj)
    return buffer.getvalue()
