"""Starting from weights of many origins, freezing, rates by layer: what is read, kept, refused, and said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint.weights import holds_weights, load_weights
from ddp_train.config.options import ModelOptions, OptimOptions
from ddp_train.models import create_from_options, create_model
from ddp_train.models.trainable import freeze, zero_init_residual
from ddp_train.optim import create_optimizer

State = dict[str, torch.Tensor]


def small(classes: int = 10, seed: int = 0, model: str = "small") -> nn.Module:
    torch.manual_seed(seed)
    return create_model(model, num_classes=classes, image_shape=(3, 32, 32))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


SOURCES: dict[str, Callable[[Path, State], Path]] = {
    "state_dict": lambda path, state: save(path / "w.pt", state),
    "of DistributedDataParallel": lambda path, state: save(path / "w.pth", prefixed(state, "module.")),
    "of a compiled model": lambda path, state: save(path / "w.pth", prefixed(state, "_orig_mod.")),
    "of Lightning": lambda path, state: save(
        path / "last.ckpt",
        {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.4.0", "state_dict": prefixed(state, "net.")}
        | {"optimizer_states": [{"state": {}}], "hparams": {"lr": 0.1}},
    ),
    "beside an optimizer": lambda path, state: save(path / "c.pt", {"model": state, "optimizer": {"state": {}}}),
    "safetensors": lambda path, state: safetensors(path / "w.safetensors", state),
    "a checkpoint of ours": lambda path, state: ours(path / "checkpoint-latest.pt", state),
    "a run folder": lambda path, state: save(path / "best_model.pth", state).parent,
}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def safetensors(path: Path, state: State) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def ours(path: Path, state: State) -> Path:
    checkpoint_format.save(path, {"model": state, "optimizer": {}, "techniques": {}})
    return path


@pytest.mark.parametrize("source", SOURCES)
def test_weights_of_many_origins(source: str, tmp_path: Path) -> None:
    theirs, own = small(seed=1), small(seed=2)
    path = SOURCES[source](tmp_path, dict(theirs.state_dict()))
    assert load_weights(own, str(path), "small") == (f"starts from the weights of {path}",)
    for name, value in theirs.state_dict().items():
        assert torch.equal(own.state_dict()[name], value), name
    assert holds_weights(path) == (source not in ("a checkpoint of ours", "a run folder"))


def test_weights_with_auxiliary_heads(tmp_path: Path) -> None:
    theirs = torchvision.models.googlenet(init_weights=False)
    options = ModelOptions(model="googlenet", weights="imagenet")
    own = create_from_options(options, 1000, (3, 32, 32), torch.device("cpu"))
    path = save(tmp_path / "w.pth", theirs.state_dict())
    assert load_weights(own, str(path), "googlenet") == (f"starts from the weights of {path}",)
    assert torch.equal(own.fc.weight, theirs.fc.weight) and own.transform_input, "as torchvision builds it"


@pytest.mark.parametrize("model", ["small", "resnet18", "vit"])
def test_another_number_of_classes_starts_a_new_last_layer(model: str, tmp_path: Path) -> None:
    theirs, own = small(100, seed=1, model=model), small(10, seed=2, model=model)
    fresh = {name: value.clone() for name, value in own.state_dict().items()}
    [line] = load_weights(own, str(save(tmp_path / "w.pt", theirs.state_dict())), model)
    assert line.endswith("(100 classes there, 10 here)")
    taken = {name for name, value in own.state_dict().items() if torch.equal(value, theirs.state_dict()[name])}
    kept = [name for name, value in own.state_dict().items() if value.shape != theirs.state_dict()[name].shape]
    assert len(kept) in (1, 2) and taken.isdisjoint(kept)
    assert all(torch.equal(own.state_dict()[name], fresh[name]) for name in kept)
    assert all(name in taken for name in fresh if name.rpartition(".")[0] != kept[0].rpartition(".")[0])


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    own = small()
    state = dict(own.state_dict())
    first = next(iter(state))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    cases = {
        save(tmp_path / "other.pt", small(model="resnet18").state_dict()): "not of model small: has nothing for",
        save(tmp_path / "shape.pt", {**state, first: state[first][:, :1]}): f"has other shapes of {first} ",
        save(tmp_path / "less.pt", {k: v for k, v in state.items() if k != first}): f"has nothing for {first}",
        save(tmp_path / "more.pt", {**state, "new.weight": state[first]}): "has what the model has not: new.weight",
        save(tmp_path / "none.pt", {"epoch": 3}): "there are no weights in it",
        tmp_path / "missing.pt": "missing.pt",
        tmp_path / "missing.safetensors": "No such file",
        tmp_path / "cut.safetensors": "is damaged, or no safetensors file",
    }
    for path, words in cases.items():
        before = {name: value.clone() for name, value in own.state_dict().items()}
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            load_weights(own, str(path), "small")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(own.state_dict()[name], value) for name, value in before.items()), "left as it was"
    with pytest.raises(UserError, match="is for torchvision's models, not for small"):
        load_weights(own, "imagenet", "small")


def test_frozen_layers_stay_as_they_are() -> None:
    network = small(model="resnet18")
    [line] = freeze(network, "stem, blocks.0")
    assert line.startswith("--freeze: ") and line.endswith("parameters stay as they are")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = create_optimizer(network, OptimOptions(), 0.1, torch.device("cpu"))
    network.train()
    nn.functional.cross_entropy(network(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    optimizer.step()
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("stem.", "blocks.0."))}
    assert frozen and not changed & frozen, "batch statistics neither"
    assert {name for name, _ in network.named_parameters()} - frozen <= changed
    with pytest.raises(UserError, match=r"--freeze 'stam': no parameter has such a name; layers are .*stem"):
        freeze(small(model="resnet18"), "stam")
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(small(), "*")


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_rates_by_layer(kind: Any) -> None:
    network = small(model="resnet18")
    options = OptimOptions(optimizer=kind, lr_by_layer="*=0.5,stem=0,blocks.0=0.1,head=1")
    optimizer = create_optimizer(network, options, 0.2, torch.device("cpu"))
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"stem": 0.0, "blocks.0": 0.02, "head": 0.2}
    for name, parameter in network.named_parameters():
        known = next((rate for layer, rate in expected.items() if name.startswith(layer + ".")), 0.1)
        assert rates[id(parameter)] == pytest.approx(known), name
    assert optimizer.param_groups[0]["initial_lr"] == 0.2, "what records show"
    for wrong in ("stem", "stem=x", "stem=-1", "nowhere=2"):
        with pytest.raises(UserError, match="--lr-by-layer"):
            create_optimizer(network, OptimOptions(lr_by_layer=wrong), 0.2, torch.device("cpu"))


@pytest.mark.parametrize("model", ["residual", "resnet18", "torchvision:resnet18", "torchvision:resnet50"])
def test_residual_branches_that_begin_as_nothing(model: str) -> None:
    network = small(model=model)
    zero_init_residual(network)
    blocks = [m for m in network.modules() if type(m).__name__ in ("Residual", "BasicBlock", "Bottleneck")]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert len(norms) == len(blocks) > 0
    with pytest.raises(UserError, match="no residual branch"):
        zero_init_residual(small())


def test_a_run_from_weights(trainer: Callable[..., Any], tmp_path: Path) -> None:
    words = [
        "--device",
        "cpu",
        "--dataset",
        "synthetic",
        "--synthetic-samples",
        "64",
        "--epochs",
        "1",
        "--no-tensorboard",
    ]
    first = trainer(*words, "--out-dir", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    start = ("--weights", str(tmp_path / "first"), "--freeze", "features")
    done = trainer(*words, *start, "--out-dir", str(tmp_path / "next"))
    assert done.returncode == 0, done.stderr
    assert "starts from the weights of" in done.stderr and "--freeze: " in done.stderr
    old, new = (torch.load(tmp_path / name / "best_model.pth", weights_only=True) for name in ("first", "next"))
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("features."))
    assert any(not torch.equal(old[name], new[name]) for name in old)
    refused = trainer(*words, "--resume", str(tmp_path / "first" / "best_model.pth"), "--out-dir", str(tmp_path / "x"))
    assert refused.returncode == 2
    assert "holds weights, not the state of a run: to start from them, --weights " in refused.stderr
