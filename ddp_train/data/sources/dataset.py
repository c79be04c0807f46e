"""Datasets by name: chooses one, prepares it once per node, and loads it on every rank.

name, note = resolve(options)    # one process per run: may download CIFAR-10
dataset = prepare(name, options) # one process per node: decodes into the cache
dataset = load(name, options)    # the other processes, after it: memory-mapped

`load_on_ranks` does the last two on all ranks of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ddp_core.errors import SharedError, UserError
from ddp_train.config.options import DataOptions
from ddp_train.data.sources import cifar10, image_folder, listing, torchvision_files
from ddp_train.data.sources.builtin import load_digits, load_synthetic
from ddp_train.data.sources.pixels import Reading
from ddp_train.data.sources.samples import BadSample, Dataset, DatasetFacts, is_read, same_content
from ddp_train.distributed.process_group import Ranks, gather, on_one_rank_per_node, together

_SHOWN = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel of RGB in [0, 1]: the normalisation that torchvision's weights were trained with."""


def resolve(options: DataOptions) -> tuple[str, str | None]:
    """The dataset to use, and a line for the user where that might not be the expected one.

    Without --dataset: CIFAR-10 in --data-dir, else the image folder there, else CIFAR-10 by download, else digits.
    Errors: UserError for a requested dataset that is neither there nor available, a download that cannot be written,
    and a --data-dir with data in another form.
    """
    data_dir = _data_dir(options)
    if options.dataset in torchvision_files.SOURCES:
        return str(options.dataset), torchvision_files.ensure(str(options.dataset), data_dir)
    if options.dataset not in (None, "cifar10"):
        return str(options.dataset), None
    lacking = cifar10.missing_file(data_dir)
    if cifar10.has_torchvision_folder(data_dir) and lacking is None:
        return "cifar10", None
    if listing.has_image_folder(data_dir):
        if options.dataset == "cifar10":
            return "cifar10", None
        classes = listing.class_names(listing.find_splits(data_dir)["train"])
        if classes == cifar10.CLASSES:
            return "cifar10", None
        return "folder", f"{data_dir} holds an image folder of {len(classes)} classes, not CIFAR-10: training on that"
    if options.val_split is not None and listing.class_folders(data_dir):
        return "folder", None
    if options.dataset is None and (other := listing.other_data(data_dir)):
        raise UserError(f"--data-dir {data_dir}: no train/<class>/, but {other} (CIFAR-10 is: --dataset cifar10)")
    archived = cifar10.has_archive(data_dir)
    reason = (None if archived else cifar10.unreachable()) or cifar10.download(data_dir)
    if reason is None:
        return "cifar10", f"CIFAR-10 was {'unpacked' if archived else 'downloaded'} into {data_dir}"
    if lacking is not None:
        raise UserError(f"{lacking}: is missing, and cannot be downloaded ({reason}); {cifar10.how_to_get(data_dir)}")
    if options.dataset == "cifar10":
        remedy = cifar10.how_to_get(data_dir)
        raise UserError(f"--dataset cifar10: not in {data_dir}, and it cannot be downloaded ({reason}); {remedy}")
    return "digits", f"CIFAR-10 is not in {data_dir} and cannot be downloaded ({reason}): training on digits instead"


def prepare(
    name: str, options: DataOptions, left_out: Iterable[BadSample] = (), trained: DatasetFacts | None = None
) -> Dataset:
    """The slow part of loading, once per node: decode into the cache, or verify the cached copy.

    left_out: samples that other nodes cannot use. Those that this node cannot use are left out too.
    """
    return load(name, options, left_out, trained=trained, verify=True)


def load(
    name: str,
    options: DataOptions,
    left_out: Iterable[BadSample] = (),
    listed: listing.Listed | None = None,
    trained: DatasetFacts | None = None,
    *,
    verify: bool = False,
) -> Dataset:
    """The dataset that resolve() named. Errors: UserError for a missing folder, an image that cannot be read (it is
    named), classes that differ between train and test, and no images.

    listed: the result of list_files(). trained: facts on the data of a model that is to be evaluated; from an image
    folder only the test images are loaded then, at the model's size. verify: compare the decoded copy's checksum.
    """
    data_dir = _data_dir(options)
    if name == "cifar10" and cifar10.use_torchvision_files(data_dir):
        return cifar10.load_torchvision(data_dir, image_size=options.image_size, resize=options.resize, verify=verify)
    if name in ("cifar10", "folder"):
        if name == "cifar10" and trained is None:
            cifar10.check_image_folder(data_dir)
        return image_folder.load_image_folder(
            name,
            data_dir,
            image_size=options.image_size or (cifar10.SIDE if name == "cifar10" else None),
            verify=verify,
            on_bad=options.on_bad_sample,
            accept_changes=options.changed_data == "accept",
            left_out=left_out,
            listed=listed,
            reading=Reading(options.background, options.max_pixels, resize=options.resize),
            trained=trained,
            divided=options.val_split is not None,
        )
    if name in torchvision_files.SOURCES:
        return torchvision_files.load(name, data_dir, options.image_size, options.resize, verify=verify)
    if name == "digits":
        return load_digits()
    if name == "synthetic":
        return load_synthetic(options.synthetic_samples)
    known = ", ".join(("cifar10", *torchvision_files.SOURCES, "folder", "digits"))
    raise UserError(f"--dataset {name}: unknown; known are {known} and synthetic")


def normalised(dataset: Dataset, by: str | None) -> Dataset:
    """The dataset with the mean and deviation of `--normalize`. Errors: UserError for images that are not RGB."""
    if by != "imagenet":
        return dataset
    if (channels := dataset.image_shape[0]) != len(IMAGENET_MEAN):
        raise UserError(f"--normalize imagenet: is for RGB; the images of {dataset.name} have {channels} channel")
    return replace(dataset, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def list_files(name: str, options: DataOptions, trained: DatasetFacts | None = None) -> listing.Listed | None:
    """The part of load() that does not depend on prepare(): the files of an image folder. Errors: UserError."""
    if (data_dir := image_folder_of(name, options)) is None:
        return None
    return listing.scan(data_dir, to_evaluate=trained is not None, divided=options.val_split is not None)


def image_folder_of(name: str, options: DataOptions) -> Path | None:
    """The image folder that load() reads; None for data in another form."""
    data_dir = _data_dir(options)
    is_one = name == "folder" or (name == "cifar10" and not cifar10.use_torchvision_files(data_dir))
    return data_dir if is_one else None


def _data_dir(options: DataOptions) -> Path:
    """--data-dir; its parent where it points at torchvision's folder itself."""
    path = Path(options.data_dir)
    return path.parent if path.name == cifar10.TORCHVISION_FOLDER else path


def load_on_ranks(name: str, options: DataOptions, ranks: Ranks, trained: DatasetFacts | None = None) -> Dataset:
    """The dataset `name` on all ranks of a run: one rank per node prepares it, all use the same samples in the same
    order. A collective. What one node cannot use is left out on all nodes. trained: as in load().

    Errors: UserError, on all ranks alike, also where the nodes hold different data.
    """
    left_out: tuple[BadSample, ...] = ()
    listed: list[listing.Listed | None] = []
    while True:
        found: list[Dataset] = []
        on_one_rank_per_node(
            lambda: found.append(prepare(name, options, left_out, trained)),  # noqa: B023 (runs at once)
            ranks,
            meanwhile=lambda: None if listed else listed.append(list_files(name, options, trained)),
        )
        everywhere = [bad for one in gather([one.left_out for one in found], ranks) for bad in one]
        union = tuple(sorted({sample for bad in everywhere for sample in bad}))
        if all(bad == union for bad in everywhere):
            break
        left_out = union
    dataset = together(lambda: found[0] if found else load(name, options, union, listed[0], trained), ranks)
    dataset = _as_on_first_rank(dataset, options, ranks)
    return replace(dataset, other_ranks_read_files=any(gather(dataset.reads_files, ranks)))


def _as_on_first_rank(dataset: Dataset, options: DataOptions, ranks: Ranks) -> Dataset:
    """The dataset with rank 0's statistics: where there is little memory, they are those of a sample of the images.

    A collective. Errors: UserError, on all ranks alike, where the nodes hold different data.
    """
    facts = gather((dataset.content, dataset.levels, dataset.mean, dataset.std), ranks)
    one = next((rank for rank, (content, *_) in enumerate(facts) if is_read(content)), 0)
    for rank, (content, levels, *_) in enumerate(facts):
        if not same_content(content, facts[one][0]) or levels != facts[one][1]:
            first, other = sorted((one, rank))
            refusal = f"--data-dir {options.data_dir}: rank {other} finds different images there than rank {first}"
            raise SharedError(refusal, speaks=ranks.is_first)
    *_, mean, std = facts[0]
    return replace(dataset, mean=mean, std=std)


def describe_left_out(dataset: Dataset) -> tuple[str, ...]:
    """A line for the user about samples that were left out; () without any."""
    if not dataset.left_out:
        return ()
    more = ", ..." if len(dataset.left_out) > _SHOWN else ""
    named = "; ".join(str(sample) for sample in dataset.left_out[:_SHOWN])
    return (f"{len(dataset.left_out)} bad images are left out: {named}{more}",)
