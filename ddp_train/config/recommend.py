"""Recommends settings by facts about hardware and data, for the options that the user has not set.

Pure and torch-free: the launcher shows the same recommendations before the start that a worker would
find. Each one names the fact that it follows from. Memory is in bytes; GB in the texts is 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ddp_core.errors import UserError
from ddp_train.config.batch_split import REFERENCE_BATCH, ceil_div, scale_learning_rate
from ddp_train.config.model_families import BASE_LEARNING_RATE, default_rate
from ddp_train.config.options import Config, declared, to_dict
from ddp_train.config.parse import PRESETS, with_values
from ddp_train.config.yaml_file import read_mapping

GB = 10**9
FIXED: dict[str, str | int | float] = {"model": "small", "batch_size": 128, "num_workers": 0, "amp": "off"}
DIGITS_STEPS = 400
GREY = ("digits", "mnist", "fashion_mnist")
ADA = ((20 * GB, "rtx4090"), (15 * GB, "rtx4080"), (10 * GB, "rtx4070"))
"""The presets of a single GPU of compute capability 8.9, by memory."""
VIT = {"cpu": (4, 8, 512, 6), "cuda": (16, 2, 256, 3)}
"""The small transformer by device: images per micro-batch, micro-batches per step, width, layers."""


@dataclass(frozen=True)
class Hardware:
    """A run's hardware. `gpu_memory`: bytes over all ranks (0: unknown); `cpus`: shared by the ranks of this node."""

    device: Literal["cuda", "cpu"]
    world_size: int = 1
    local_world_size: int = 1
    gpu_memory: int = 0
    compute_capability: tuple[int, int] | None = None
    cpus: int = 1
    cpu_flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Recommendation:
    """One setting: option name (with underscores), value, and the fact it follows from."""

    name: str
    value: str | int | float
    reason: str


def recommend(hardware: Hardware, config: Config) -> tuple[Recommendation, ...]:
    """Settings by hardware, only for options that the user has not set (value None or "auto").

    Under --reproducible no setting that affects the bits depends on the number of ranks: model and batch are those of
    one GPU, and a transformer's micro-batches are those of a shard.
    """
    if config.shards is not None:
        memory = hardware.gpu_memory // hardware.world_size
        hardware = replace(hardware, world_size=1, gpu_memory=memory)
    if config.run.disable_auto:
        found = tuple(Recommendation(name, value, "fixed default (--disable-auto)") for name, value in FIXED.items())
    else:
        found = (*_model(hardware, config), *_sizes(hardware, config), _workers(hardware), _precision(hardware))
    return tuple(r for r in found if _open(config, r.name))


def recommend_for_data(
    dataset: str, train_samples: int, global_batch: int, config: Config
) -> tuple[Recommendation, ...]:
    """Settings by data set and global batch, again only for options that are not set."""
    base = default_rate(config.model.model, config.optim.optimizer)
    rule = config.optim.lr_scaling or ("sqrt" if config.optim.lr is None else "none")
    peak = scale_learning_rate(config.optim.lr or base, global_batch, rule)
    epochs, why = _epochs(dataset, train_samples, global_batch)
    augment = {"synthetic": "none"}.get(dataset, "balanced")
    schedulers = ((256, "warm_restarts"), (128, "cosine"), (0, "multistep"))
    scheduler = next(name for least, name in schedulers if global_batch >= least)
    found: tuple[Recommendation, ...] = (
        Recommendation("epochs", epochs, why),
        Recommendation("scheduler", scheduler, f"global batch {global_batch}"),
        Recommendation("augment", augment, f"usual for {dataset}"),
        Recommendation("lr", config.optim.lr or base, f"{config.optim.optimizer} at global batch {REFERENCE_BATCH}"),
        Recommendation("normalize", *_normalisation(dataset, config)),
        Recommendation("lr_scaling", rule, f"peak learning rate {peak:.4g} at global batch {global_batch}"),
    )
    if config.optim.optimizer == "muon":
        rest = config.optim.muon_rest
        why = f"{rest} beside muon at global batch {REFERENCE_BATCH}"
        found = (*found, Recommendation("muon_rest_lr", BASE_LEARNING_RATE[rest], why))
    return tuple(r for r in found if _open(config, r.name))


def _normalisation(dataset: str, config: Config) -> tuple[str, str]:
    """--normalize for a dataset, and why."""
    if config.model.weights == "imagenet" and dataset not in GREY:
        return "imagenet", "as the weights were trained"
    return "data", "the training images' own mean and deviation"


def apply(config: Config, recommendations: Iterable[Recommendation]) -> Config:
    """`config` with the recommendations filled in."""
    return with_values(config, {r.name: r.value for r in recommendations})


def _open(config: Config, name: str) -> bool:
    """Whether an option is not set and has an effect."""
    if name == "batch_size" and config.data.batch_size_per_rank is not None:
        return False
    values, needs = to_dict(config), declared()[name].only_with
    return values[name] in (None, "auto") and (needs is None or needs.holds(values))


def _preset(hardware: Hardware) -> dict[str, Any] | None:
    """The preset of this class of GPU, with its "name"; None where there is none, or for several GPUs."""
    if hardware.world_size > 1 or hardware.device == "cpu" or hardware.compute_capability != (8, 9):
        return None
    name = next((name for least, name in ADA if hardware.gpu_memory >= least), None)
    return None if name is None else {**read_mapping(PRESETS / f"{name}.yaml", name, "option: value"), "name": name}


def _gb(hardware: Hardware) -> str:
    """The GPUs and their memory, for a reason."""
    ranks = f"{hardware.world_size} GPU" + ("s" if hardware.world_size > 1 else "")
    return (
        f"{ranks} with {hardware.gpu_memory / GB:.0f} GB in all"
        if hardware.gpu_memory
        else f"{ranks} of unknown memory"
    )


def _model(hardware: Hardware, config: Config) -> tuple[Recommendation, ...]:
    """The model for the hardware."""
    gpus, memory = hardware.world_size, hardware.gpu_memory
    if (preset := _preset(hardware)) is not None:
        name, width, why = str(preset["model"]), float(preset["width_mult"]), f"as --preset {preset['name']}"
    elif hardware.device == "cpu":
        name, width, why = "small", 1.0, "on the CPU the small network trains in minutes"
    elif gpus >= 3 and memory >= 60 * GB:
        name, width, why = "power", 2.5, _gb(hardware)
    elif gpus >= 2 or memory >= 40 * GB:
        name, width, why = "power", 1.5, _gb(hardware)
    else:
        name, width, why = "small", 1.0, _gb(hardware)
    chosen = (Recommendation("model", name, why),)
    # The width is an option of `power` alone.
    return (*chosen, Recommendation("width_mult", width, why)) if (config.model.model or name) == "power" else chosen


def _sizes(hardware: Hardware, config: Config) -> tuple[Recommendation, ...]:
    """The batch, and the size of a speedrun or transformer. Errors: UserError for a target above that of every size."""
    if (target := config.run.target) is not None:
        automatic = AUTOMATIC[hardware.device]
        aim, size = size_for(automatic if target == "auto" else target, hardware.device)
        why = f"the size for {aim:.0%} on {'the CPU' if hardware.device == 'cpu' else 'a GPU'}"
        chosen = (Recommendation(name, value, why) for name, value in size.settings().items())
        return (Recommendation("target", automatic, "no target was named"), *chosen)
    if config.model.model == "vit":
        return _transformer(hardware, config)
    if hardware.device == "cpu":
        batch, why = 128, "on the CPU more updates learn sooner than larger batches"
    elif (preset := _preset(hardware)) is not None:
        batch, why = int(preset["batch_size"]), f"as --preset {preset['name']}"
    else:
        steps = ((60 * GB, 512), (40 * GB, 384), (20 * GB, 256), (0, 128))
        batch, why = next(b for least, b in steps if hardware.gpu_memory >= least), _gb(hardware)
    least = (config.shards or hardware.world_size) * (config.data.accumulate or 1)
    if batch < least:
        return (Recommendation("batch_size", least, f"at least one image per rank and micro-batch ({why})"),)
    return (Recommendation("batch_size", batch, why),)


def _transformer(hardware: Hardware, config: Config) -> tuple[Recommendation, ...]:
    """Size and batches of `--model vit`. The micro-batch of a rank is the same on any number of ranks, as far as the
    batch can be cut."""
    images, parts, width, layers = VIT[hardware.device]
    where = "the CPU" if hardware.device == "cpu" else "a GPU"
    why = f"the small transformer's setting for {where}"
    shards = config.shards or hardware.world_size
    batch = max(images * parts, shards * (config.data.accumulate or 1))
    each = config.data.batch_size_per_rank
    given = each * hardware.world_size if each is not None else config.data.batch_size or batch
    accumulate = max(1, min(parts, given) // shards)
    over = f"{shards} {'shards' if config.shards else 'rank(s)'}"
    return (
        Recommendation("hidden_dim", width, why),
        Recommendation("n_layers", layers, why),
        Recommendation("batch_size", batch, f"{why}: {parts} micro-batches of {images} images over all ranks"),
        Recommendation("accumulate", accumulate, f"{parts} micro-batches over {over}"),
    )


def _workers(hardware: Hardware) -> Recommendation:
    """Loader workers by cores."""
    cores = max(1, hardware.cpus // hardware.local_world_size)
    shown = f"{cores} core{'s' if cores > 1 else ''} a rank"
    if hardware.device == "cpu":
        return Recommendation("num_workers", min(4, cores // 2), f"{shown}, and training itself uses them")
    return Recommendation("num_workers", max(1, min(8, cores - 1)), f"{shown}, one kept for the step")


def _precision(hardware: Hardware) -> Recommendation:
    """--amp by what the hardware computes fast."""
    if hardware.device == "cpu":
        native = sorted(hardware.cpu_flags & {"amx_bf16", "avx512_bf16"})
        if native:
            return Recommendation("amp", "bf16", f"this CPU computes bf16 natively ({native[0]})")
        return Recommendation("amp", "off", "this CPU has no native bf16, and emulating it is far slower")
    major, minor = hardware.compute_capability or (0, 0)
    shown = f"compute capability {major}.{minor}"
    if major >= 8:
        return Recommendation("amp", "bf16", f"{shown} computes bf16 natively")
    # CUDA programming guide, arithmetic instructions: 6.1 does fp16 at a 64th of its fp32 rate.
    if (major, minor) >= (5, 3) and (major, minor) != (6, 1):
        return Recommendation("amp", "fp16", f"{shown} has fp16 but no native bf16; with loss scaling")
    return Recommendation("amp", "off", f"{shown} computes neither bf16 nor fp16 faster")


def _epochs(dataset: str, train_samples: int, global_batch: int) -> tuple[int, str]:
    """Epochs for a dataset, and why."""
    if dataset in ("digits", "synthetic"):
        steps = ceil_div(train_samples, global_batch)
        epochs = max(20, ceil_div(DIGITS_STEPS, steps)) if dataset == "digits" else 2
        return epochs, f"{train_samples:,} images, {steps} steps an epoch"
    return 30, f"{dataset} of {train_samples:,} images"


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of `speedrun`, by option names; None leaves an option as it is. `lr`: for Muon's matrices."""

    width_mult: float
    epochs: int
    batch_size: int
    lr: float
    muon_rest_lr: float
    progressive_resize: int | None = None
    progressive_resize_end: int | None = None
    progressive_resize_epochs: int | None = None
    crop_padding: int = 2
    cutout: int | None = None
    n_layers: int | None = None
    whiten_bias_epochs: int | None = None

    def settings(self) -> dict[str, float | int]:
        """Option name -> value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


# Sizes of the preset `speedrun`, by device and target accuracy. On GPUs: the settings of airbench (Jordan 2024,
# arXiv:2404.00498, and its later version with Muon) as far as they are options here. On CPUs: up to 0.93 found by trial
# on two cores, with 45,000 of the training images for training and 5,000 for testing, never on the test set; the larger
# ones are wider and deeper, as airbench's are.
LARGEST = {"crop_padding": 4, "cutout": 12, "n_layers": 3}
"""Settings of airbench's network for 96%, besides more width and more epochs."""
SIZES: dict[Literal["cpu", "cuda"], dict[float, Size]] = {
    "cpu": {
        0.80: Size(width_mult=0.25, epochs=2, batch_size=250, lr=0.1, muon_rest_lr=45.0),
        0.89: Size(width_mult=0.5, epochs=5, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.91: Size(width_mult=0.5, epochs=10, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.93: Size(width_mult=1.0, epochs=16, batch_size=250, lr=0.1, muon_rest_lr=60.0),
        0.94: Size(
            width_mult=1.5, epochs=16, batch_size=250, lr=0.1, muon_rest_lr=60.0, n_layers=3, whiten_bias_epochs=3
        ),
        0.96: Size(
            width_mult=2.0, epochs=40, batch_size=500, lr=0.14, muon_rest_lr=90.0, whiten_bias_epochs=3, **LARGEST
        ),
    },
    "cuda": {
        0.90: Size(width_mult=0.5, epochs=6, batch_size=2000, lr=0.24, muon_rest_lr=307.0, whiten_bias_epochs=3),
        0.93: Size(width_mult=1.0, epochs=6, batch_size=2000, lr=0.24, muon_rest_lr=307.0, whiten_bias_epochs=3),
        0.94: Size(width_mult=1.0, epochs=8, batch_size=2000, lr=0.24, muon_rest_lr=307.0, whiten_bias_epochs=3),
        0.96: Size(
            width_mult=2.0, epochs=40, batch_size=1000, lr=0.24, muon_rest_lr=153.0, whiten_bias_epochs=3, **LARGEST
        ),
    },
}
AUTOMATIC: dict[Literal["cpu", "cuda"], float] = {"cpu": 0.89, "cuda": 0.94}
"""The default target: a run of minutes on a CPU, of seconds on a data-centre GPU."""


def size_for(target: float, device: Literal["cpu", "cuda"]) -> tuple[float, Size]:
    """(accuracy, size) of the smallest size for at least `target` (a fraction of 1). Errors: UserError above all."""
    sizes = SIZES[device]
    reaching = [aim for aim in sizes if aim >= target]
    if not reaching:
        where = "a GPU" if device == "cuda" else "the CPU"
        raise UserError(f"--target {target:g}: the largest size for {where} is for {max(sizes):g}")
    return min(reaching), sizes[min(reaching)]
