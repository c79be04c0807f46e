"""evaluate, predict and export as a user calls them, and their mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddp_train import evaluate, export, predict
from ddp_train.checkpoint.format import save_state_dict
from ddp_train.config.parse import dump, parse
from ddp_train.data.sources.dataset import load_on_ranks
from ddp_train.data.sources.samples import DatasetFacts
from ddp_train.distributed.process_group import Ranks
from ddp_train.evaluation.saved_model import load_split, open_saved_model
from ddp_train.evaluation.saved_model import test_batches as batches_of
from ddp_train.models import create_from_options

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")


def test_the_best_model_has_the_accuracy_of_the_history(run_folder: Path, capsys: Capture) -> None:
    best = json.loads((run_folder / "training_history.json").read_text())["best"]["test_accuracy"]
    for file in (run_folder / "best_model.pth", run_folder):
        assert evaluate.main(["--checkpoint", str(file), "--device", "cpu", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["top1"] == pytest.approx(best) and found["samples"] == 359
        assert sum(row["samples"] for row in found["per_class"]) == sum(map(sum, found["confusion"])) == 359


def test_a_checkpoint_is_the_last_epoch(run_folder: Path, capsys: Capture) -> None:
    last = json.loads((run_folder / "training_history.json").read_text())["epochs"][-1]
    assert evaluate.main(["--checkpoint", str(run_folder / "checkpoint-latest.pt"), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["top1"], found["loss"]) == (
        pytest.approx(last["test_accuracy"]),
        pytest.approx(last["test_loss"], rel=1e-5),
    )


def test_the_text_and_the_pictures(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--checkpoint", str(run_folder), "--device", "cpu", "--pictures", str(tmp_path)]
    assert evaluate.main(words) == 0
    text = capsys.readouterr().out
    assert "359 images" in text and "top-1" in text and "top-5" in text and "most often taken for" in text
    for name in ("confusion_matrix.png", "worst_images.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_predictions_are_the_networks(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    images = [tmp_path / "a.png", tmp_path / "b.jpg"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images[0])
    Image.fromarray(pixels).resize((50, 30)).save(images[1])
    assert predict.main([str(run_folder), *map(str, images), "--json", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [row["image"] for row in rows] == [str(image) for image in images]
    saved = open_saved_model(str(run_folder), CPU)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)
    scaled = (grey / 255 - saved.facts.mean[0]) / saved.facts.std[0]
    with torch.no_grad():
        expected = saved.network(torch.from_numpy(scaled)[None, None]).softmax(1)[0]
    assert len(rows[0]["predictions"]) == 5
    for guess in rows[0]["predictions"]:
        assert guess["probability"] == pytest.approx(expected[int(guess["class"])].item(), abs=1e-4)
    assert predict.main([str(run_folder), str(images[0]), "--top", "2", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_torch_export_program_answers_as_the_network(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "model.pt2"
    assert export.main([str(run_folder), "-o", str(out)]) == 0
    assert "[n, 1, 16, 16] to logits [n, 10]" in capsys.readouterr().out
    program, network = torch.export.load(out).module(), open_saved_model(str(run_folder), CPU).network
    for count in (1, 3):
        images = torch.randn(count, 1, 16, 16)
        assert torch.allclose(program(images), network(images), atol=1e-4)


@pytest.mark.skipif(find_spec("onnx") is None or find_spec("onnxscript") is None, reason="onnx is not installed")
def test_an_onnx_model_answers_as_the_network(run_folder: Path, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    out = tmp_path / "model.onnx"
    assert export.main([str(run_folder), "-o", str(out)]) == 0
    images = torch.randn(3, 1, 16, 16)
    (found,) = ReferenceEvaluator(str(out)).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = open_saved_model(str(run_folder), CPU).network(images)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.skipif(find_spec("onnx") is not None, reason="onnx is installed")
def test_without_onnx_one_line_says_what_to_install(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert export.main([str(run_folder), "-o", str(tmp_path / "model.onnx")]) == 2
    assert capsys.readouterr().err.endswith(": ONNX needs onnx and onnxscript: pip install onnx onnxscript\n")


def test_a_model_that_cannot_be_exported_leaves_no_file(
    run_folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = open_saved_model(str(run_folder), CPU)
    from ddp_train.evaluation import exporting

    class Undecided(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, :10] * 2

    from dataclasses import replace

    from ddp_core.errors import UserError

    with pytest.raises(UserError, match=r"cannot be exported|answers otherwise"):
        exporting.export(replace(saved, network=Undecided()), str(tmp_path / "m.pt2"))
    assert not list(tmp_path.iterdir())


# Mistakes


def copy(run_folder: Path, to: Path, *left_out: str) -> Path:
    shutil.copytree(run_folder, to, ignore=shutil.ignore_patterns(*left_out))
    return to


def spoil(folder: Path) -> None:
    data = bytearray((folder / "best_model.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "best_model.pth").write_bytes(data)


@pytest.mark.parametrize(
    ("left_out", "change", "message"),
    [
        ("best_model.pth", None, "cannot read {folder}/best_model.pth: No such file"),
        ("config.yaml", None, "there is no config.yaml beside it"),
        ("dataset.json", None, "there is no dataset.json beside it"),
        ("", spoil, "{folder}/best_model.pth is damaged"),
        ("", lambda f: (f / "best_model.pth").write_bytes(b"no"), "is not a checkpoint"),
        ("", lambda f: (f / "dataset.json").write_text("{}"), "dataset.json does not describe a dataset"),
        ("", lambda f: (f / "config.yaml").write_text("model: power"), "does not fit the model in config.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_a_bad_file_is_one_line_and_status_2(
    run_folder: Path, tmp_path: Path, capsys: Capture, command: str, left_out: str, change: object, message: str
) -> None:
    folder = copy(run_folder, tmp_path / "copy", left_out)
    if callable(change):
        change(folder)
    status = {
        "evaluate": lambda: evaluate.main(["--checkpoint", str(folder), "--device", "cpu"]),
        "predict": lambda: predict.main([str(folder), "x.png", "--device", "cpu"]),
        "export": lambda: export.main([str(folder), "-o", str(tmp_path / "m.pt2")]),
    }[command]()
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message.format(folder=folder) in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tta", "flip"], "--tta flip: a mirrored image of digits is not of its class"),
        (["--tta-below", "0.5"], "--tta-below takes a probability above 0, beside --tta, not 0.5"),
        (["--tta", "flip", "--tta-below", "nan"], "--tta-below takes a probability above 0, beside --tta, not nan"),
        (["--tta", "twist"], "argument --tta: invalid choice: 'twist'"),
        (["--batch-size-per-rank", "0"], "--batch-size-per-rank takes a number from 1"),
        (["--amp", "fp16"], "--amp fp16 needs a GPU"),
        (["--pictures", "/nowhere"], "--pictures /nowhere: is not a folder"),
    ],
)
def test_a_wrong_option_is_one_line(run_folder: Path, capsys: Capture, words: list[str], message: str) -> None:
    assert evaluate.main(["--checkpoint", str(run_folder), "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def folder_of_images(folder: Path, classes: tuple[str, ...], size: int = 16) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for at in range(3):
                pixels = np.full((size, size, 3), 60 * number + at, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{at}.png")
    return folder


def test_a_class_of_any_name_and_one_without_test_images(
    trainer: Callable[..., Any], tmp_path: Path, capfd: Capture
) -> None:
    data, run = folder_of_images(tmp_path / "data", ("a\nb", "c\td", "e\x1b[31m")), tmp_path / "run"
    shutil.rmtree(data / "test" / "c\td")
    options = ["--data-dir", str(data), "--epochs", "1", "--batch-size", "6", "--device", "cpu", "--no-tensorboard"]
    done = trainer(*options, "--num-workers", "2", "--out-dir", str(run))
    assert done.returncode == 0, done.stderr
    for note in (f"{data}/test has no images of class c\\td: its", "--num-workers 2: the images are all in memory"):
        assert note in done.stderr
    assert evaluate.main(["--checkpoint", str(run), "--device", "cpu"]) == 0
    text = capfd.readouterr()
    assert "test has no images of class c\\td" in text.err
    rows = text.out.partition("class ")[2].splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["a\\nb", "3"], ["e\\x1b[31m", "3"]]
    image = next((data / "test" / "a\nb").iterdir())
    assert predict.main([str(run), str(image), "--device", "cpu"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[0] == str(image).replace("\n", "\\n") and len(shown) == 4
    assert {row.split()[0] for row in shown[1:]} == {"a\\nb", "c\\td", "e\\x1b[31m"}


def test_data_that_do_not_fit_are_one_line(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddp_train.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, run = folder_of_images(tmp_path / "data", ("cat", "dog")), str(tmp_path / "run")
    words = ["--dataset", "folder", "--data-dir", str(data), "--epochs", "1", "--batch-size", "6", "--device", "cpu"]
    assert main([*words, "--no-tensorboard", "--out-dir", run]) == 0
    capsys.readouterr()
    again = ["--checkpoint", run, "--device", "cpu", "--data-dir"]
    assert evaluate.main([*again, str(data), "--tta", "flip+shifts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 6
    other = folder_of_images(tmp_path / "other", ("cat", "fish"))
    larger = folder_of_images(tmp_path / "larger", ("cat", "dog"), size=24)
    for folder, message in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path, "holds no data (expected there: cifar-10-batches-py, or train/CLASS/*"),
        (other, "its classes are not those that the model was trained on ('fish' is not in its place)"),
    ):
        assert evaluate.main([*again, str(folder)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: --data-dir {folder}: ") and message in error
    shutil.rmtree(larger / "train")  # images of another size are scaled, and the test images alone are enough
    assert evaluate.main([*again, str(larger), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 6


def untrained(run: Path, data: Path) -> Path:
    """The run folder of a network with its first weights."""
    run.mkdir()
    config = parse(["--dataset", "folder", "--data-dir", str(data), "--model", "small"])
    facts = DatasetFacts.of(load_on_ranks("folder", config.data, Ranks()))
    network = create_from_options(config.model, len(facts.classes), facts.image_shape, CPU)
    save_state_dict(run / "best_model.pth", network.state_dict())
    (run / "config.yaml").write_text(dump(config))
    (run / "dataset.json").write_text(facts.dump())
    return run


def test_changed_and_bad_test_images_are_accepted_by_an_option(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(tmp_path / "cache"))
    data = folder_of_images(tmp_path / "data", ("cat", "dog"))
    words = ["--checkpoint", str(untrained(tmp_path / "run", data)), "--device", "cpu"]
    (data / "test" / "cat" / "0.png").rename(data / "test" / "dog" / "relabelled.png")
    assert evaluate.main(words) == 2
    assert "has vanished" in (error := capsys.readouterr().err) and "--changed-data accept" in error
    assert evaluate.main([*words, "--changed-data", "accept", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["per_class"]
    assert [row["samples"] for row in rows] == [2, 4]
    (data / "test" / "dog" / "bad.png").write_bytes(b"no image")
    assert evaluate.main([*words, "--on-bad-sample", "skip"]) == 2
    assert "error: --on-bad-sample skip: 1 of the 7 images of test are bad" in capsys.readouterr().err


def test_the_batch_size_counts_however_small_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(tmp_path / "cache"))
    data = folder_of_images(tmp_path / "data", ("cat", "dog"))
    saved = open_saved_model(str(untrained(tmp_path / "run", data)), CPU)
    dataset = load_split(saved, None, Ranks())
    for size, sizes in ((1, [1] * 6), (4, [4, 2]), (5, [5, 1]), (512, [6])):
        assert sorted(len(batch.labels) for batch in batches_of(dataset, saved, Ranks(), size)) == sorted(sizes)


def test_a_run_with_resident_images_is_evaluated_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(tmp_path / "cache"))
    run = untrained(tmp_path / "run", folder_of_images(tmp_path / "data", ("cat", "dog")))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("pipeline: auto", "pipeline: resident"))
    monkeypatch.setattr("ddp_train.data.sources.image_folder.available_memory", lambda: 0)
    saved = open_saved_model(str(run), CPU)
    dataset = load_split(saved, None, Ranks())
    assert dataset.test.files is not None and saved.config.data.pipeline == "resident"
    assert sum(len(batch.labels) for batch in batches_of(dataset, saved, Ranks(), 4)) == 6


def test_a_run_with_wandb_is_opened_where_wandb_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(tmp_path / "cache"))
    run = untrained(tmp_path / "run", folder_of_images(tmp_path / "data", ("cat", "dog")))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("wandb: false", "wandb: true"))
    monkeypatch.setattr("ddp_train.config.validation._installed", lambda package: False)
    assert open_saved_model(str(run), CPU).config.diagnostics.wandb
