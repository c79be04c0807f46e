"""What the two parts consist of: commands with their limits. `limit_s` is for a data-centre GPU, with room to spare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner import Step

HERE = Path(__file__).parent
TINY = "--dataset synthetic --synthetic-samples 128 --batch-size 32"
GPU_STEPS = frozenset({"monitor", "gpu-tests", "host-waits", "batch-finder", "out-of-memory"})
"""Steps that mean nothing without a GPU or a ghost of one."""


@dataclass(frozen=True)
class Settings:
    """out: the session's folder; data: CIFAR-10, which is unpacked from carry; rehearse: tiny settings."""

    out: Path
    data: Path
    carry: Path
    device: str
    rehearse: bool


def python(*words: object) -> tuple[str, ...]:
    """A command of this Python."""
    return (sys.executable, *map(str, words))


def checks(settings: Settings, *, unpack: bool) -> list[Step]:
    """Part 1: the driver, the tests that need a GPU, where the host waits, NCCL at world size 1."""
    out, rehearse = settings.out, settings.rehearse
    topology = ("-m", "gpu_topology")
    tests = python("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--timeout=280", "tests/gpu")
    # On a ghost, only tests that need no GPU kernel can run; two of them are enough to try the command.
    tests += ("-k", "torchs_gpu or draws_the_same") if rehearse else ("-n", "5", "-k", "not max-autotune")
    waits = python(HERE / "host_waits.py", *(("--only", "default", "EMA") if rehearse else ()))
    seconds = ("--seconds", 1 if rehearse else 10, "--interval", 0.5)
    # verify multiplies matrices, which takes a ghost minutes: a rehearsal runs it on the CPU.
    return [
        Step("report", python(*topology, "report"), 40),
        Step("report-json", python(*topology, "report", "--json"), 40, json=True),
        Step("monitor", python(*topology, "monitor", *seconds, "--out", out / "monitor.jsonl"), 40),
        Step("verify", python(*topology, "verify", *(("--cpu", "--nproc", 1) if rehearse else ())), 120),
        Step("doctor", python("launch.py", "--doctor"), 120),
        Step("host-waits", waits, 120, json=True),
        Step("nccl-one-rank", python(HERE / "nccl_one_rank.py", "--device", settings.device), 90, json=True),
        Step("gpu-tests", tests, 400, needs_s=60),
    ]


def measurements(settings: Settings, *, unpack: bool) -> list[Step]:
    """Part 2: speedruns, images per second, memory, overheads, one profile. The most important come first."""
    return [
        *(_data(settings) if unpack else ()),
        *_speedruns(settings),
        *_speed(settings),
        *_memory(settings),
        *_overheads(settings),
    ]


def _data(settings: Settings) -> list[Step]:
    """CIFAR-10 out of the mosaics; in a rehearsal some random images, which are packed first."""
    mosaics = HERE / "mosaics.py"
    if not settings.rehearse:
        return [Step("data", python(mosaics, "unpack", settings.carry, settings.data), 90)]
    images, packed = settings.out / "images", settings.out / "carry"
    return [
        Step("sample-images", python(HERE / "sample_images.py", images), 60),
        Step("pack", python(mosaics, "pack", images, packed), 60),
        Step("data", python(mosaics, "unpack", packed, _data_of(settings)), 60),
    ]


def _data_of(settings: Settings) -> Path:
    """The folder of the data."""
    return settings.out / "data" if settings.rehearse and settings.data == settings.carry / "data" else settings.data


def _speedruns(settings: Settings) -> list[Step]:
    """Accuracy against seconds by the peers' clock, several seeds in one process."""
    tiny = ("--width-mult", 0.25, "--batch-size", 80, "--epochs", 2) if settings.rehearse else ()

    def runs(name: str, target: float, seeds: int, limit_s: int, *words: object) -> Step:
        """The step of a speedrun with some seeds."""
        common = ("--data-dir", _data_of(settings), "--device", settings.device, "--target", target)
        command = python(HERE / "speedrun_seeds.py", *common, "--seeds", seeds, *words, *tiny)
        return Step(name, command, limit_s, needs_s=20, json=True)

    few = 2 if settings.rehearse else 5
    return [
        runs("speedrun-94", 0.94, few, 120),
        runs("speedrun-94-compiled", 0.94, 1 if settings.rehearse else 2, 120, "--compile"),
        runs("speedrun-96", 0.96, 1, 120),
        runs("speedrun-96-hard-half", 0.96, 1, 120, "--compile", "--hard-samples", 0.5),
    ]


def _speed(settings: Settings) -> list[Step]:
    """Images per second of training, by network and number format."""
    tiny = ("--warm-up", 1, "--steps", 1, "--batch-size", 2) if settings.rehearse else ()
    words = ("--device", settings.device, *tiny)
    return [
        Step(f"images-{model}", python(HERE / "images_per_second.py", model, *words), 75, json=True)
        for model in ("resnet18", "power", "small", "vit")
    ]


def _memory(settings: Settings) -> list[Step]:
    """The batch finder and the recovery from memory that runs out, in a share of the GPU's memory."""
    share = python(HERE / "within_memory.py")
    finder = ["--gib", 4, "--tune", "batch", "--model", "resnet18", "--amp", "bf16", "--dataset", "synthetic"]
    # Evaluation takes two micro-batches at once; where they do not fit it takes fewer.
    recovery = ["--gib", 4, "--batch-size", 1024, "--synthetic-samples", 4096]
    if settings.rehearse:
        finder = ["--gib", 0.02, "--tune", "batch", "--model", "small", "--amp", "off", *TINY.split()]
        recovery = ["--gib", 0.015, "--batch-size", 32, "--synthetic-samples", 64, "--width-mult", 0.125]
    recovery += ["--model", "resnet18", "--amp", "off", "--dataset", "synthetic", "--epochs", 1, "--no-tensorboard"]
    recovery += ["--expect", "is retried"]
    return [
        Step("batch-finder", (*share, *map(str, finder), "--out-dir", str(settings.out / "batch-finder")), 90),
        Step("out-of-memory", (*share, *map(str, recovery), "--out-dir", str(settings.out / "out-of-memory")), 60),
    ]


def _overheads(settings: Settings) -> list[Step]:
    """What the trainer adds to a step, its input, a checkpoint; and a profile."""
    rehearse, device = settings.rehearse, ("--device", settings.device)
    data = () if rehearse else ("--data-dir", _data_of(settings))
    words = f"--model small --epochs 1 {TINY}" if rehearse else "--model resnet18 --epochs 2 --amp bf16"
    profile = ("--profile", *words.split(), *data, *device, "--no-tensorboard", "--out-dir", settings.out / "profile")
    checkpoint = ("--model", "small", "--steps", 2, "--batch-size", 16) if rehearse else ("--batch-size", 512)

    def benchmark(name: str, *options: object) -> Step:
        """The step of a measurement of benchmarks/."""
        start = (HERE / "rehearsed_benchmark.py",) if rehearse else ("-m", "benchmarks")
        rounds = ("--rounds", 1 if rehearse else 5)
        return Step(name.replace("_", "-"), python(*start, name, *rounds, *options), 120, json=True)

    # A ghost lacks the thread in which torch's DataLoader pins memory.
    where = ("--device", "cpu") if rehearse else device
    return [
        Step("profile", python("ddp_train/main.py", *profile), 60),
        benchmark("checkpoint_cost", *checkpoint),
        benchmark("step_overhead", *device),
        benchmark("input_pipeline", *where, *data),
    ]


PARTS: Mapping[int, Callable[..., list[Step]]] = {1: checks, 2: measurements}
