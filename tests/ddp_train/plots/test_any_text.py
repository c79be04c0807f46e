"""Names of any kind in pictures: they are shown as they are, and nothing about a picture ends a run."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from PIL import Image

from ddp_train import evaluate
from ddp_train.main import main
from ddp_train.plots.examination import Picture, confusion_figure, mistakes_figure
from ddp_train.plots.style import literal, new_figure, save, save_if_possible

NAMES = [
    b"a$b$c", rb"\$ $", rb"$\frac{$", b"$", b"caf\xe9", "\u732b".encode(), "\u306e".encode(), "\u0639\u0631".encode(),
    "\U0001f600".encode(), b"two\nlines", b"tab\tbell\x07", b"pipe|d", b"x" * 200, b"%s {0} <b>", b" spaced ",
]  # fmt: skip


def shown(text: Text) -> tuple[str, bool]:
    """What matplotlib makes of a text, and whether it takes it for mathematics."""
    return text._preprocess_math(text.get_text())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [os.fsdecode(name) for name in NAMES])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    text, mathematics = shown(Text(text=literal(name)))
    assert not mathematics
    assert [a for a, b in zip(text, name, strict=True) if b.isprintable()] == [b for b in name if b.isprintable()]
    assert all(letter.isprintable() for letter in text)


def test_names_of_any_letters_can_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    pool = "$\\{}^_%abc \t\n\udce9\u732b\u0639" + "".join(map(chr, range(0x20, 0x24F)))
    names = ["".join(draw.choices(pool, k=draw.choice([1, 3, 30, 200]))) for _ in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (2, 20, 60):
            save(confusion_figure(np.eye(count, dtype=int).tolist(), names[:count]), tmp_path / "confusion.png")
        pictures = [Picture(np.zeros((8, 8, 1), np.uint8), name, name, 0.5) for name in names[:20]]
        save(mistakes_figure(pictures, 20, 60), tmp_path / "worst.png")
        for name in names[:10]:
            save(new_figure(4, 2, name), tmp_path / "title.png")
    notes = capsys.readouterr().err.splitlines()
    assert notes and all("no installed font has" in note for note in notes), "of Chinese or Arabic letters alone"


def test_a_font_that_has_the_letters_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DejaVu Sans has no Japanese; STIX, which comes with matplotlib, has this one letter of it."""
    for name in ("\u306e", "\u732b"):
        figure = confusion_figure([[1, 0], [0, 1]], [name, "dog"])
        save(figure, tmp_path / "picture.png")
        fonts = figure.axes[0].get_yticklabels()[0].get_fontfamily()
        has = [ord(name) in get_font(findfont(FontProperties(family=[font]))).get_charmap() for font in fonts]
        note = capsys.readouterr().err  # for the second: only a machine with Chinese fonts has it
        assert any(has) is (name not in note) and (any(has) or name == "\u732b")


def test_warnings_and_errors_are_one_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowded = new_figure(1, 1, "small")
    for axes in crowded.subplots(6, 6).flatten():
        axes.set_xlabel("much longer than there is room for")
    save(crowded, tmp_path / "crowded.png")
    note = capsys.readouterr().err
    assert note.startswith("note: crowded.png: ") and "collapsed to zero" in note and note.count("\n") == 1

    def wrong() -> None:
        raise RuntimeError("In FT2Font:\n could not load")

    assert save_if_possible(wrong, tmp_path / "none.png") == []  # type: ignore[arg-type]
    assert capsys.readouterr().err == "note: none.png could not be drawn: In FT2Font: could not load\n"
    assert save_if_possible(lambda: new_figure(1, 1, "x"), tmp_path / "missing" / "x.png") == []
    assert "x.png could not be drawn: cannot write" in capsys.readouterr().err


def test_a_run_on_such_classes_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in NAMES:
            folder = tmp_path / "data" / part / os.fsdecode(name)
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                with (folder / f"{number}.png").open("wb") as file:
                    image.save(file, format="png")
    run = tmp_path / "run"
    (run / "training_curves.png").mkdir(parents=True)  # cannot be replaced by a file
    options = (
        f"--dataset folder --data-dir {tmp_path / 'data'} --model tests.ddp_train.techniques.tiny:pooled --epochs 1"
    )
    assert main([*options.split(), "--device", "cpu", "--no-tensorboard", "--out-dir", str(run)]) == 0
    error = capsys.readouterr().err
    assert "Warning" not in error and "Traceback" not in error
    assert error.count("note: training_curves.png could not be drawn") == 1
    assert {"done.json", "model_card.md", "confusion_matrix.png", "worst_images.png"} <= {f.name for f in run.iterdir()}
    card = (run / "model_card.md").read_text(encoding="utf-8")
    assert "| a$b$c | " in card and "| pipe/d | " in card and "| two lines | " in card and "| caf? | " in card
    assert evaluate.main(["--checkpoint", str(run), "--device", "cpu"]) == 0
