"""--gradient-flow: its numbers, its file over a resume, its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.diagnostics import gradient_flow
from ddp_train.plots.__main__ import main
from ddp_train.plots.gradient_flow import SCHEMA, flow_figure, read_flow
from ddp_train.technique import Moment
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques import runs, tiny


def test_the_numbers_are_those_of_the_gradient(tmp_path: Path) -> None:
    network = tiny.plain(10, (3, 32, 32))
    flow = gradient_flow.create(make_context(network, out_dir=str(tmp_path), log_every=3))
    assert flow.gradient is not None and flow.observer is not None
    expected = {}
    for step in range(10):  # an epoch of ten steps: reports at 3, 6, 9 and 10
        network.zero_grad()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        flow.gradient(list(network.parameters()), Moment(0, step, 0, 0))
        expected[step + 1] = [network[at].weight.grad.abs().numpy() for at in (0, 3, 6)]  # type: ignore[union-attr]
    flow.observer.close()
    found = read_flow(tmp_path / "gradient_flow.json")
    assert found["layers"] == ["0", "3", "6"]
    assert [point["step"] for point in found["points"]] == [3, 6, 9, 10]
    for point in found["points"]:
        assert point["mean"] == pytest.approx([g.mean() for g in expected[point["step"]]], rel=1e-5)
        assert point["largest"] == pytest.approx([g.max() for g in expected[point["step"]]])
    assert (tmp_path / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_continues_the_file(tmp_path: Path) -> None:
    options = "--gradient-flow --log-every 5"
    files = []
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        if folder.name == "whole":
            run = runs.make(options, folder, runs.STATEFUL)
            run.trainer.fit()
        else:
            runs.train_with_a_kill(options, folder, at=14, saved=4)
            run = runs.make(f"{options} --resume auto", folder, runs.STATEFUL)
        for observer in run.observers:
            observer.close()
        files.append(read_flow(folder / "gradient_flow.json"))
    assert files[0] == files[1]
    assert [point["step"] for point in files[0]["points"]] == [5, 10, 15, 20]


def test_what_is_not_finite_is_null_and_can_be_drawn(tmp_path: Path) -> None:
    network = tiny.plain(10, (3, 32, 32))
    flow = gradient_flow.create(make_context(network, out_dir=str(tmp_path), log_every=1))
    assert flow.gradient is not None and flow.observer is not None
    for parameter, value in zip(network.parameters(), (torch.nan, 0, 0, 0, 0, 0, torch.inf), strict=False):
        parameter.grad = torch.full_like(parameter, value)
    flow.gradient(list(network.parameters()), Moment(0, 0, 0, 0))
    flow.observer.close()
    document = read_flow(tmp_path / "gradient_flow.json")
    assert document["points"][0]["mean"][:2] == [None, 0.0]
    upper, lower, *_ = flow_figure(document).axes
    assert (upper.get_yscale(), len(lower.get_xticks())) == ("log", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {path}: No such file"),
        ("{", "{path} is not a gradient flow: Expecting"),
        ("{}", '{path} is not a gradient flow: it has no "schema"'),
        (json.dumps({"schema": SCHEMA, "layers": ["a"], "points": []}), "the gradient flow has no points to draw"),
        (
            json.dumps({"schema": SCHEMA, "layers": ["a"], "points": [{"epoch": 1, "step": 1, "mean": [1]}]}),
            "{path} is not a gradient flow: points[0] needs a mean and a largest per layer",
        ),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "flow.json"
    if content is not None:
        path.write_text(content)
    assert main(["gradient_flow", str(path), "-o", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message.format(path=path)) and error.count("\n") == 1


def test_a_picture_that_cannot_be_drawn_from_no_points() -> None:
    with pytest.raises(UserError, match="no points"):
        flow_figure({"schema": SCHEMA, "layers": [], "points": []})
