"""Folders as people have them: every file in them is used, named as bad, or counted as skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddp_core.errors import UserError
from ddp_train.config.options import DataOptions
from ddp_train.data.sources import dataset, image_folder, listing
from ddp_train.data.sources.samples import DatasetFacts

Make = Callable[..., Path]


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path, "PNG")


def load(folder: Path, **options: object) -> dataset.Dataset:
    return image_folder.load_image_folder("folder", folder, verify=True, **options)  # type: ignore[arg-type]


def skipped(notes: tuple[str, ...]) -> str:
    """The one line about what is skipped."""
    (line,) = (note for note in notes if " skipped: " in note)
    return line


@pytest.mark.parametrize(
    "names", [("train", "test", "val"), ("Train", "Test", "Valid"), ("TRAINING", "testing", "validation")]
)
def test_splits_are_found_by_their_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for value, name in enumerate(names):
        for label in ("cat", "dog"):
            save(tmp_path / name / label / "a.png", 50 * value)
    for limit in (None, 0):
        found = load(tmp_path, limit=limit)
        assert found.val is not None and len(found.val) == 2
        for value, split in enumerate((found.train, found.test, found.val)):
            if split.images is not None:
                assert (split.images == 50 * value).all()
            else:
                assert all(Path(file).parts[-3] == names[value] for file in split.files or ())
    assert image_folder.scan(tmp_path).splits.keys() == {"train", "test", "val"}
    shutil.rmtree(tmp_path / names[1])
    found = load(tmp_path)
    assert found.val is None and found.test.images is not None and (found.test.images == 100).all()


def test_two_folders_of_one_split_are_refused(make_folder: Make) -> None:
    folder = make_folder()
    shutil.copytree(folder / "test", folder / "val")
    shutil.copytree(folder / "test", folder / "valid")
    with pytest.raises(UserError, match="val/ and valid/ are both val images; keep one"):
        load(folder)


def test_links_to_folders_are_followed_and_loops_are_cut(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder()
    save(tmp_path / "elsewhere" / "deep" / "far.png")
    (folder / "train" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "cat" / "up").symlink_to(folder / "train" / "cat")
    (folder / "train" / "dog" / "root").symlink_to(folder)
    (folder / "train" / "all").symlink_to(folder / "train")
    (folder / "train" / "self").symlink_to(folder / "train" / "self")
    (folder / "train" / "dog2").symlink_to(folder / "train" / "dog")
    (folder / "test" / "dog2").symlink_to(folder / "test" / "dog")
    found = load(folder)
    assert found.classes == ("cat", "dog", "dog2")
    assert np.bincount(found.train.labels).tolist() == [7, 6, 6]
    line = skipped(found.notes)
    assert "links to a folder that is read already (4)" in line, line  # dog/root is met as dog2/root, too
    assert "links to a folder above them (1)" in line and "files without suffix (1)" in line


def test_what_is_no_image_is_counted_in_one_line(make_folder: Make) -> None:
    folder = make_folder()
    for name in ("train/@eaDir/cat", "train/__MACOSX", "test/lost+found", "train/.cache", "train/cat/@eaDir"):
        save(folder / name / "a.png")
    for name in ("a.heic", "b.HEIC", "notes.txt", "0001", ".DS_Store", "._0001.png"):
        (folder / "train" / "dog" / name).write_bytes(b"")
    save(folder / "train" / "loose.png")
    save(folder / "train" / "dog" / "photo.jfif")
    found = load(folder)
    assert found.classes == ("cat", "dog") and len(found.train) == 13
    line = skipped(found.notes)
    assert "12 files and folders are skipped" in line
    for kind in (".heic (2)", "hidden files (2)", "@eaDir/ (2)"):
        assert kind in line


def test_a_class_without_images_says_what_it_has(make_folder: Make) -> None:
    folder = make_folder()
    (folder / "train" / "phone").mkdir()
    (folder / "train" / "phone" / "a.heic").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"train/phone: no images in this class folder \(.*; instead there are .heic \(1\)"
    ):
        load(folder)


def test_a_split_may_lack_classes_but_have_none_of_its_own(make_folder: Make) -> None:
    folder = make_folder(classes=("ant", "bee", "cat", "dog"))
    shutil.rmtree(folder / "test" / "ant")
    shutil.copytree(folder / "test", folder / "val")
    for image in (folder / "val" / "dog").iterdir():  # an empty folder is as none
        image.unlink()
    for limit in (None, 0):
        found = load(folder, limit=limit)
        assert found.classes == ("ant", "bee", "cat", "dog") and found.test is not None and found.val is not None
        assert np.unique(found.test.labels).tolist() == [1, 2, 3] and np.unique(found.val.labels).tolist() == [1, 2]
        assert f"{folder}/test has no images of class ant: its accuracy is that of the other classes" in found.notes
        assert any("val has no images of the classes ant, dog" in note for note in found.notes)
    shutil.move(folder / "train" / "bee", folder / "bee")
    with pytest.raises(
        UserError,
        match=r"train/ and test/ differ in their classes \(ant, bee\): train/ has no images of class bee",
    ):
        load(folder)
    (folder / "train" / "bee").mkdir()
    with pytest.raises(UserError, match="train/bee: no images in this class folder"):
        load(folder)


def test_an_empty_class_folder_in_test_is_accepted_for_training_and_for_evaluating(make_folder: Make) -> None:
    folder = make_folder(classes=("ant", "bee", "cat"))
    for image in (folder / "test" / "bee").iterdir():
        image.unlink()
    found = load(folder)
    again = load(folder, trained=DatasetFacts.of(found))
    for one in (found, again):
        assert one.classes == ("ant", "bee", "cat") and one.test is not None
        assert one.test.labels.tolist() == [0] * 3 + [2] * 3
        lacking = [note for note in one.notes if "has no images of class bee" in note]
        assert len(lacking) == 1
    shutil.rmtree(folder / "train")
    with pytest.raises(UserError, match="no class folders with images in it"):
        for image in (folder / "test").rglob("*.png"):
            image.unlink()
        load(folder, trained=DatasetFacts.of(found))


def test_special_files_end_nothing(make_folder: Make) -> None:
    folder = make_folder()
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    save(folder / "train" / "cat" / "folder.png" / "a.png")
    with pytest.raises(UserError, match=r"pipe\.png \(image 7 of train\) is not a regular file"):
        load(folder)
    (folder / "train" / "cat" / "pipe.png").unlink()
    assert np.bincount(load(folder).train.labels).tolist() == [7, 6]


def test_one_class_and_data_one_folder_too_deep_are_said(make_folder: Make, tmp_path: Path) -> None:
    alone = load(make_folder("alone", classes=("cat",)))
    assert any("has a single class, cat: there is nothing to tell apart" in note for note in alone.notes)
    made = make_folder("deep")
    for part in ("train", "test"):
        shutil.move(made / part, made / "x")
        shutil.move(made / "x", made / part / "images")
    deep = load(made)
    assert any("it holds folders (cat, dog): are the data one folder too deep?" in note for note in deep.notes)
    with pytest.raises(UserError, match=f"but one in deep/: --data-dir {made}"):
        shutil.rmtree(tmp_path / "alone")
        load(tmp_path)
    assert not any("single class" in note for note in load(make_folder("two")).notes)


FORMS = {
    "train-00000-of-00001.parquet": "a Hugging Face dataset",
    "dataset_dict.json": "a Hugging Face dataset",
    "shard-000000.tar": "a shard of a WebDataset",
    "labels.csv": "a table",
    "images.npy": "an array file",
    "data.zip": "an archive",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("below", [False, True])
def test_data_in_another_form_are_named_with_the_way(tmp_path: Path, name: str, below: bool) -> None:
    path = tmp_path / "some" / name if below else tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no folder train/<class>/ with images in it") as caught:
        load(tmp_path)
    assert (
        f"{name}, " in str(caught.value) and FORMS[name] in str(caught.value) and "train/<class>" in str(caught.value)
    )
    with pytest.raises(UserError, match=FORMS[name]):  # never digits in place of the user's own data
        dataset.resolve(DataOptions(data_dir=str(tmp_path)))


def test_a_table_beside_one_folder_of_images_is_what_is_named(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    with pytest.raises(UserError, match=r"but labels\.csv, a table: move each image that it lists"):
        load(tmp_path)


def test_a_folder_of_classes_alone_says_where_to_put_them(make_folder: Make) -> None:
    folder = make_folder() / "train"
    for call in (lambda: load(folder), lambda: dataset.resolve(DataOptions(data_dir=str(folder)))):
        with pytest.raises(UserError, match=r"folders of images \(cat, dog\): --val-split"):
            call()
    for path in (folder, folder.parent):  # with it, neither test/ nor train/ is needed
        shutil.rmtree(folder.parent / "test", ignore_errors=True)
        found = load(path, divided=True)
        assert found.test is None and len(found.train) == 12 and found.classes == ("cat", "dog")


def test_a_flat_test_folder_beside_train_is_left_out(make_folder: Make) -> None:
    """As Kaggle's "cats and dogs" has it: test/ without classes, whose answers nobody has."""
    folder = make_folder()
    shutil.copytree(folder / "test", folder / "val")
    shutil.rmtree(folder / "test")
    for number in range(3):
        save(folder / "test" / f"{number}.png")
    found = load(folder)
    assert found.val is None and found.test is not None and len(found.test) == 6, "val/ is evaluated"
    assert f"{folder}/test is not evaluated: no class folders with images in it" in found.notes
    assert "images outside of a class folder (3)" in skipped(found.notes)
    shutil.rmtree(folder / "val")
    with pytest.raises(UserError, match=r"--val-split 0\.1 .*; test/ has no class folders with images in it"):
        load(folder)
    assert len(load(folder, divided=True).train) == 12


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("a.png", "b.png"), "but images in no class folder: move each into train/<class>/"),
        (("cat/a.png", "dog/sub/b.png"), "but images in cat, and none directly in dog: move the class folders into"),
        (("test/cat/a.png", "test/dog/a.png"), "but class folders in test/ alone: move the class folders into train/"),
    ],
)
def test_images_that_miss_the_layout_say_where_to_move_them(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    for name in files:
        save(tmp_path / name)
    with pytest.raises(UserError, match="no folder train/<class>/ with images in it, but") as caught:
        load(tmp_path)
    assert words in str(caught.value)


# Trees of all kinds

NAMES = st.sampled_from(
    [
        "a.png",
        "b.PNG",
        "c.jfif",
        "d.txt",
        "e",
        "._f.png",
        ".g",
        "h.jpg.part",
        "i.tiff",
        "Thumbs.db",
        "j k.png",
        "ü.png",
        "l\nm.png",
        "\udcff.png",
    ]
)
FOLDERS = st.sampled_from(
    ["cat", "dog", "@eaDir", "__MACOSX", "lost+found", ".git", "x y", "é", "sub.png", "Train", "test"]
)
TOP = st.sampled_from(["cat", "dog", "cat", "dog", "@eaDir", ".git"])
TREES = st.lists(
    st.tuples(
        st.sampled_from(["train", "test"]),
        st.tuples(TOP, st.lists(FOLDERS, max_size=2)).map(lambda pair: (pair[0], *pair[1])),
        NAMES,
        st.sampled_from(["image", "empty", "link", "loop"]),
    ),
    max_size=12,
)


@settings(max_examples=80, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=TREES)
def test_no_file_of_any_tree_is_lost(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[str, tuple[str, ...], str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            save(folder / part / label / "0.png")
    for part, folders, name, what in tree:
        path = folder.joinpath(part, *folders, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            continue
        if what == "image":
            save(path)
        elif what == "empty":
            path.write_bytes(b"")
        else:
            path.symlink_to(path.parent if what == "loop" else folder / "nowhere")
    try:
        found = listing.scan(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return
    listed = {file for split in found.splits.values() for file in split.files}
    assert len(listed) == sum(len(split.names) for split in found.splits.values())
    passed_over = 0
    for root, folders, files in os.walk(folder):  # links are not followed
        inside = Path(root).relative_to(folder).parts
        others = [
            name for name in folders if name.startswith(".") or name.lower() in ("@eadir", "__macosx", "lost+found")
        ]
        if inside:
            passed_over += len(others) + sum((Path(root) / name).is_symlink() for name in folders if name not in others)
            passed_over += sum(f"{root}/{name}" not in listed for name in files)
        folders[:] = [name for name in folders if name not in others]
    count = int(skipped(found.notes).split(": ")[1].split()[0].replace(",", "")) if passed_over else 0
    assert count == passed_over
    try:
        whole = load(folder)
        assert len(whole.train) + len(whole.test) == len(listed)
    except UserError as error:
        assert "\n" not in str(error)
