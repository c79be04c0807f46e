"""The curves of a run as a PNG: what is drawn, what is refused, and what is left alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.observers.records import EpochRecord, History, HistoryDocument
from ddp_train.plots import history_figure, plot_history
from ddp_train.plots.__main__ import main

_ROOT = Path(__file__).parents[3]
_PNG = b"\x89PNG\r\n\x1a\n"


def _history(epochs: int, path: Path, unknown: range = range(0)) -> History:
    history = History(path, {"model": "small", "dataset": "digits", "world_size": 2})
    for epoch in range(1, epochs + 1):
        accuracy = math.nan if epoch in unknown else 1 - 1 / (epoch + 1)
        history.append(
            EpochRecord(
                epoch=epoch,
                train_loss=1 / epoch,
                train_accuracy=1 - 1 / (epoch + 2),
                loss=math.nan if epoch in unknown else 1.1 / epoch,
                accuracy=accuracy,
                learning_rate=0.1 * (epochs - epoch) / epochs,
                seconds=1.0,
                images_per_second=math.nan if epoch in unknown else 12_345.0,
                global_batch=512,
            )
        )
    return history


def _document(epochs: int, tmp_path: Path, unknown: range = range(0)) -> HistoryDocument:
    return _history(epochs, tmp_path / "history.json", unknown).to_dict()


@pytest.mark.parametrize(("epochs", "unknown"), [(1, range(0)), (1, range(1, 2)), (10, range(3, 6)), (200, range(0))])
def test_a_history_of_any_length_becomes_a_picture(tmp_path: Path, epochs: int, unknown: range) -> None:
    from matplotlib.image import imread

    path = tmp_path / "curves.png"
    plot_history(_document(epochs, tmp_path, unknown), path)
    assert path.read_bytes().startswith(_PNG)
    height, width, _ = imread(path).shape
    assert (width, height) == (1500, 1050)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curves.png", "history.json"]


def test_the_panels_show_the_numbers_with_their_units(tmp_path: Path) -> None:
    figure = history_figure(_document(10, tmp_path, unknown=range(9, 11)))
    loss, accuracy, rate, speed = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate", "Throughput"]
    assert [axes.get_title("right") for axes in figure.axes] == [
        "mean per image",
        "share of images",
        "at the end of the epoch",
        "training images per second, all ranks",
    ]
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    train, test = loss.get_lines()
    assert list(train.get_xdata()) == list(range(1, 11))
    assert list(train.get_ydata()) == [1 / epoch for epoch in range(1, 11)]
    assert [math.isnan(value) for value in test.get_ydata()] == [False] * 8 + [True] * 2
    best = accuracy.get_lines()[2]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([8], [1 - 1 / 9])
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["train", "test", "best test 88.89% in epoch 8"]
    assert list(rate.get_lines()[0].get_ydata())[-1] == 0.0
    assert list(speed.get_lines()[0].get_ydata())[:8] == [12_345.0] * 8
    assert figure.get_suptitle() == "small  ·  digits  ·  2 ranks  ·  global batch 512"


def test_what_techniques_and_the_driver_reported_has_panels_of_its_own(tmp_path: Path) -> None:
    document = _document(3, tmp_path)
    reported = [{"gradient_norm": 2.0, "gpu_memory": 2.0**31, "gpu_utilization": 0.5}, {"gradient_norm": None}, {}]
    for epoch, extra in zip(document["epochs"], reported, strict=True):
        epoch["extra"] = extra
    figure = history_figure(document)
    assert (figure.get_size_inches() * figure.dpi).tolist() == [1500, 2100]
    busy, memory, norm, empty = figure.axes[4:]
    titles = [axes.get_title("left") for axes in (busy, memory, norm)]
    assert titles == ["GPU utilisation", "GPU memory", "Gradient norm"] and not empty.axison
    assert next(iter(memory.get_lines()[0].get_ydata())) == 2.0  # GiB
    assert [math.isnan(value) for value in norm.get_lines()[0].get_ydata()] == [False, True, True]


def test_curves_are_inside_their_axes(tmp_path: Path) -> None:
    for epochs in (1, 2, 40):
        for axes in history_figure(_document(epochs, tmp_path)).axes:
            low, high = axes.get_ylim()
            for line in axes.get_lines():
                assert all(low <= value <= high for value in line.get_ydata())


def test_a_loss_that_falls_far_gets_a_logarithmic_axis(tmp_path: Path) -> None:
    (short, *_), (long, *_) = (history_figure(_document(epochs, tmp_path)).axes for epochs in (10, 100))
    assert short.get_yscale() == "linear"
    assert long.get_yscale() == "log"


def test_matplotlibs_global_state_is_left_alone() -> None:
    code = (
        "import sys, pathlib, tempfile\n"
        "import ddp_train.plots as plots\n"
        "assert not {'matplotlib', 'numpy', 'torch'} & set(sys.modules), 'imported too early'\n"
        "import matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"  # dict() would ask for the backend, and that imports pyplot
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "names = ('train_loss', 'train_accuracy', 'test_loss', 'test_accuracy', 'learning_rate', 'images_per_second')\n"
        "epoch = {'epoch': 1, 'global_batch': 8, **dict.fromkeys(names, 0.5)}\n"
        "best = {'epoch': 1, 'test_accuracy': 0.5}\n"
        "plots.plot_history({'environment': {}, 'epochs': [epoch], 'best': best}, folder / 'x.png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# The command


def test_the_command_draws_a_file(tmp_path: Path) -> None:
    _history(3, tmp_path / "history.json")
    command = [sys.executable, "-m", "ddp_train.plots", "history", str(tmp_path / "history.json"), "-o"]
    done = subprocess.run(
        [*command, str(tmp_path / "x.png")], cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "x.png").read_bytes().startswith(_PNG)


def test_a_name_of_another_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedules", "-o", str(tmp_path / "rates.pdf")]) == 2
    assert "--output takes a name that ends in .png, not" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (b"{", "{path} is not a training history: Expecting property name"),
        (b"\xff\xfe\x00", "{path} is not a training history: "),
        (b'{"schema": "other/1"}', '{path} is not a training history: it has no "schema": "ddp-train-history/1"'),
        ("empty", "the history has no epochs to draw"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str | None, message: str
) -> None:
    path = tmp_path / "history.json"
    if content == "empty":
        path.write_text(json.dumps(History(path, {}).to_dict()))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert main(["history", str(path), "-o", str(tmp_path / "x.png")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: " + message.format(path=path))
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*x\.png: No such file"):
        plot_history(_document(1, tmp_path), tmp_path / "missing" / "x.png")


def test_the_contact_sheet_shows_every_option_of_augmentation(tmp_path: Path) -> None:
    from ddp_train.config.options import AugmentOptions
    from ddp_train.plots.augment import augment_figure, photographs

    path = tmp_path / "sheet.png"
    assert main(["augment", "-o", str(path)]) == 0
    assert path.read_bytes().startswith(_PNG)
    (axes,) = augment_figure(photographs(), 0).axes
    words = [label.get_text() for label in axes.get_yticklabels()]
    shown = {word.removeprefix("--").replace("-", "_") for line in words for word in line.split()[:1]}
    unshown = {"randaugment_ops", "randaugment_magnitude", "mixup_prob"}
    unshown |= {"progressive_resize_end", "progressive_resize_epochs"}
    assert shown == {field.name for field in fields(AugmentOptions)} - unshown | {"the"}
    (picture,) = axes.get_images()
    row = picture.get_array().shape[0] / len(words)
    first, balanced = (picture.get_array()[round(row * i) : round(row * (i + 1))] for i in (0, 2))
    assert first.shape == balanced.shape and not (first == balanced).all()
    assert first.min() >= 0 and first.max() == 1


def test_the_contact_sheet_of_small_training_images_alone(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (folder := tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    assert main(["augment", "-o", str(tmp_path / "sheet.png"), "--data-dir", str(tmp_path / "data")]) == 0


def test_the_contact_sheet_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["augment", "-o", str(tmp_path / "sheet.png"), "--data-dir", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --data-dir") and message.count("\n") == 1


def test_the_picture_of_the_schedules_has_every_scheduler(tmp_path: Path) -> None:
    from typing import get_args, get_type_hints

    from ddp_train.config.options import ScheduleOptions
    from ddp_train.plots.schedules import schedules_figure

    panels = {axes.get_title("left"): axes for axes in schedules_figure(100, 5.0).axes}
    assert panels.keys() - {""} == {*get_args(get_type_hints(ScheduleOptions)["scheduler"])} - {"auto"}
    rates = panels["plateau"].get_lines()[0].get_ydata()
    # The loss stops falling with epoch 33, and ten epochs of patience are over with the eleventh.
    assert [float(rates[epoch * 100]) for epoch in (43, 44, 54, 55)] == pytest.approx([1, 0.1, 0.1, 0.01])
