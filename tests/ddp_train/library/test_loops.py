"""A loop of the user's own: the same on any number of ranks, each sample once, the same bits after a kill."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_train.distributed.process_group import Ranks
from ddp_train.library.make_loader import create
from ddp_train.library.order import Ordering
from tests.ddp_train.library.loops import Stream
from tests.ranks import run_ranks

PROGRAM = Path(__file__).parent / "loops.py"
SAME: list[dict[str, Any]] = [
    {"name": "sum", "loop": "plain"},
    {"name": "mean", "loop": "plain", "loss": "mean"},
    {"name": "batch of one", "loop": "plain", "batch": 1, "epochs": 1},
    {"name": "accumulated", "loop": "plain", "accumulate": 4},
    {"name": "dropped", "loop": "plain", "drop_last": True},
    {"name": "noise", "loop": "plain", "data": "noise"},
    {"name": "stream", "loop": "plain", "data": "stream"},
    {"name": "gan", "loop": "gan"},
    {"name": "zipped", "loop": "zipped"},
    {"name": "late", "loop": "late", "options": {"find_unused_parameters": True}},
    {"name": "late and accumulated", "loop": "late", "accumulate": 2},
    {"name": "texts", "loop": "texts"},
    {"name": "thawed", "loop": "thawed"},
    {"name": "clipped and averaged", "loop": "used", "use": {"clip_grad": 0.1, "ema": 0.8}},
]
"""Every one follows the same trajectory on any number of ranks, 20 steps and more."""


def train(folder: Path, ranks: int, cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the cases return on so many ranks; their run folders are in `folder`."""
    folder.mkdir(exist_ok=True)
    file, result = folder / "cases.json", folder / "result.pt"
    file.write_text(json.dumps([{"out_dir": str(folder / case["name"]), **case} for case in cases]))
    run_ranks(ranks, PROGRAM, str(file), str(result), folder=folder)
    found: dict[str, dict[str, Any]] = torch.load(result, weights_only=True)
    return found


def killed(folder: Path, ranks: int, case: dict[str, Any]) -> None:
    """Run a case that kills itself."""
    with pytest.raises(AssertionError) as failure:
        train(folder, ranks, [case])
    assert "Traceback" not in str(failure.value) and not (folder / "result.pt").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every case on one rank, without a stop."""
    return train(tmp_path_factory.mktemp("alone"), 1, SAME)


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_follows_the_same_trajectory(
    alone: dict[str, dict[str, Any]], tmp_path: Path, ranks: int
) -> None:
    found = train(tmp_path, ranks, [*SAME, {"name": "table", "loop": "table"}])
    for case in SAME:
        name = case["name"]
        assert torch.allclose(found[name]["weights"], alone[name]["weights"], atol=1e-6, rtol=0), name
    assert found["sum"]["reads"] == alone["sum"]["reads"] == sorted([*range(53)] * 4), "each once an epoch"
    buffers = found["table"]["buffers"]
    assert torch.isfinite(buffers).all() and bool((buffers == buffers[0]).all())
    history = json.loads((tmp_path / "table" / "training_history.json").read_text())
    assert [epoch["samples"] for epoch in history["epochs"]] == [53, 53]
    assert (found["table"]["empties"] > 0) is (ranks == 3), "the last batch has two samples"


def test_mean_and_sum_and_micro_batches_are_the_same_gradient(alone: dict[str, dict[str, Any]]) -> None:
    for name in ("mean", "accumulated", "stream"):
        if name != "stream":  # which is in another order
            assert torch.allclose(alone[name]["weights"], alone["sum"]["weights"], atol=1e-6, rtol=0)
    assert not torch.allclose(alone["noise"]["weights"], alone["sum"]["weights"], atol=1e-3)


WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}
KILLED = [
    {"name": "sum", "loop": "plain", "save_every": 1},
    {
        "name": "noise",
        "loop": "plain",
        "data": "noise",
        "num_workers": 2,
        "save_every": 1,
        "multiprocessing_context": "fork",
    },
    {"name": "stream", "loop": "plain", "data": "stream", "save_every": 1},
    {"name": "gan", "loop": "gan", "save_every": 1},
    {"name": "zipped", "loop": "zipped", "save_every": 1},
    {"name": "clipped and averaged", "loop": "used", "use": {"clip_grad": 0.1, "ema": 0.8}},
]


@pytest.mark.parametrize("case", KILLED, ids=lambda case: case["name"])
def test_a_killed_loop_continues_with_the_same_bits(
    alone: dict[str, dict[str, Any]], tmp_path: Path, case: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    draw = random.Random(case["name"])
    moments = sorted(draw.sample(range(2, 12), 10 if request.config.getoption("--whole") else 2))
    for moment in moments:
        killed(tmp_path, 1, {**case, "die": moment})
    found = train(tmp_path, 1, [case])[case["name"]]
    assert torch.equal(found["weights"], alone[case["name"]]["weights"])
    if case["loop"] == "plain":
        assert found["seen"] == alone[case["name"]]["seen"] and found["marks"].tolist() == [24.0, 0.0]


class NoTurns:
    """Nobody is asked between the batches."""

    device = torch.device("cpu")

    def nothing(self, *_: object) -> None:
        return None

    finish = begin = end = leave = nothing

    def within(self) -> bool:
        return False


def test_a_stream_that_begins_anew_at_its_end_is_not_read_twice() -> None:
    def stream() -> Any:
        return create(NoTurns(), Stream(), 9, Ordering(0, True, False, None), Ranks(), None, 1, 0, {})

    first = stream()
    batches, counts = iter(first), []
    for _ in range(6):
        counts.append(len(next(batches)["label"]))
        first.stepped()
    assert counts == [9, 9, 9, 9, 9, 8] and first.dataset.at == 0, "its own place is that of the beginning"
    resumed = stream()
    resumed.load_state_dict(first.state_dict(), within=True)
    assert len(list(resumed)) == 0
    resumed.begin_epoch(1)
    assert sum(len(batch["label"]) for batch in resumed) == 53


@pytest.mark.parametrize("name", ["sum", "gan", "noise", "zipped"])
def test_a_loop_continues_on_another_number_of_ranks(
    alone: dict[str, dict[str, Any]], tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    if name not in ("sum", "zipped") and not request.config.getoption("--whole"):
        pytest.skip("the same for every loop: --whole")
    case = next(case for case in SAME if case["name"] == name) | {"save_every": 1}
    killed(tmp_path, 2, {**case, "die": 9})
    killed(tmp_path, 1, {**case, "die": 16})
    found = train(tmp_path, 2, [case])[name]
    assert torch.allclose(found["weights"], alone[name]["weights"], atol=1e-6, rtol=0)
    if name == "sum":
        history = json.loads((tmp_path / "sum" / "training_history.json").read_text())
        lengths = [(epoch["epoch"], epoch["epoch_length"]) for epoch in history["epochs"]]
        assert lengths == [(1, 6), (2, 12), (3, 18), (4, 24)]


@pytest.mark.parametrize("case", KILLED, ids=lambda case: case["name"])
def test_a_loop_that_is_killed_at_any_moment_continues_with_the_same_bits(
    alone: dict[str, dict[str, Any]], tmp_path: Path, case: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("ten moments of each loop, in a checkpoint and between: --whole")
    draw = random.Random(case["name"])
    for _ in range(10):
        with suppress(AssertionError):  # it may have ended before
            train(tmp_path, 1, [{**case, "die_after_s": draw.uniform(0.0, 0.1)}])
    found = train(tmp_path, 1, [case])[case["name"]]
    assert torch.equal(found["weights"], alone[case["name"]]["weights"])
