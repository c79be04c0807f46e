"""Memory that runs out in evaluation: on one rank of two. On a ghost GPU: tests/ghost/test_memory.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddp_train.data.pipeline.window import Batch
from ddp_train.engine import evaluate as evaluate_module
from ddp_train.engine.eval_memory import look_at_all
from ddp_train.engine.evaluate import Examination, evaluate, examine
from tests.ddp_train.engine import short_of_memory
from tests.ddp_train.techniques import runs
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def batch(first: int, count: int) -> Batch:
    return Batch(torch.zeros(count, 1), torch.zeros(count, dtype=torch.int64), torch.arange(first, first + count))


def test_every_image_is_seen_once_whatever_fits() -> None:
    seen: list[list[int]] = []

    def look(piece: Batch) -> None:
        if len(piece.labels) > 3:
            raise MemoryError
        seen.append(piece.indices.tolist())

    assert look_at_all([batch(0, 2), batch(2, 13), batch(15, 5)], look, CPU) == 2
    assert [index for piece in seen for index in piece] == list(range(20))
    assert max(map(len, seen)) == 2, "no more than what has turned out to fit"
    with pytest.raises(ValueError, match="something else"):
        look_at_all([batch(0, 2)], lambda piece: (_ for _ in ()).throw(ValueError("something else")), CPU)


@pytest.mark.parametrize(("late", "examined"), [("summable", False), ("_mistakes", True)])
def test_what_runs_out_late_counts_nothing_twice(
    late: str, examined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the network's pass, while its logits are judged."""
    parts = runs.make("--synthetic-samples 100", tmp_path / "run", runs.PLAIN).trainer.components
    plain = getattr(evaluate_module, late)

    def short(*given: object) -> object:
        if not asked.append(0) and len(asked) == 1:
            raise MemoryError
        return plain(*given)

    def found() -> object:
        batches = parts.pipeline.evaluate()
        if examined:
            return replace(examine(parts.evaluated, batches, parts.precision, parts.classes, worst=3), at_a_time=0)
        return replace(evaluate(parts.evaluated, batches, parts.precision, parts.classes), at_a_time=0, loss=0.0)

    asked: list[int] = [0]  # the first one is not short of memory
    wanted = found()
    asked.clear()
    monkeypatch.setattr(evaluate_module, late, short)
    again = found()
    assert len(asked) > 2
    if isinstance(again, Examination) and isinstance(wanted, Examination):
        counted = [(one.samples, one.top1, one.hits, one.counts, one.confusion) for one in (again, wanted)]
        assert counted[0] == counted[1]
        assert [one.index for one in again.mistakes] == [one.index for one in wanted.mistakes]
    else:
        assert again == wanted


def test_what_runs_out_on_one_rank_is_agreed_on_and_said_once(tmp_path: Path) -> None:
    run_ranks(2, Path(short_of_memory.__file__), str(tmp_path / "result.json"), folder=tmp_path, timeout_s=100)
    result = json.loads((tmp_path / "result.json").read_text())
    (first, accuracy), (second, same) = result["ranks"]
    assert (first, second) == (3, 3) and accuracy == same
    _, history = runs.trained(short_of_memory.OPTIONS, runs.PLAIN)
    for ours, theirs in zip(result["history"], history, strict=True):
        assert ours["test_accuracy"] == theirs["test_accuracy"]
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)
    line = "memory ran out on rank 1 in evaluation: from now on 3 images at a time, each counted once"
    said = [(tmp_path / f"output-of-rank-{rank}.txt").read_text().count(line) for rank in (0, 1)]
    assert said == [1, 0], "once: the second epoch begins with as few"
