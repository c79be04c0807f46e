"""The history file, its best epoch and its refusals; and the TensorBoard event files of a run and its resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddp_core.errors import UserError
from ddp_train.observers.records import EpochRecord, History, Observer, RunFacts, StepReport, read_history
from ddp_train.observers.tensorboard import TensorBoardObserver

_ROOT = Path(__file__).parents[3]


def _record(epoch: int, accuracy: float = 0.5, **values: Any) -> EpochRecord:
    numbers = {
        "train_loss": 1.0 / epoch,
        "train_accuracy": 0.75,
        "loss": 2.0 / epoch,
        "accuracy": accuracy,
        "learning_rate": 0.1,
        "seconds": 1.5,
        "images_per_second": 1234.5,
    }
    return EpochRecord(epoch=epoch, global_batch=128, **(numbers | values))


def _strict(path: Path) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the file")

    return json.loads(path.read_text(), parse_constant=refuse)


# The history


def test_the_file_is_the_contracts(tmp_path: Path) -> None:
    path = tmp_path / "training_history.json"
    history = History(path, {"model": "small", "world_size": 2, "versions": {"torch": "2"}})
    assert not path.exists()
    history.append(_record(1, 0.6))
    history.append(_record(2, 0.7))
    assert _strict(path) == {
        "schema": "ddp-train-history/1",
        "environment": {"model": "small", "world_size": 2, "versions": {"torch": "2"}},
        "epochs": [
            {
                "epoch": epoch,
                "train_loss": 1.0 / epoch,
                "train_accuracy": 0.75,
                "test_loss": 2.0 / epoch,
                "test_accuracy": accuracy,
                "learning_rate": 0.1,
                "seconds": 1.5,
                "images_per_second": 1234.5,
                "global_batch": 128,
            }
            for epoch, accuracy in ((1, 0.6), (2, 0.7))
        ],
        "best": {"epoch": 2, "test_accuracy": 0.7},
    }


def test_what_is_not_finite_is_null_in_the_file_and_nan_again_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    history = History(path, {"loss": math.inf, "list": [1.0, math.nan], "nested": {"x": -math.inf}})
    history.append(_record(1, math.nan, train_loss=math.inf))
    document = _strict(path)
    assert document["environment"] == {"loss": None, "list": [1.0, None], "nested": {"x": None}}
    assert document["epochs"][0]["train_loss"] is None
    assert document["best"] == {"epoch": None, "test_accuracy": None}
    loaded = History.load(path)
    assert math.isnan(loaded.epochs[0].accuracy)
    assert math.isnan(loaded.epochs[0].train_loss)
    assert loaded.epochs[0].train_accuracy == 0.75


def test_the_best_epoch_is_the_one_of_lower_loss_among_equals_and_never_an_unknown_one(tmp_path: Path) -> None:
    history = History(tmp_path / "history.json", {})
    assert history.best.to_dict() == {"epoch": None, "test_accuracy": None}
    for epoch, accuracy in enumerate((0.0, math.nan, 0.8, 0.9, 0.9, math.nan, 0.85), start=1):
        history.append(_record(epoch, accuracy, loss=1.0))
    assert history.best.to_dict() == {"epoch": 4, "test_accuracy": 0.9}, "the first of equals"
    history.append(_record(8, 0.9, loss=0.5))
    history.append(_record(9, 0.9, loss=math.nan))
    assert history.best.to_dict() == {"epoch": 8, "test_accuracy": 0.9}


def test_epochs_of_a_validation_split_have_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    History(path, {}).append(_record(1, 0.75, split="val"))
    document = _strict(path)
    assert document["best"] == {"epoch": 1, "val_accuracy": 0.75}
    assert (document["epochs"][0]["val_loss"], document["epochs"][0]["val_accuracy"]) == (2.0, 0.75)
    assert not {"test_loss", "test_accuracy"} & document["epochs"][0].keys()
    assert History.load(path).epochs == [_record(1, 0.75, split="val")]


def test_a_users_column_of_a_records_name_leaves_the_history_readable(tmp_path: Path) -> None:
    unknown = {"train_accuracy": math.nan, "loss": math.nan}
    for name in ("val_loss", "val_accuracy", "test_loss", "test_accuracy", "train_accuracy"):
        path = tmp_path / name
        History(path, {}).append(_record(1, math.nan, **unknown, columns={name: 0.25}))
        before = path.read_text()
        loaded = History.load(path)
        (record,) = loaded.epochs
        assert record.split == "test" and record.columns == {name: 0.25}
        assert all(math.isnan(value) for value in (record.loss, record.accuracy, record.train_accuracy))
        loaded._write()
        assert path.read_text() == before and loaded.best.epoch is None


def test_a_resumed_history_has_no_gap_and_no_doubled_epoch(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    first = History(path, {"run": 1})
    for epoch in (1, 2, 3, 4):
        first.append(_record(epoch, 1 - epoch / 10))  # epochs 3 and 4 came after the last checkpoint
    resumed = History.load(path, {"run": 2})
    resumed.truncate(2)
    assert [epoch["epoch"] for epoch in _strict(path)["epochs"]] == [1, 2]
    with pytest.raises(ValueError, match="epoch 2 is already recorded"):
        resumed.append(_record(2))
    for epoch in (3, 4, 5):
        resumed.append(_record(epoch, 0.95, loss=0.5))
    document = _strict(path)
    assert [epoch["epoch"] for epoch in document["epochs"]] == [1, 2, 3, 4, 5]
    assert document["environment"] == {"run": 2}
    assert document["best"] == {"epoch": 3, "test_accuracy": 0.95}
    assert History.load(path).environment == {"run": 2}
    assert History.load(path).epochs == resumed.epochs


def test_keys_of_a_later_version_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    History(path, {}).append(_record(1))
    document = _strict(path)
    document["epochs"][0]["gradient_norm"] = 3.0
    document["note"] = "new"
    path.write_text(json.dumps(document))
    assert History.load(path).epochs == [_record(1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not a training history: "),
        (lambda text: "", "is not a training history: "),
        (lambda text: "[" * 100_000, "is not a training history: "),
        (lambda text: "[]", 'it has no "schema": "ddp-train-history/1"'),
        (lambda text: text.replace("history/1", "history/2"), 'it has no "schema": "ddp-train-history/1"'),
        (lambda text: text.replace("0.75", "NaN"), "NaN is not JSON"),
        (lambda text: text.replace("0.75", '"0.75"'), "epochs[0].train_accuracy is '0.75', not a number or null"),
        (lambda text: text.replace("0.75", "true"), "epochs[0].train_accuracy is True, not a number or null"),
        (lambda text: text.replace("train_accuracy", "accuracy"), "epochs[0].train_accuracy is 'missing'"),
        (lambda text: text.replace('"epoch": 1', '"epoch": 0'), "epochs[0].epoch is 0, not a whole number above 0"),
        (lambda text: text.replace('"epoch": 1', '"epoch": 1.5'), "epochs[0].epoch is 1.5, not a whole number above"),
        (
            lambda text: text.replace('"global_batch"', '"columns": 1, "global_batch"'),
            "epochs[0].columns is 1, not a list",
        ),
        (lambda text: text.replace("128", "null"), "epochs[0].global_batch is None, not a whole number"),
        (lambda text: text.replace('"environment": {}', '"environment": 1'), "environment or epochs is missing"),
    ],
)
def test_a_bad_history_is_one_line_naming_the_file(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "history.json"
    History(path, {}).append(_record(1))
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        History.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_history_with_a_doubled_epoch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    History(path, {}).append(_record(1))
    document = _strict(path)
    document["epochs"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="not a whole number above 1"):
        read_history(path)


def test_a_missing_history_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*history\.json: No such file"):
        History.load(tmp_path / "history.json")
    with pytest.raises(UserError, match=r"cannot write .*history\.json: No such file"):
        History(tmp_path / "missing" / "history.json", {}).append(_record(1))


# TensorBoard


def _facts(start_epoch: int = 1, steps_per_epoch: int = 10) -> RunFacts:
    return RunFacts(
        name="run",
        model="small",
        parameters=1,
        dataset="digits",
        device="cpu",
        world_size=2,
        epochs=4,
        steps_per_epoch=steps_per_epoch,
        global_batch=128,
        out_dir="runs/run",
        start_epoch=start_epoch,
        steps_before=(start_epoch - 1) * steps_per_epoch,
    )


def _run(observer: Observer, epochs: range, offset: float) -> None:
    observer.on_start(_facts(start_epoch=epochs[0]))
    for epoch in epochs:
        for step in (1, 10):
            observer.on_step(
                StepReport(
                    epoch=epoch,
                    step=step,
                    steps=10,
                    run_step=(epoch - 1) * 10 + step,
                    images=step * 128,
                    loss=offset + epoch,
                    accuracy=0.5,
                    learning_rate=0.1,
                    images_per_second=1.0,
                )
            )
        observer.on_epoch(_record(epoch, offset + epoch))


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_epoch_curves_by_epoch_and_step_curves_by_step(tmp_path: Path) -> None:
    observer = TensorBoardObserver(tmp_path)
    _run(observer, range(1, 3), 0.0)
    observer.close()
    observer.close()
    epochs = _scalars(tmp_path / "epochs")
    assert epochs == {
        "loss/train": [(1, 1.0), (2, 0.5)],
        "loss/test": [(1, 2.0), (2, 1.0)],
        "accuracy/train": [(1, 0.75), (2, 0.75)],
        "accuracy/test": [(1, 1.0), (2, 2.0)],
        "learning_rate": [(1, pytest.approx(0.1)), (2, pytest.approx(0.1))],
        "images_per_second": [(1, 1234.5), (2, 1234.5)],
    }
    assert _scalars(tmp_path / "steps")["step/loss"] == [(1, 1.0), (10, 1.0), (11, 2.0), (20, 2.0)]


def test_finished_epochs_are_on_the_disk_before_the_run_ends_and_a_resume_doubles_none(tmp_path: Path) -> None:
    killed = TensorBoardObserver(tmp_path)
    _run(killed, range(1, 4), 0.0)  # never closed
    assert [step for step, _ in _scalars(tmp_path / "epochs")["accuracy/test"]] == [1, 2, 3]
    assert [step for step, _ in _scalars(tmp_path / "steps")["step/loss"]] == [1, 10, 11, 20, 21, 30]
    resumed = TensorBoardObserver(tmp_path)
    _run(resumed, range(2, 3), 100.0)  # the checkpoint was that of epoch 1; ends before epoch 3 is trained again
    resumed.close()
    assert _scalars(tmp_path / "epochs")["accuracy/test"] == [(1, 1.0), (2, 102.0)]
    assert _scalars(tmp_path / "steps")["step/loss"] == [(1, 1.0), (10, 1.0), (11, 102.0), (20, 102.0)]
    killed.close()


def test_steps_of_epochs_of_unknown_length_follow_each_other(tmp_path: Path) -> None:
    """As of a loop over a stream, killed within its second epoch and resumed."""
    for first, steps in ((0, ((1, 1), (2, 5))), (5, ((2, 6), (2, 9)))):
        observer = TensorBoardObserver(tmp_path)
        observer.on_start(replace(_facts(steps_per_epoch=0), steps_before=first))
        for epoch, step in steps:
            numbers = dict.fromkeys(("loss", "accuracy", "learning_rate", "images_per_second"), 1.0)
            observer.on_step(StepReport(epoch=epoch, step=1, steps=0, run_step=step, images=1, **numbers))
        observer.close()
    assert [step for step, _ in _scalars(tmp_path / "steps")["step/loss"]] == [1, 5, 6, 9]


def test_unknown_numbers_make_no_points(tmp_path: Path) -> None:
    observer = TensorBoardObserver(tmp_path)
    observer.on_start(_facts())
    observer.on_epoch(_record(1, math.nan))
    observer.close()
    assert "accuracy/test" not in _scalars(tmp_path / "epochs")
    assert "loss/test" in _scalars(tmp_path / "epochs")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    observer = TensorBoardObserver(tmp_path / "file" / "tensorboard")
    with pytest.raises(UserError, match=r"cannot write .*file/tensorboard"):
        observer.on_start(_facts())


def test_tensorflow_is_not_imported_and_tensorboard_not_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('TensorFlow was imported')\n")
    code = (
        "import sys\n"
        "from math import inf\n"  # in the repr of RunFacts
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(_ROOT)!r}]\n"
        "from ddp_train.observers.tensorboard import TensorBoardObserver\n"
        "from ddp_train.observers.records import RunFacts\n"
        f"observer = TensorBoardObserver({str(tmp_path / 'events')!r})\n"
        "assert not {'tensorboard', 'torch', 'matplotlib', 'rich'} & set(sys.modules), 'imported too early'\n"
        f"observer.on_start({_facts()!r})\n"
        "assert 'tensorboard' in sys.modules\n"
        "assert 'tensorflow' not in sys.modules\n"
        "observer.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
