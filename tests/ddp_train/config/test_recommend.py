"""Recommendations: a table of machines and what each gets."""

from __future__ import annotations

import pytest

from ddp_train.config.options import to_dict
from ddp_train.config.parse import parse
from ddp_train.config.recommend import GB, Hardware, apply, recommend, recommend_for_data


def values(hardware: Hardware, argv: list[str] | None = None) -> dict[str, object]:
    return {r.name: r.value for r in recommend(hardware, parse(argv or []))}


def gpus(count: int, memory_each: float, capability: tuple[int, int] = (8, 0), cpus: int = 32) -> Hardware:
    return Hardware("cuda", count, count, int(count * memory_each * GB), capability, cpus)


@pytest.mark.parametrize(
    ("hardware", "model", "width", "batch"),
    [
        (gpus(1, 12), "small", None, 128),
        (gpus(1, 25.7), "small", None, 256),
        (gpus(1, 42.9), "power", 1.5, 384),
        (gpus(1, 85), "power", 1.5, 512),
        (gpus(2, 8), "power", 1.5, 128),
        (gpus(2, 25.7), "power", 1.5, 384),
        (gpus(3, 12), "power", 1.5, 256),
        (gpus(3, 21.4), "power", 2.5, 512),
        (gpus(8, 85), "power", 2.5, 512),
        (Hardware("cpu", 2, 2, cpus=2), "small", None, 128),
    ],
)
def test_model_and_global_batch_by_hardware(hardware: Hardware, model: str, width: float, batch: int) -> None:
    found = values(hardware)
    assert (found["model"], found.get("width_mult"), found["batch_size"]) == (model, width, batch)


@pytest.mark.parametrize(
    ("hardware", "mode"),
    [
        (gpus(1, 40, (9, 0)), "bf16"),
        (gpus(1, 40, (8, 6)), "bf16"),
        (gpus(1, 16, (7, 5)), "fp16"),
        (gpus(1, 16, (6, 0)), "fp16"),
        (gpus(1, 8, (6, 1)), "off"),
        (gpus(1, 4, (5, 0)), "off"),
        (Hardware("cpu", cpu_flags=frozenset({"avx2"})), "off"),
        (Hardware("cpu", cpu_flags=frozenset({"avx512_bf16"})), "bf16"),
    ],
)
def test_precision_by_capability(hardware: Hardware, mode: str) -> None:
    assert values(hardware)["amp"] == mode


def test_workers_by_cores() -> None:
    assert values(gpus(4, 24, cpus=64))["num_workers"] == 8
    assert values(gpus(4, 24, cpus=16))["num_workers"] == 3
    assert values(gpus(4, 24, cpus=2))["num_workers"] == 1
    assert values(Hardware("cpu", 2, 2, cpus=2))["num_workers"] == 0


def test_only_open_options_are_filled() -> None:
    found = values(gpus(8, 85), ["--model", "small", "--batch-size", "64", "--amp", "off"])
    assert set(found) == {"num_workers"}
    assert "batch_size" not in values(gpus(8, 85), ["--batch-size-per-rank", "4"])


def test_a_named_power_gets_the_width_that_the_hardware_carries() -> None:
    assert values(gpus(1, 12), ["--model", "power"])["width_mult"] == 1.0
    assert values(gpus(8, 85), ["--model", "power"])["width_mult"] == 2.5
    assert "width_mult" not in values(gpus(8, 85), ["--model", "resnet18"])


VIT = ("hidden_dim", "n_layers", "batch_size", "accumulate")


@pytest.mark.parametrize(
    ("hardware", "argv", "expected"),
    [
        (Hardware("cpu"), [], (512, 6, 32, 8)),  # micro-batches of 4, 8 to a step
        (Hardware("cpu", 2, 2), [], (512, 6, 32, 4)),
        (gpus(1, 24), [], (256, 3, 32, 2)),  # micro-batches of 16, 2 to a step
        (gpus(8, 24), [], (256, 3, 32, 1)),
        (gpus(64, 24), [], (256, 3, 64, 1)),
        (Hardware("cpu"), ["--batch-size", "4"], (512, 6, None, 4)),
        (Hardware("cpu"), ["--batch-size", "128"], (512, 6, None, 8)),
        (Hardware("cpu", 2, 2), ["--batch-size-per-rank", "2"], (512, 6, None, 2)),
        (Hardware("cpu", 4, 4), ["--accumulate", "16"], (512, 6, 64, None)),
        (Hardware("cpu"), ["--n-layers", "2", "--hidden-dim", "64"], (None, None, 32, 8)),
    ],
)
def test_the_small_transformer_by_device(hardware: Hardware, argv: list[str], expected: tuple[int | None, ...]) -> None:
    found = values(hardware, ["--model", "vit", *argv])
    assert tuple(found.get(name) for name in VIT) == expected


def test_only_the_transformer_accumulates_by_itself() -> None:
    assert "accumulate" not in values(Hardware("cpu"), ["--model", "resnet18"])


def test_every_micro_batch_gets_an_image() -> None:
    assert values(gpus(64, 8), ["--accumulate", "4"])["batch_size"] == 512
    assert values(Hardware("cpu", 64, 64), ["--accumulate", "4"])["batch_size"] == 256


def test_disable_auto_takes_the_same_everywhere() -> None:
    big, small = (values(h, ["--disable-auto"]) for h in (gpus(8, 85), Hardware("cpu")))
    assert big == small
    assert (big["model"], big["batch_size"], big["amp"]) == ("small", 128, "off")


def test_learning_rate_is_scaled_only_when_it_was_not_named() -> None:
    named = {r.name: r for r in recommend_for_data("cifar10", 50_000, 512, parse(["--lr", "0.3"]))}
    assert named["lr_scaling"].value == "none" and "lr" not in named
    free = {r.name: r for r in recommend_for_data("cifar10", 50_000, 512, parse([]))}
    assert free["lr_scaling"].value == "sqrt" and free["lr"].value > 0


def test_digits_get_enough_steps_at_any_batch() -> None:
    for batch in (32, 128, 512, 4096):
        found = {r.name: r.value for r in recommend_for_data("digits", 1437, batch, parse([]))}
        assert found["epochs"] * -(-1437 // batch) >= 300


def test_apply_resolves_everything() -> None:
    wanted = parse([])
    resolved = apply(wanted, recommend(Hardware("cpu", 2, 2, cpus=2), wanted))
    resolved = apply(resolved, recommend_for_data("cifar10", 50_000, 128, resolved))
    values = to_dict(resolved)
    decided = {"model", "batch_size", "num_workers", "amp", "epochs", "augment", "lr", "lr_scaling", "scheduler"}
    assert not {name for name in decided if values[name] in (None, "auto")}


def test_the_schedule_follows_the_global_batch_where_that_is_asked_for() -> None:
    wanted = parse(["--scheduler", "auto"])
    for batch, name in ((512, "warm_restarts"), (256, "warm_restarts"), (128, "cosine"), (127, "multistep")):
        assert apply(wanted, recommend_for_data("cifar10", 50_000, batch, wanted)).schedule.scheduler == name
    kept = parse(["--scheduler", "linear"])
    assert apply(kept, recommend_for_data("cifar10", 50_000, 512, kept)).schedule.scheduler == "linear"
