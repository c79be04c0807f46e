"""The datasets: what they hold, and what a user is told when they cannot be had."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import DataOptions
from ddp_train.data.sources import dataset as sources
from ddp_train.data.sources import image_folder
from ddp_train.data.sources.builtin import load_digits, stratified
from ddp_train.data.sources.samples import DatasetFacts, channel_statistics
from ddp_train.distributed.process_group import Ranks

Make = Callable[..., Path]


def load(folder: Path, **options: object) -> data.Dataset:
    chosen = DataOptions(dataset="folder", data_dir=str(folder), **options)  # type: ignore[arg-type]
    data.prepare("folder", chosen)
    return data.load("folder", chosen)


def pixels(folder: Path, pattern: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob(pattern))])


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_an_image_folder_is_read_as_it_is(make_folder: Make, held_out: str) -> None:
    folder = make_folder(held_out=held_out, size=(12, 20))
    dataset = load(folder)
    assert dataset.classes == ("cat", "dog") and dataset.image_shape == (3, 12, 20)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 and dataset.train.labels.dtype == np.int64
    assert dataset.test.labels.tolist() == [0] * 3 + [1] * 3
    assert dataset.train.images is not None and dataset.test.images is not None
    assert np.array_equal(dataset.train.images, pixels(folder, "train/*/*.png"))
    assert np.array_equal(dataset.test.images, pixels(folder, f"{held_out}/*/*.png"))
    assert dataset.flip_ok


def test_statistics_are_those_of_the_training_images(make_folder: Make) -> None:
    dataset = load(make_folder())
    assert dataset.train.images is not None
    scaled = dataset.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(0))
    np.testing.assert_allclose(dataset.std, scaled.std(0))
    assert channel_statistics(np.zeros((2, 4, 4, 1), np.uint8)) == ((0.0,), (1 / 255,))


def test_the_statistics_of_large_images_take_little_memory() -> None:
    images = np.zeros((20, 512, 512, 3), np.uint8)
    tracemalloc.start()
    channel_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes


def test_large_images_that_stay_in_files_give_a_smaller_sample(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    read = image_folder.decode_files
    monkeypatch.setattr(image_folder, "_SAMPLE_BYTES", 4 * 16 * 16 * 3)
    monkeypatch.setattr(
        image_folder, "decode_files", lambda files, *a, **k: decoded.append(len(files)) or read(files, *a, **k)
    )
    dataset = image_folder.load_image_folder("folder", make_folder(), limit=0)
    assert decoded[0] == 4 and len(dataset.train) == 12


def test_the_second_load_decodes_nothing(make_folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder()
    first = load(folder)
    assert "decoding 18 images" in capsys.readouterr().err
    second = load(folder)
    assert capsys.readouterr().err == ""
    assert np.array_equal(first.train.images, second.train.images)  # type: ignore[arg-type]


def test_any_change_of_the_folder_is_seen(make_folder: Make) -> None:
    folder = make_folder()
    load(folder)
    image = folder / "train" / "cat" / "0000.png"
    before = image.stat()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert load(folder, changed_data="accept").train.images[0].max() == 0  # type: ignore[index]
    shutil.copy(image, folder / "test" / "dog" / "new.png")
    assert len(load(folder).test) == 7
    image.unlink()
    assert len(load(folder, changed_data="accept").train) == 11
    assert len(load(folder).train) == 11  # accepted for good


def test_a_change_of_the_time_alone_costs_no_decoding(make_folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder()
    image = folder / "train" / "cat" / "0000.png"
    load(folder)
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    load(folder)
    assert capsys.readouterr().err.count("decoding") == 1


def vanish(image: Path) -> str:
    image.unlink()
    return "vanished"


def truncate(image: Path) -> str:
    image.write_bytes(image.read_bytes()[:-20])
    return "has changed: 8"


def flip(image: Path) -> str:
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    return "SHA-256"


def replace_by_name(image: Path) -> str:
    """Size and time stay: the inode alone tells."""
    before, other = image.stat(), image.with_name("other")
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(image)
    return "SHA-256"


def empty(image: Path) -> str:
    image.write_bytes(b"")
    return "0 now"


@pytest.mark.parametrize("damage", [vanish, truncate, flip, replace_by_name, empty])
def test_damage_since_the_last_time_is_named_with_file_and_index(
    make_folder: Make, damage: Callable[[Path], str]
) -> None:
    folder = make_folder()
    load(folder)
    image = folder / "train" / "dog" / "0002.png"
    expected = damage(image)
    for _ in range(2):  # and stays wrong
        with pytest.raises(UserError) as caught:
            load(folder)
        assert str(caught.value).startswith(f"{image} (image 8 of train) ") and expected in str(caught.value)
        assert "\n" not in str(caught.value) and "--on-bad-sample" in str(caught.value)
    with pytest.raises(UserError, match=r"1 of the 1[12] images of train are bad, more than 0.1%"):
        load(folder, on_bad_sample="skip")


def test_other_data_in_the_same_place_are_no_damage(make_folder: Make) -> None:
    folder = make_folder()
    load(folder)
    for number, image in enumerate((folder / "train").rglob("*.png")):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(image)
    dataset = load(folder)
    assert dataset.train.images is not None and sorted(dataset.train.images[:, 0, 0, 0]) == list(range(12))


@pytest.mark.parametrize("limit", [None, 0])
def test_bad_images_are_left_out_and_counted(make_folder: Make, limit: int | None) -> None:
    folder = make_folder(train=1000, test=3, size=(2, 2))
    (folder / "train" / "cat" / "0003.png").write_bytes(b"")
    (folder / "train" / "dog" / "0999.png").write_bytes(b"not an image")
    bad = ["is empty", "cannot be read as an image (not an image that Pillow knows)"]
    shown = [str(folder / "train" / "cat" / "0003.png"), str(folder / "train" / "dog" / "0999.png")]
    with pytest.raises(UserError, match=r"cat/0003.png \(image 3 of train\) is empty; --on-bad-sample skip leaves up"):
        image_folder.load_image_folder("folder", folder, limit=limit)
    for verify in (True, False):
        dataset = image_folder.load_image_folder("folder", folder, verify=verify, on_bad="skip", limit=limit)
        if limit is None:
            assert [(sample.file, sample.reason) for sample in dataset.left_out] == list(zip(shown, bad, strict=True))
            assert [sample.index for sample in dataset.left_out] == [3, 1999]
            assert len(dataset.train) == 1998 and dataset.train.labels.tolist() == [0] * 999 + [1] * 999
            assert np.array_equal(dataset.train.images[3], pixels(folder, "train/cat/0004.png")[0])  # type: ignore[index]
        else:  # only a sample was read
            assert dataset.left_out[0].file == shown[0] and len(dataset.train) in (1998, 1999)
    for number in (4, 5):
        (folder / "train" / "cat" / f"000{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"more than 0\.1%"):
        image_folder.load_image_folder("folder", folder, on_bad="skip", limit=limit)
    with pytest.raises(
        UserError, match=r"; so are 3 more; replace or remove them: more than --on-bad-sample may"
    ) as caught:  # it could not help
        image_folder.load_image_folder("folder", folder, limit=limit)
    assert "--on-bad-sample skip" not in str(caught.value)


def test_mixed_sizes_are_scaled_and_cut(make_folder: Make) -> None:
    folder = make_folder()
    Image.fromarray(np.full((30, 50, 3), 7, np.uint8)).save(folder / "train" / "cat" / "0000.png")
    assert load(folder).image_shape == (3, 224, 224)
    small = load(folder, image_size=10)
    assert small.image_shape == (3, 10, 10)
    assert small.train.images is not None and (small.train.images[0] == 7).all()


def test_other_files_and_nested_folders(make_folder: Make) -> None:
    folder = make_folder()
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "readme.md").write_text("")
    nested = folder / "train" / "dog" / "more"
    nested.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(nested / "UPPER.PNG")
    assert load(folder).train.labels.tolist() == [0] * 6 + [1] * 7


def test_data_too_large_to_keep_stay_files(make_folder: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder()
    decoded = image_folder.load_image_folder("folder", folder)
    shutil.rmtree(os.environ["DDP_TRAIN_CACHE"])
    needed = 18 * 16 * 16 * 3
    for verify in (True, False):
        files = image_folder.load_image_folder("folder", folder, verify=verify, limit=needed - 1)
        assert files.train.images is None and files.train.files is not None
        assert [Path(name).name for name in files.train.files] == [f"{i:04d}.png" for i in range(6)] * 2
        assert (files.mean, files.std) == (decoded.mean, decoded.std)  # of a sample, which here is everything
        assert len(files.test) == len(files.test.files or ()) == 6
    assert capsys.readouterr().err.count("read from files") == 1
    assert image_folder.load_image_folder("folder", folder, limit=needed).train.files is not None  # ranks must agree
    assert image_folder.load_image_folder("folder", folder, limit=needed, verify=True).train.images is not None


def resumed(then: data.Dataset, now: data.Dataset, **facts: object) -> None:
    """Compare the data of a resumed run, as the facts that it wrote to a file say. Errors: UserError."""
    replace(DatasetFacts.of(then), **facts).refuse_other_data(now)  # type: ignore[arg-type]


def test_the_same_files_are_the_same_data_however_they_were_read(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder()
    files = image_folder.load_image_folder("folder", folder, limit=0)
    evaluated = image_folder.load_image_folder("folder", folder, trained=DatasetFacts.of(files))
    assert evaluated.test.images is not None  # so the contents of test/ are known now
    again = image_folder.load_image_folder("folder", folder, limit=0)
    decoded = image_folder.load_image_folder("folder", folder, verify=True)
    assert decoded.train.images is not None
    other_size = load(folder, max_pixels=10**6, image_size=8, background="white")
    copied = image_folder.load_image_folder("folder", shutil.copytree(folder, tmp_path / "copy"), limit=0)
    for now in (again, decoded, other_size, copied):
        resumed(files, now)
        resumed(now, files)
    assert other_size.content == decoded.content


def test_nodes_that_read_more_or_less_have_the_same_data(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has read everything; the other has a copy, of which it has read a sample."""
    folder = make_folder()
    options = DataOptions(dataset="folder", data_dir=str(shutil.copytree(folder, tmp_path / "copy")))
    first = replace(load(folder), mean=(0.1, 0.2, 0.3))
    found = image_folder.load_image_folder("folder", tmp_path / "copy", limit=0)
    mine = [(one.content, one.levels, one.mean, one.std) for one in (first, found)]
    monkeypatch.setattr(sources, "gather", lambda one, ranks: [mine[0], one])
    assert sources._as_on_first_rank(found, options, Ranks()).mean == first.mean
    with pytest.raises(UserError, match="rank 1 finds different images there than rank 0"):
        sources._as_on_first_rank(replace(found, content="unread:abc"), options, Ranks())


def test_other_files_are_other_data_for_a_resumed_run(make_folder: Make) -> None:
    folder = make_folder()
    image = folder / "train" / "cat" / "0000.png"
    decoded, size = load(folder), image.stat().st_size
    pixels = np.asarray(Image.open(image)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    image.write_bytes(image.read_bytes()[:size].ljust(size, b"\0"))
    assert image.stat().st_size == size
    changed = load(folder, changed_data="accept")
    with pytest.raises(UserError, match=r"are not those that the run was trained on \(12 then, 12 now\)"):
        resumed(decoded, changed)
    resumed(decoded, changed, content="0" * 32)  # as in the file of an earlier release
    image.unlink()
    fewer = load(folder, changed_data="accept")
    for facts in ({}, {"content": "0" * 32}):
        with pytest.raises(UserError, match=r"\(12 then, 11 now\)"):
            resumed(decoded, fewer, **facts)


def test_an_unwritable_cache_is_no_failure(make_folder: Make, cache_folder: Path, tmp_path: Path) -> None:
    folder = make_folder()
    cache_folder.write_text("")
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").write_text("")
    dataset = load(folder)
    assert np.array_equal(dataset.train.images, pixels(folder, "train/*/*.png"))  # type: ignore[arg-type]


def break_nothing_there(folder: Path) -> str:
    shutil.rmtree(folder)
    return "no folder train"


def break_no_test(folder: Path) -> str:
    shutil.rmtree(folder / "test")
    return "neither test/ nor val/"


def break_classes(folder: Path) -> str:
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    return "dog, wolf"


def break_empty_class(folder: Path) -> str:
    for path in (folder / "train" / "cat").iterdir():
        path.unlink()
    return "train/cat"


def break_no_classes(folder: Path) -> str:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    return "no class folders"


def break_image(folder: Path) -> str:
    (folder / "test" / "dog" / "0001.png").write_bytes(b"\x89PNG\r\n")
    return "test/dog/0001.png"


def break_link(folder: Path) -> str:
    (folder / "train" / "dog" / "link.png").symlink_to(folder / "nowhere.png")
    return "link.png"


@pytest.mark.parametrize(
    "damage",
    [break_nothing_there, break_no_test, break_classes, break_empty_class, break_no_classes, break_image, break_link],
)
def test_what_is_wrong_is_named_in_one_line(
    make_folder: Make, cache_folder: Path, damage: Callable[[Path], str]
) -> None:
    folder = make_folder()
    expected = damage(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not cache_folder.exists() or [path for path in cache_folder.iterdir() if path.is_dir()] == []


def test_digits_are_split_for_good() -> None:
    dataset = load_digits()
    assert len(dataset.train) + len(dataset.test) == 1797 and not dataset.flip_ok
    assert 350 <= len(dataset.test) <= 370
    shares = np.bincount(dataset.test.labels) / np.bincount(np.r_[dataset.train.labels, dataset.test.labels])
    np.testing.assert_allclose(shares, 0.2, atol=0.005)
    assert np.array_equal(load_digits().test.labels, dataset.test.labels)
    labels = np.array([0, 1] * 50)
    assert stratified(labels, 0.3).sum() == 30 and not np.array_equal(stratified(labels, 0.3), np.arange(100) < 30)
    assert dataset.train.images is not None and dataset.test.images is not None
    assert dataset.train.images.min() == 0 and dataset.train.images.max() == 255
    assert dataset.train.images.shape[1:] == (16, 16, 1) and dataset.image_shape == (1, 16, 16)
    seen = {image.tobytes() for image in dataset.train.images}
    assert sum(image.tobytes() in seen for image in dataset.test.images) == 0


def test_synthetic_images_can_be_learnt_and_are_the_same_every_time() -> None:
    options = DataOptions(dataset="synthetic", synthetic_samples=200)
    dataset, again = data.load("synthetic", options), data.load("synthetic", options)
    assert dataset.image_shape == (3, 32, 32) and len(dataset.train) == 200 and len(dataset.test) == 50
    assert dataset.train.images is not None and dataset.test.images is not None
    assert np.array_equal(dataset.train.images, again.train.images)  # type: ignore[arg-type]
    assert np.bincount(dataset.train.labels).tolist() == [20] * 10
    centres = np.stack([dataset.train.images[dataset.train.labels == label].mean(0) for label in range(10)])
    distances = np.square(dataset.test.images[:, None] - centres[None]).sum((2, 3, 4))
    assert (distances.argmin(1) == dataset.test.labels).all()


def test_an_image_folder_needs_neither_torchvision_nor_scikit_learn(make_folder: Make) -> None:
    program = (
        "import sys\n"
        "from ddp_train import data\n"
        "from ddp_train.config.options import DataOptions\n"
        "options = DataOptions(data_dir=sys.argv[1])\n"
        "name, _ = data.resolve(options)\n"
        "data.prepare(name, options)\n"
        "print(name, len(data.load(name, options).train), 'torchvision' in sys.modules, 'sklearn' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(make_folder())]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "folder 12 False False\n"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="imagenet: unknown; known are cifar10, cifar100, mnist"):
        data.load("imagenet", DataOptions())
