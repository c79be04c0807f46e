"""`--weights`: initial weights, read from a file of this trainer or of another program and fitted into the network.

Weights come from a state_dict, a checkpoint (of this trainer, or one that keeps a state_dict as Lightning's do), a
safetensors file, or torchvision. Names in them may have a prefix, such as DistributedDataParallel's `module.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddp_core.errors import UserError, one_line
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.models import TORCHVISION, names

IMAGENET = "imagenet"
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "ema",
    "state",
    "state_dict_ema",
)
"""Where checkpoints of other programs keep the state_dict."""
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Heads for training alone, which torchvision's weights of inception_v3 and googlenet have, and the models here not."""
_SHOWN = 3


def load_weights(network: nn.Module, source: str, model: str) -> tuple[str, ...]:
    """Fill `network` with the weights of `source`: a file, or "imagenet" for torchvision's own of `model`.

    A last layer for another number of classes keeps its fresh weights. Returns lines for the user. Errors: UserError
    for a file that cannot be read, and for weights of another network.
    """
    found = _imagenet(model) if source == IMAGENET else _read(Path(source))
    own: dict[str, Tensor] = network.state_dict()
    found = _renamed(found, own)
    found = {name: value for name, value in found.items() if name in own or not name.startswith(_AUXILIARY)}
    head = _other_classes(network, found, own)
    fitting = {name: value for name, value in found.items() if name not in head}
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    foreign = [name for name in fitting if name not in own]
    wrong = [name for name in fitting if name in own and fitting[name].shape != own[name].shape]
    problems = (
        ("has nothing for", missing),
        ("has what the model has not:", foreign),
        ("has other shapes of", [f"{name} {_shape(found[name])} for {_shape(own[name])}" for name in wrong]),
    )
    if any(names for _, names in problems):
        words = "; ".join(f"{words} {_some(names)}" for words, names in problems if names)
        raise UserError(f"--weights {source}: not of model {model}: {words}")
    network.load_state_dict({**own, **fitting})
    if not head:
        return (f"starts from the weights of {source}",)
    name = next(iter(head)).rpartition(".")[0]
    classes = f"{found[next(iter(head))].shape[0]} classes there, {own[next(iter(head))].shape[0]} here"
    return (f"starts from the weights of {source}, but for its last layer {name} ({classes})",)


def holds_weights(path: Path) -> bool:
    """Whether `path` holds weights, and is not a checkpoint of this trainer."""
    try:
        if path.suffix != ".safetensors" and checkpoint_format.load_state_dict(path).get("schema") is not None:
            return False
        return bool(_read(path))
    except UserError:
        return False


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Errors: UserError."""
    if path.is_dir():
        path = path / "best_model.pth"
    if path.suffix == ".safetensors":
        content: Mapping[str, Any] = _safetensors(path)
    else:
        content = checkpoint_format.load_state_dict(path)
        if content.get("schema") == checkpoint_format.SCHEMA:
            content = checkpoint_format.load(path)
        nested = (value for key in _NESTED if isinstance(value := content.get(key), Mapping))
        content = next(nested, content)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"--weights {path}: there are no weights in it")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Errors: UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"--weights {path}: {error.strerror or one_line(str(error))}") from None
    except SafetensorError as error:
        raise UserError(f"--weights {path}: is damaged, or no safetensors file ({one_line(str(error))})") from None


def _imagenet(model: str) -> dict[str, Tensor]:
    """The weights that torchvision lists first for one of its models, downloaded once. Errors: UserError."""
    theirs = model.removeprefix(TORCHVISION)
    if model in names() or ":" in theirs:
        hint = f"; torchvision's is --model {TORCHVISION}{model}" if model == "resnet18" else ""
        raise UserError(f"--weights {IMAGENET}: is for torchvision's models, not for {model}{hint}")
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(theirs)
        state: dict[str, Tensor] = next(iter(weights)).get_state_dict(progress=False, check_hash=True)
    except StopIteration:
        raise UserError(f"--weights {IMAGENET}: torchvision has none for {theirs}") from None
    except (OSError, RuntimeError, ValueError) as error:
        words = f"cannot be downloaded ({one_line(str(error))}); --weights FILE takes a downloaded copy"
        raise UserError(f"--weights {IMAGENET}: the weights of {theirs} {words}") from None
    return state


def _renamed(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefix ("module.", "model." or any other) that makes the most names match those of the network."""
    prefixes = {"", *(name[: -len(known)] for name in found for known in own if name.endswith("." + known))}

    def matches(prefix: str) -> int:
        """Number of names that are the network's without this prefix."""
        return sum(name.startswith(prefix) and name[len(prefix) :] in own for name in found)

    best = max(sorted(prefixes, key=len), key=matches)
    return {name[len(best) :]: value for name, value in found.items() if name.startswith(best)}


def _other_classes(network: nn.Module, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of the last layer's weights, if the file's differ from the network's in the number of classes only."""
    last = next(
        (name for name, module in reversed(list(network.named_modules())) if isinstance(module, nn.Linear | nn.Conv2d)),
        None,
    )
    names = [f"{last}.weight", f"{last}.bias"]
    there = [name for name in names if name in found and name in own]
    other = [name for name in there if found[name].shape != own[name].shape]
    same_inputs = all(found[name].shape[1:] == own[name].shape[1:] for name in there)
    return there if other and same_inputs else []


def _shape(tensor: Tensor) -> str:
    """A tensor's shape as text: `64x3x3x3`."""
    return "x".join(map(str, tensor.shape)) or "1"


def _some(names: list[str]) -> str:
    """The first names, and the number of others."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
