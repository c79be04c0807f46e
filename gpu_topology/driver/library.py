"""The only access to nvidia-ml-py: open the driver, make one guarded call at a time, and name what went wrong.

`session()` yields an open `Driver`; `Driver.ask(...)` returns None where the driver does not report it. A `Device`
makes the calls about one GPU, and remembers when it was lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from ddp_core.errors import TopologyError

Note = Callable[[str], None]
"""A function that gets the name of each driver call before it begins: "nvmlDeviceGetName of GPU 3"."""

LIBRARY = "libnvidia-ml.so.1"


class DriverError(TopologyError):
    """The driver cannot be used at all."""


class NoDriverError(DriverError):
    """No driver library, or no kernel module for it."""


class LibraryError(DriverError):
    """The driver library exists, but the loader refuses it."""


class StuckDriverError(DriverError):
    """The driver library hangs or crashes: whether there is a usable GPU is unknown, so the program stops."""

    status = 1


class DriverMismatchError(DriverError):
    """The driver library and the kernel module (or nvidia-ml-py) are of different versions."""


class NoPermissionError(DriverError):
    """This user may not open the device files."""


class NoDevicesError(DriverError):
    """The driver works but finds no GPU; `versions`: of the driver and of CUDA, None where not reported."""

    def __init__(
        self, message: str, remedy: str | None = None, versions: tuple[str | None, str | None] = (None, None)
    ) -> None:
        super().__init__(message, remedy)
        self.versions = versions


# NVML error name -> (error class, what is wrong, what to do). By name: an older nvidia-ml-py may lack some of them.
_START_ERRORS: dict[str, tuple[type[DriverError], str, str]] = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": (
        NoDriverError,
        "no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found)",
        "if there is an NVIDIA GPU, install its driver; in a container, start it with `docker run --gpus all`",
    ),
    "NVML_ERROR_DRIVER_NOT_LOADED": (
        NoDriverError,
        "the NVIDIA driver is installed but its kernel module is not loaded",
        "run `sudo modprobe nvidia` and see `dmesg | grep -i nvidia`; after a kernel update, reboot",
    ),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        DriverMismatchError,
        "the NVIDIA driver library and the loaded kernel module are of different versions (usual after an update)",
        "reboot, or unload and load the nvidia modules",
    ),
    "NVML_ERROR_FUNCTION_NOT_FOUND": (
        DriverMismatchError,
        "the NVIDIA driver library is too old for the installed nvidia-ml-py",
        "update the driver, or install an older nvidia-ml-py",
    ),
    "NVML_ERROR_NO_PERMISSION": (
        NoPermissionError,
        "no permission to talk to the NVIDIA driver",
        "look at `ls -l /dev/nvidia*`; join the group that owns the files (often `video` or `render`)",
    ),
    "NVML_ERROR_GPU_IS_LOST": (
        DriverError,
        "the driver reports a GPU as lost (fallen off the bus or inaccessible)",
        "see `dmesg | grep -i xid`; a reboot, at times a power cycle, brings it back",
    ),
}


class Driver:
    """An open driver. Every call is guarded on its own: one that is unsupported costs only its own reading."""

    def __init__(self, api: ModuleType, note: Note | None = None) -> None:
        self.api, self.note = api, note
        # NVMLLibraryMismatchError is not an NVMLError. Text of the driver that is not UTF-8 must not end the report.
        mismatch = getattr(api, "NVMLLibraryMismatchError", api.NVMLError)
        self.errors: tuple[type[Exception], ...] = (api.NVMLError, mismatch, AttributeError, UnicodeDecodeError)

    def ask(self, function: str, *args: object) -> Any:
        """`api.<function>(*args)`, or None when the driver, its version or the card does not answer."""
        return self.try_ask(function, *args)[0]

    def try_ask(self, function: str, *args: object, about: str = "") -> tuple[Any, str | None]:
        """The answer and no error, or None and the error's NVML name ("NVML_ERROR_GPU_IS_LOST")."""
        if self.note is not None:
            self.note(f"{function} of {about}" if about else function)
        try:
            answer = getattr(self.api, function)(*args)
        except self.errors as error:
            return None, self.error_name(error)
        return (answer.decode(errors="replace") if isinstance(answer, bytes) else answer), None

    def error_name(self, error: Exception) -> str:
        """NVML's name for an error; an exception without an NVML code counts as a function that was not found."""
        code = getattr(error, "value", None)
        return "NVML_ERROR_FUNCTION_NOT_FOUND" if code is None else self._error_names.get(code, f"NVML error {code}")

    @cached_property
    def _error_names(self) -> dict[int, str]:
        """Number -> name, for NVML's error codes."""
        return {code: name for name, code in vars(self.api).items() if name.startswith("NVML_ERROR_")}


# Numbered fields (nvmlFieldValue_t of nvml.h), all read by one call; the scope of a field is an NVLink's number here.
# Where a driver lacks a field, the NVML function for the same value is called.
ECC_MODE, UNCORRECTED_ERRORS, RETIREMENT_PENDING, REMAP_PENDING, REMAP_FAILED = 1, 4, 31, 144, 145
RECOVERY_ACTION = 230  # since driver 570
PCIE_REPLAYS, NVLINK_REPLAYS, NVLINK_RECOVERIES = 94, 52, 59  # since the driver was loaded; NVLink's over all links
NVLINK_STATE, LINKS_TO_SWITCHES = 165, 147
MAX_LINKS = 36  # NVML_NVLINK_MAX_LINKS of nvidia-ml-py 13.615
_FIELDS = (
    *((number, 0) for number in (ECC_MODE, UNCORRECTED_ERRORS, RETIREMENT_PENDING, REMAP_PENDING, REMAP_FAILED)),
    *((number, 0) for number in (RECOVERY_ACTION, PCIE_REPLAYS, NVLINK_REPLAYS, NVLINK_RECOVERIES, LINKS_TO_SWITCHES)),
    *((NVLINK_STATE, link) for link in range(MAX_LINKS)),
)

# nvmlValueType_t -> member of nvmlValue_t.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

# Errors that mean that the card itself is gone, not that one reading is missing.
LOST = ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED")


class Device:
    """Guarded calls about one GPU or MIG slice; `lost` is the NVML error that reported the device as gone.

    Once it is gone no more calls are made: each call to a lost GPU can take seconds.
    """

    def __init__(self, driver: Driver, handle: Any, name: str = "") -> None:
        self.driver, self.handle, self.name = driver, handle, name
        self.lost: str | None = None

    def ask(self, function: str, *args: object) -> Any:
        """`api.<function>(handle, *args)`, or None."""
        return self.try_ask(function, *args)[0]

    def try_ask(self, function: str, *args: object) -> tuple[Any, str | None]:
        """The answer and no error, or None and the error's NVML name."""
        if self.lost is not None:
            return None, self.lost
        answer, problem = self.driver.try_ask(function, self.handle, *args, about=self.name)
        if problem in LOST:
            self.lost = problem
        return answer, problem

    def field(self, number: int, scope: int = 0) -> int | None:
        """The value of a field of `_FIELDS`, None where the driver does not report it. The first use reads them all."""
        return self._fields.get((number, scope))

    @cached_property
    def _fields(self) -> dict[tuple[int, int], int]:
        """Field -> value, for the fields that the device reports."""
        answers = self.ask("nvmlDeviceGetFieldValues", _FIELDS) or ()
        told = ((name, field_value(answer)) for name, answer in zip(_FIELDS, answers, strict=False))
        return {name: value for name, value in told if value is not None}


def field_value(answer: Any) -> int | None:
    """The value of an nvmlFieldValue_t, None where the driver does not report it."""
    kind = answer.valueType
    if answer.nvmlReturn != 0 or not 0 <= kind < len(_MEMBERS):
        return None
    return int(getattr(answer.value, _MEMBERS[kind]))


@contextmanager
def session(note: Note | None = None) -> Iterator[Driver]:
    """Open the driver for the length of a `with`; raises the fitting `DriverError`, with a remedy."""
    driver = Driver(_nvidia_ml_py(), note)
    _, problem = driver.try_ask("nvmlInit")
    if problem in ("NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_FUNCTION_NOT_FOUND") and (words := _refused()):
        raise LibraryError(f"the NVIDIA driver library does not load: {words}", LOADER_REMEDY)
    if problem is not None:
        raise start_error(problem)
    try:
        yield driver
    finally:
        driver.ask("nvmlShutdown")


def _nvidia_ml_py() -> ModuleType:
    """nvidia-ml-py, imported without ctypes.util: it never calls that, and the import would double its own time."""
    name = "ctypes.util"
    light = ModuleType(name)
    light.__dict__["find_library"] = _find_library
    sys.modules.setdefault(name, light)
    try:
        import pynvml
    except ImportError:
        raise NoDriverError(
            "the Python package nvidia-ml-py is not installed, so the driver cannot be asked",
            "pip install nvidia-ml-py",
        ) from None
    finally:
        if sys.modules[name] is light:
            del sys.modules[name]
    module: ModuleType = pynvml
    return module


def _find_library(name: str) -> str | None:
    """`ctypes.util.find_library`, imported only when it is called."""
    from ctypes.util import find_library

    return find_library(name)


LOADER_REMEDY = "install the driver again; see that LD_LIBRARY_PATH leads to no other copy of its library"


def _refused() -> str | None:
    """The loader's message about a library that exists but does not load; None where there is none, or it loads."""
    import ctypes

    found = next((path for path in _places() if os.path.lexists(path)), None)
    words = None
    for name in (LIBRARY, str(found)) if found else (LIBRARY,):
        try:
            ctypes.CDLL(name).nvmlInitWithFlags  # noqa: B018
        except (OSError, AttributeError) as error:
            words = str(error)
            # The loader's message is the same for a missing library and for one built for another processor.
            if "No such file" not in words or LIBRARY not in words:
                return words
        else:
            return None
    return f"{words} ({_described(found)})" if found else None


def _places() -> Iterator[Path]:
    """Paths where the loader looks for the library: ld.so(8)."""
    machine = os.uname().machine
    usual = (f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib", "/usr/lib/wsl/lib")
    for folder in (*os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":"), *usual):
        if folder:
            yield Path(folder) / LIBRARY


def _described(path: Path) -> str:
    """Why the loader skipped this library: a broken link, or the processor in e_machine of its ELF header, elf(5)."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        return f"a link to {path.readlink()}, which does not exist" if path.is_symlink() else f"{error.strerror}"
    kind = int.from_bytes(header[18:20], "big" if header[5:6] == b"\2" else "little")
    known = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 21: "ppc64", 243: "riscv"}
    built_for = known.get(kind, f"ELF machine {kind}")
    return f"it is there, and is built for {built_for}, this machine is {os.uname().machine}"


def start_error(problem: str) -> DriverError:
    """The typed error for an NVML error name that kept the driver from being opened."""
    if problem in _START_ERRORS:
        kind, message, remedy = _START_ERRORS[problem]
        return kind(message, remedy)
    name = problem.removeprefix("NVML_ERROR_").replace("_", " ").lower()
    return DriverError(f"the NVIDIA driver does not answer ({name})", "run `nvidia-smi`; see `dmesg | grep -i nvidia`")


def describe(problem: str) -> str:
    """An NVML error name in words, for `Gpu.error`."""
    known = {
        "NVML_ERROR_GPU_IS_LOST": "GPU is lost: it has fallen off the bus or is inaccessible",
        "NVML_ERROR_RESET_REQUIRED": "GPU needs a reset before it can be used again",
        "NVML_ERROR_NO_PERMISSION": "no permission to use this GPU",
        "NVML_ERROR_UNKNOWN": "the driver reports an unknown error for this GPU",
        "NVML_ERROR_INSUFFICIENT_POWER": "its external power cables are not attached properly",
        "NVML_ERROR_IRQ_ISSUE": "the kernel found an interrupt problem with this GPU",
    }
    return known.get(problem, problem.removeprefix("NVML_ERROR_").replace("_", " ").lower())
