"""Data formats that the trainer does not read: their names, and how to turn each into an image folder."""

from __future__ import annotations

from pathlib import Path

_SAVE = "save its images as train/<class>/*.png and test/<class>/*.png"
_LOAD = "load_dataset(...) or load_from_disk(...), then row['image'].save(...) for each row"
FORMATS = {
    (".parquet", ".arrow", "dataset_dict.json", "dataset_info.json"): ("a Hugging Face dataset", f"{_SAVE} ({_LOAD})"),
    (".tar",): ("an archive, such as a shard of a WebDataset", f"unpack it and {_SAVE}"),
    (".zip", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".7z", ".rar"): ("an archive", f"unpack it and {_SAVE}"),
    (".csv", ".tsv", ".jsonl"): ("a table", "move each image that it lists into train/<class>/ or test/<class>/"),
    (".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pickle", ".mat"): (
        "an array file",
        f"{_SAVE} (Image.fromarray(row).save(...) for each row)",
    ),
    (".tfrecord", ".tfrecords", ".rec", ".lmdb", ".beton", ".mds"): ("a record file", _SAVE),
}


def other_format(path: Path) -> str | None:
    """The format of a file by its name, and how to train on it; None for a name that is not in FORMATS."""
    name = path.name.lower()
    if name.startswith("cifar-10") or name.endswith("_32x32.mat"):  # torchvision's files, which the trainer reads
        return None
    for endings, (what, way) in FORMATS.items():
        if name.endswith(endings):
            return f"{path.name}, {what}: {way}, or train on it by a script of your own (launch.py --auto SCRIPT)"
    return None
