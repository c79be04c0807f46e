"""Reads a `Topology` from the driver, through nvidia-ml-py, in a child process (child_process.py).

Devices are read one by one (gpu.py), then the links between each pair (links.py). Each call is guarded on its own
(library.py): what a card or an old driver does not report stays None, and a lost GPU is listed with its `error`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpu_topology.driver.child_process import InChild, begin
from gpu_topology.driver.gpu import identified, read_gpu, settled
from gpu_topology.driver.health_warnings import concerns
from gpu_topology.driver.library import (
    LOST,
    Device,
    Driver,
    DriverError,
    NoDevicesError,
    Note,
    StuckDriverError,
    describe,
    session,
    start_error,
)
from gpu_topology.driver.links import read_links
from gpu_topology.topology import MOST_GPUS, Gpu, Topology


def read_topology(begun: InChild[Topology] | None = None) -> Topology:
    """Read everything from the driver. Raises a `DriverError` subclass with a remedy when there is nothing to read."""
    if begun is not None:
        return begun.result()
    with begin() as reading:
        return reading.result()


def read_here(note: Note) -> Topology:
    """Like `read_topology`, but in this process: for the child process."""
    with session(note) as driver:
        handles = open_handles(driver)
        devices = [Device(driver, handle, f"GPU {index}") for index, (handle, _) in enumerate(handles)]
        known: dict[object, Any] = {}
        gpus = tuple(
            read_gpu(index, device, known) if problem is None else Gpu(index, error=describe(problem))
            for index, (device, (_, problem)) in enumerate(zip(devices, handles, strict=True))
        )
        gpus = settled(identified(gpus, devices), devices)
        links = read_links(gpus, devices)
        gpus = tuple(
            replace(gpu, error=describe(device.lost)) if device.lost and not gpu.error else gpu
            for gpu, device in zip(gpus, devices, strict=True)
        )
        failed = {gpu.index for gpu in gpus if gpu.error}
        driver_version, cuda_version = _versions(driver)
        return Topology(
            gpus=gpus,
            links=tuple(link for link in links if not {link.a, link.b} & failed),
            driver_version=driver_version,
            cuda_version=cuda_version,
            warnings=concerns(gpus),
        )


def read_or_explain(begun: InChild[Topology] | None = None) -> Topology:
    """Like `read_topology`, but raises only StuckDriverError: without a GPU, `warnings` holds the reason, then what to
    do."""
    try:
        return read_topology(begun)
    except StuckDriverError:
        raise
    except DriverError as error:
        driver_version, cuda_version = error.versions if isinstance(error, NoDevicesError) else (None, None)
        return Topology(
            driver_version=driver_version,
            cuda_version=cuda_version,
            warnings=(str(error), *([f"to use a GPU: {error.remedy}"] if error.remedy else [])),
        )


def open_handles(driver: Driver) -> list[tuple[Any, str | None]]:
    """(handle, NVML error) of each GPU, one of them None. Raises a `DriverError` when there is no GPU."""
    count, problem = driver.try_ask("nvmlDeviceGetCount")
    if problem is not None:
        found = _probe(driver)
        if not any(trouble is None for _, trouble in found):
            raise start_error(problem)
        return found
    if count == 0:
        raise NoDevicesError(
            "the NVIDIA driver works but finds no GPU",
            "see `lspci | grep -i nvidia`; in a virtual machine or container, pass a GPU through",
            _versions(driver),
        )
    return [driver.try_ask("nvmlDeviceGetHandleByIndex", index, about=f"GPU {index}") for index in range(count)]


def _probe(driver: Driver) -> list[tuple[Any, str | None]]:
    """The handles where the driver does not report their number: up to the first index with no GPU, found or lost."""
    found: list[tuple[Any, str | None]] = []
    while len(found) < MOST_GPUS:
        handle, problem = driver.try_ask("nvmlDeviceGetHandleByIndex", len(found), about=f"GPU {len(found)}")
        if problem is not None and problem not in LOST:
            break
        found.append((handle, problem))
    return found


def _versions(driver: Driver) -> tuple[str | None, str | None]:
    """The driver's version, and the newest CUDA version that it supports."""
    number = driver.ask("nvmlSystemGetCudaDriverVersion_v2")
    cuda_version = None if number is None else f"{number // 1000}.{number % 1000 // 10}"
    return driver.ask("nvmlSystemGetDriverVersion"), cuda_version
