"""Number formats: loss scaling's constants, float32 products, and the tool that compares formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train import torch_internals
from ddp_train.config.parse import parse
from ddp_train.diagnostics import precision as tool
from ddp_train.optim.precision import LossScale, Precision, set_matmul_precision

CPU = torch.device("cpu")


@pytest.fixture
def products_restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_tf32_is_for_matrix_products_and_convolutions(products_restored: None, name: str, tf32: bool) -> None:
    set_matmul_precision(name)
    assert torch.get_float32_matmul_precision() == name
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    set_matmul_precision(None)
    assert torch.get_float32_matmul_precision() == name, "None leaves it"


def on_a_scaler(precision: Precision, scale: LossScale) -> Precision:
    """Loss scaling on the CPU, where training does not offer it: GradScaler itself runs there too."""
    precision.mode, precision.scaler = "fp16", torch.amp.GradScaler("cpu", **vars(scale))
    return precision


def test_the_scale_grows_and_falls_by_its_constants() -> None:
    scale = LossScale(init_scale=8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=2)
    precision = on_a_scaler(Precision("off", CPU, scale), scale)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    seen = []
    for factor in (1.0, 1.0, float("inf"), 1.0):
        precision.backward((weight * factor).sum())
        precision.step(optimizer)
        optimizer.zero_grad()
        seen.append(precision.scaler.get_scale())
    assert seen == [8.0, 24.0, 6.0, 6.0]


@pytest.mark.parametrize("known", [True, False], ids=["torch's engine", "another torch"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_gives_the_bits_of_a_weighted_loss(
    scaled: bool, dtype: torch.dtype, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(torch_internals, "_engine", lambda: None)
    scale = LossScale(init_scale=3.0)
    precision = on_a_scaler(Precision("off", CPU, scale), scale) if scaled else Precision("off", CPU)
    parameter = nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype))

    def gradient(weight: float, *, of_the_loss: bool) -> torch.Tensor:
        parameter.grad = None
        loss = parameter.square().sum()
        precision.backward(loss * weight) if of_the_loss else precision.backward(loss, weight)
        assert parameter.grad is not None
        return parameter.grad

    for weight in (1 / 3, 1 / 3, 1 / 7, 0.0, 1.0):
        assert torch.equal(gradient(weight, of_the_loss=False), gradient(weight, of_the_loss=True)), weight


@pytest.mark.parametrize(
    "other", [lambda roots, seeds: None, lambda *_, **__: None, None], ids=["fewer arguments", "does nothing", "gone"]
)
def test_an_engine_that_torch_has_changed_is_left_alone(
    other: Callable[..., None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch_internals._engine() is not None, "the torch of these tests"
    if other is None:
        monkeypatch.delattr(torch.autograd.graph, "_engine_run_backward")
    else:
        monkeypatch.setattr(torch.autograd.graph, "_engine_run_backward", other)
    assert torch_internals._engine.__wrapped__() is None


def test_a_resumed_run_keeps_its_scale_and_takes_its_own_constants() -> None:
    first, then = LossScale(init_scale=512.0), LossScale(growth_interval=7, growth_factor=4.0, backoff_factor=0.1)
    saved = on_a_scaler(Precision("off", CPU, first), first).state_dict()
    resumed = on_a_scaler(Precision("off", CPU, then), then)
    resumed.load_state_dict(saved)
    state = resumed.state_dict()
    assert (state["scale"], state["growth_interval"]) == (512.0, 7)
    assert (state["growth_factor"], state["backoff_factor"]) == (4.0, 0.1)


def test_the_constants_have_ranges() -> None:
    for words in ("--growth-factor 1", "--backoff-factor 1", "--init-scale 0", "--growth-interval 0"):
        with pytest.raises(UserError, match=words.split()[0]):
            parse(words.split())


def test_formats_are_compared_with_float64() -> None:
    """A network whose gradient is known: one linear layer, softmax minus target times the input."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, labels = torch.randn(8, 3, 2, 2), torch.arange(8) % 5
    fp64, fp32, bf16 = tool.compare(network, images, labels, repeats=1)
    assert (fp64.format, fp32.format, bf16.format) == ("fp64", "fp32", "bf16")
    logits = images.double().flatten(1) @ network[2].weight.double().T + network[2].bias.double()
    assert fp64.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-12)
    assert 0 < fp32.gradient_error < 1e-6 < 1e-4 < bf16.gradient_error < 0.1
    assert fp32.loss_error < 1e-6 and all(m.milliseconds > 0 for m in (fp64, fp32, bf16))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network[2].weight.grad is None and network[2].weight.dtype == torch.float32


def test_ranges_and_the_part_of_a_gradient_below_them() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
    images, labels = torch.randn(8, 3, 2, 2), torch.arange(8) % 5
    images[:, 0] *= 1e-41  # a third of the gradient; float32 reaches down to 1.2e-38
    images[:, 1] *= 1e-30
    found = {one.format: one for one in tool.compare(network, images, labels, repeats=1)}
    assert found["fp32"].below == found["bf16"].below == pytest.approx(1 / 3)
    assert found["fp64"].below == 0.0
    assert found["bf16"].largest == pytest.approx(3.39e38, rel=1e-2) and found["fp64"].largest > 1e308
    assert found["fp32"].smallest == pytest.approx(2.0**-126)


def test_the_tool_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--dataset synthetic --synthetic-samples 32 --batch-size 8 --repeats 1 --device cpu"
    words += " --model tests.ddp_train.techniques.tiny:stateful"
    assert tool.main([*words.split(), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["schema"] == "ddp-train-precision/1" and content["device"] == "cpu"
    assert [row["format"] for row in content["formats"]] == ["fp64", "fp32", "bf16"]
    assert tool.main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cpu", "format", "fp64", "fp32", "bf16"]
    assert "1e-38 to 3e+38" in lines[3] and "%" in lines[3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--repeats x", "--repeats: invalid int value: 'x'"),
        ("--repeats 0", "--repeats takes a whole number from 1 to 1000000, not 0"),
        ("--modle power", "unknown option --modle, did you mean --model? (see --help)"),
        ("--dataset synthetic --model nosuch", "--model nosuch"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(words.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1 and not said.out
