"""What the usage of the GPUs shows about a run, in sentences that each state a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from gpu_topology.monitor.usage import LOW, GpuUsage, Usage

IDLE = 10
"""A GPU that never reached this percentage of utilisation did not take part."""

_WAITED, _UNEVEN, _FULL, _HELD_BACK = 0.2, 25.0, 0.95, 0.1


def verdict(usage: Usage) -> tuple[str, ...]:
    """One sentence for each finding that the numbers support, the main one first."""
    gpus = usage.gpus
    known = [gpu for gpu in gpus if gpu.below_50_share is not None]
    working = [gpu for gpu in known if _works(gpu)]
    sentences = [_chief(known, working, usage.seconds)]
    if working:
        sentences += _name_all((gpu for gpu in known if not _works(gpu)), f"stayed idle (never {IDLE}% utilisation)")
        sentences += _uneven(working)
    for gpu in gpus:
        for describe in (_lost, _full, _held_back):
            sentence = describe(gpu)
            if sentence is not None:
                sentences.append(sentence)
    return tuple(sentences)


def _chief(known: Sequence[GpuUsage], working: Sequence[GpuUsage], seconds: float) -> str:
    """Whether the GPUs were kept busy, as a sentence."""
    if not known:
        return "the driver reports no utilisation of these GPUs, so whether they waited is unknown"
    if not working:
        return f"no GPU did any work in these {seconds:.0f} s: utilisation stayed below {IDLE}%"
    waited = fmean(gpu.below_50_share or 0.0 for gpu in working)
    busy = fmean(gpu.utilization_mean or 0.0 for gpu in working)
    if waited >= _WAITED:
        return (
            f"the GPUs in use waited {waited:.0%} of the time (below {LOW}% utilisation; mean {busy:.0f}%): see to "
            "the input pipeline, the batch size, and ranks that wait for each other"
        )
    return f"the GPUs in use were kept busy: mean utilisation {busy:.0f}%, below {LOW}% for {waited:.0%} of the time"


def _uneven(working: Sequence[GpuUsage]) -> list[str]:
    """A line on GPUs with clearly different load; none where they are even."""
    least, most = (pick(working, key=lambda gpu: gpu.utilization_mean or 0.0) for pick in (min, max))
    low, high = least.utilization_mean or 0.0, most.utilization_mean or 0.0
    if high - low < _UNEVEN:
        return []
    return [f"uneven load: GPU {least.index} had a mean utilisation of {low:.0f}%, GPU {most.index} of {high:.0f}%"]


def _lost(gpu: GpuUsage) -> str | None:
    """The line for a GPU that was lost."""
    return None if gpu.lost_after is None else f"GPU {gpu.index} was lost after {gpu.lost_after:.0f} s"


def _full(gpu: GpuUsage) -> str | None:
    """The line for a GPU that nearly ran out of memory."""
    if not gpu.memory_peak or not gpu.memory_total or gpu.memory_peak < _FULL * gpu.memory_total:
        return None
    return f"GPU {gpu.index}: memory peaked at {gpu.memory_peak / gpu.memory_total:.0%}, close to running out"


def _held_back(gpu: GpuUsage) -> str | None:
    """The line for clocks that were held back in many samples."""
    words = [f"{word} in {share:.0%}" for word, share in gpu.throttle_shares if share >= _HELD_BACK]
    return f"GPU {gpu.index}: clocks held back by {', '.join(words)} of the samples" if words else None


def _name_all(gpus: Iterable[GpuUsage], what: str) -> list[str]:
    """One line for all these GPUs; none without any."""
    indices = ", ".join(str(gpu.index) for gpu in gpus)
    return [f"GPU {indices} {what}"] if indices else []


def _works(gpu: GpuUsage) -> bool:
    """Whether a GPU was ever busy."""
    return gpu.utilization_peak is not None and gpu.utilization_peak >= IDLE
