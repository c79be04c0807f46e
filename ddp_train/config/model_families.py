"""Which optimizer and rate train a kind of model, where the user names neither. Torch-free."""

from __future__ import annotations

BASE_LEARNING_RATE = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001, "muon": 0.02}
"""Learning rates at global batch 128, for every model that is not in _FAMILIES."""

# Prefixes of model names -> optimizer and its rate at global batch 128. Transformers diverge with sgd at 0.05. Rates of
# torchvision's models are those of its recipes (vit_b_16: 0.003 at 4096; swin_t and convnext: 0.001 at 1024; vgg: 0.01
# at 256), scaled by the square root of the batch. With sgd, alexnet and squeezenet (no batch norm), and efficientnet at
# 0.05, hardly learned the digits in their first epochs (tests/ddp_train/models/test_defaults_learn.py).
_FAMILIES: tuple[tuple[tuple[str, ...], str, float], ...] = (
    (("vit_", "swin_", "maxvit_", "convnext_"), "adamw", 0.0005),
    (("vit",), "adamw", 0.001),
    (("squeezenet",), "adamw", 0.001),
    (("alexnet",), "adamw", 0.0005),
    (("efficientnet_",), "sgd", 0.01),
    (("vgg",), "sgd", 0.007),
)


def default_optimizer(model: str | None) -> str:
    """The optimizer of `--model model` where none is given."""
    return _family(model)[0]


def default_rate(model: str | None, optimizer: str) -> float:
    """The learning rate at global batch 128 where none is given."""
    its, rate = _family(model)
    return rate if its == optimizer else BASE_LEARNING_RATE[optimizer]


def _family(model: str | None) -> tuple[str, float]:
    """(optimizer, learning rate) for a model."""
    name = (model or "").removeprefix("torchvision:")
    found = next(((optimizer, rate) for names, optimizer, rate in _FAMILIES if name.startswith(names)), None)
    return found or ("sgd", BASE_LEARNING_RATE["sgd"])
