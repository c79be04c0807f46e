"""torch.cuda, torch.accelerator and autocast: devices, streams, events and generators, as bookkeeping."""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING, Any

import torch

from .memory import CPU, Gpu

if TYPE_CHECKING:
    from .install import Ghost


def patch(ghost: Ghost) -> None:
    """Let torch.cuda speak of the ghost's GPUs."""
    replace, there = ghost.patches.replace, Devices(ghost)
    for name in dir(there):
        if not name.startswith("_"):
            replace(torch.cuda, name, getattr(there, name))
    stream, event = streams(ghost)
    replace(torch.cuda, "_lazy_init", lambda: None)
    replace(torch.cuda, "Stream", stream)
    replace(torch.cuda, "Event", event)
    for name in ("current_stream", "default_stream"):
        replace(torch.cuda, name, lambda device=None: stream())
    replace(torch.cuda, "stream", contextlib.nullcontext)
    replace(torch.cuda, "device", ghost.on)
    replace(torch.cuda, "default_generators", (torch.default_generator,) * len(ghost.gpus))
    replace(torch.cuda.nccl, "version", lambda: (2, 27, 7))
    replace(torch.accelerator, "is_available", lambda: True)
    replace(torch.accelerator, "device_count", lambda: len(ghost.gpus))
    replace(torch.accelerator, "current_accelerator", lambda *args, **options: torch.device("cuda"))
    replace(torch.accelerator, "current_device_index", lambda: ghost.current)
    replace(torch.accelerator, "current_stream", lambda device=None: stream())
    replace(torch.accelerator, "synchronize", there.synchronize)
    replace(torch.accelerator, "set_device_index", there.set_device)  # the loader's thread that pins
    autocast = autocast_of(torch.amp.autocast_mode.autocast)
    for owner in (torch, torch.amp, torch.amp.autocast_mode):
        replace(owner, "autocast", autocast)
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_dtype", "set_autocast_enabled"):
        replace(torch, name, as_cpu(getattr(torch, name)))

    profiler = torch.autograd.profiler.profile
    replace(profiler, "__init__", without_cupti(profiler.__init__))


def without_cupti(init: Any) -> Any:
    """The profiler sees what the host does; the driver's own tracing is not there."""

    def __init__(profiler: Any, *args: Any, **options: Any) -> None:
        init(profiler, *args, **{**options, "use_device": None})

    return __init__


def as_cpu(ask: Any) -> Any:
    def asked(*args: Any) -> Any:
        return ask(*("cpu" if value == "cuda" else value for value in args))

    return asked


def autocast_of(base: type) -> type:
    """Autocast of a GPU, by that of the CPU."""

    class Autocast(base):  # type: ignore[misc]
        def __init__(self, device_type: str, *args: Any, **options: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **options)

    return Autocast


def streams(ghost: Ghost) -> tuple[type, type]:
    """The classes of streams and events."""

    class Event:
        """Holds how much had been given to the GPU when it was recorded."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.at: int | None = None

        def record(self, stream: Any = None) -> None:
            self.at = ghost.gpu.queued

        def wait(self, stream: Any = None) -> None:
            pass

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            """It holds the GPU up only where nothing was given to it since."""
            at = self.at or 0
            if ghost.gpu.queued == at:
                ghost.wait("Event.synchronize with nothing queued after it", ghost.here)
            ghost.answered()
            ghost.gpu.done = max(ghost.gpu.done, at)

        def elapsed_time(self, other: Any) -> float:
            return 1.0

    class Stream:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.device, self.cuda_stream = ghost.here, 0

        def synchronize(self) -> None:
            ghost.wait("Stream.synchronize", ghost.here)

        def wait_stream(self, other: Any) -> None:
            pass

        def wait_event(self, event: Any) -> None:
            pass

        def record_event(self, event: Any = None) -> Any:
            event = event or Event()
            event.record(self)
            return event

        def query(self) -> bool:
            return True

        def is_capturing(self) -> bool:
            return False

    return Stream, Event


class Devices:
    """Functions of torch.cuda by their names."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost

    def _gpu(self, device: Any = None) -> Gpu:
        if device is None:
            return self._ghost.gpu
        found = self._ghost.device(device if not isinstance(device, int) else torch.device("cuda", device))
        assert found is not None
        if found.index >= len(self._ghost.gpus):
            raise AssertionError("Invalid device id")
        return self._ghost.gpus[found.index]

    def is_available(self) -> bool:
        return bool(self._ghost.gpus)

    def is_initialized(self) -> bool:
        return True

    def init(self) -> None:
        pass

    def device_count(self) -> int:
        return len(self._ghost.gpus)

    def current_device(self) -> int:
        return self._ghost.current

    def set_device(self, device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index or 0
        if index >= len(self._ghost.gpus):
            raise RuntimeError("CUDA error: invalid device ordinal")
        self._ghost.current = index

    def get_device_name(self, device: Any = None) -> str:
        return self._gpu(device).name

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self._gpu(device).capability

    def get_device_properties(self, device: Any = None) -> Any:
        gpu = self._gpu(device)
        return types.SimpleNamespace(
            name=gpu.name,
            uuid=gpu.uuid.removeprefix("GPU-"),
            total_memory=gpu.total,
            major=gpu.capability[0],
            minor=gpu.capability[1],
            multi_processor_count=132,
            L2_cache_size=50 * 2**20,
        )

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return self._ghost.gpu.capability >= (8, 0)

    def synchronize(self, device: Any = None) -> None:
        self._ghost.wait("torch.cuda.synchronize", self._ghost.here)

    def is_current_stream_capturing(self) -> bool:
        return False

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self._ghost.waits.mode = {"default": 0, "warn": 1, "error": 2}[mode] if isinstance(mode, str) else mode

    def get_sync_debug_mode(self) -> int:
        return self._ghost.waits.mode

    def memory_allocated(self, device: Any = None) -> int:
        return self._gpu(device).allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return self._gpu(device).peak

    def memory_reserved(self, device: Any = None) -> int:
        return self._gpu(device).reserved

    def max_memory_reserved(self, device: Any = None) -> int:
        return self._gpu(device).peak_reserved

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        gpu = self._gpu(device)
        gpu.peak, gpu.peak_reserved = gpu.allocated, gpu.reserved

    def empty_cache(self) -> None:
        for gpu in self._ghost.gpus:
            gpu.reserved = gpu.allocated

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        gpu = self._gpu(device)
        return gpu.total - gpu.used_by_others - gpu.reserved, gpu.total

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        self._gpu(device).fraction = fraction

    def get_per_process_memory_fraction(self, device: Any = None) -> float:
        return self._gpu(device).fraction

    def get_rng_state(self, device: Any = "cuda") -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = "cuda") -> None:
        torch.set_rng_state(state.to(CPU))

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [torch.get_rng_state() for _ in self._ghost.gpus]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        for state in states:
            torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)
