"""A model of the user's own, named as package.module:function.

The function is called with num_classes and image_shape=(C, H, W) and returns the module. It is looked up in
the working directory too, as `python -m` would.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from torch import nn

from ddp_core.errors import UserError
from ddp_train.models.shape import ImageShape


def create(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """The module that `name`'s function makes. UserError when it is not to be found or returns something else."""
    module_name, _, function_name = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise UserError(f"--model {name}: no module named {error.name!r} here or among the packages") from None
    except (AttributeError, ValueError):
        raise UserError(f"--model {name}: {module_name or 'it'} has no function {function_name!r}") from None
    try:
        inspect.signature(function).bind(num_classes=num_classes, image_shape=image_shape)
    except (TypeError, ValueError) as error:
        raise UserError(f"--model {name}: cannot be called with num_classes=..., image_shape=... ({error})") from None
    network = function(num_classes=num_classes, image_shape=image_shape)
    if not isinstance(network, nn.Module):
        raise UserError(f"--model {name}: returned a {type(network).__name__}, not a torch.nn.Module")
    return network
