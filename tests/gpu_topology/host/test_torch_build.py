"""The installed torch as it is read without an import, and the build that fits a driver and its GPUs."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from gpu_topology.host.torch_build import (
    BUILDS,
    TorchBuild,
    build_for,
    driver_way_out,
    has_code,
    read_torch_build,
    way_out,
)

CU130 = TorchBuild("2.14.1+cu130", "13.0", BUILDS["13.0"])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package torch, before all others."""
    folder = tmp_path / "torch"
    (folder / "lib").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return folder


def test_version_cuda_and_architectures_are_read_without_an_import(installed: Path) -> None:
    (installed / "version.py").write_text("__version__ = '2.14.1+cu126'\ncuda: Optional[str] = '12.6'\nhip = None\n")
    assert read_torch_build() == TorchBuild("2.14.1+cu126", "12.6", BUILDS["12.6"]), "the published list"
    library = b"x\0sm_thing\0y" * 9 + b"\0sm_80 sm_86 compute_90\0rest"
    (installed / "lib/libtorch_python.so").write_bytes(library.replace(b"\0sm_thing", b"\0no"))
    found = read_torch_build()
    assert found is not None and found.architectures == ("sm_80", "sm_86", "compute_90"), "the compiled list"


@pytest.mark.parametrize("flags", [4, 5], ids=["constants of their own", "constants beside the code"])
def test_the_architectures_are_found_in_a_library_of_the_linker(installed: Path, flags: int) -> None:
    """Two segments: code, which holds no words of its own, and constants, which an older linker puts beside it."""
    (installed / "version.py").write_text("__version__ = '2.14.1+cu126'\ncuda = '12.6'\n")
    code, constants = b"\x90" * 100, b"\0sm_80 sm_90\0rest"
    if flags == 4:
        code = b"\0sm_code\0".ljust(100, b"\x90")
    start = 64 + 2 * 56
    header = b"\x7fELF\2\1".ljust(32, b"\0") + struct.pack("<QQIHHHHHH", 64, 0, 0, 64, 56, 2, 0, 0, 0)
    parts = [(5, start, len(code)), (flags, start + len(code), len(constants))]
    segments = b"".join(struct.pack("<IIQQQQQQ", 1, rights, at, at, at, n, n, 1) for rights, at, n in parts)
    (installed / "lib/libtorch_python.so").write_bytes(header + segments + code + constants)
    found = read_torch_build()
    assert found is not None and found.architectures == ("sm_80", "sm_90")
    (installed / "lib/libtorch_python.so").write_bytes((header + segments)[:100])
    found = read_torch_build()
    assert found is not None and found.architectures == BUILDS["12.6"], "a library that is cut short"


def test_a_build_for_the_cpu_says_nothing_of_gpus(installed: Path) -> None:
    (installed / "version.py").write_text("__version__ = '2.14.1+cpu'\ncuda: Optional[str] = None\n")
    assert read_torch_build() is None


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80", "sm_86"), (8, 9), True),  # a later minor version
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("sm_80", "compute_80"), (9, 0), True),  # PTX
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),  # for that very chip
        (("sm_120",), (12, 1), True),
    ],
)
def test_which_gpus_code_runs_on(architectures: tuple[str, ...], capability: tuple[int, int], runs: bool) -> None:
    assert has_code(architectures, capability) == runs


@pytest.mark.parametrize(
    ("capabilities", "cuda", "build"),
    [
        ([(8, 0)], "12.4", "12.6"),
        ([(10, 0)], "12.8", "12.8"),
        ([(6, 1), (7, 0)], "13.0", "12.6"),
        ([(9, 0)], "13.0", "13.0"),
        ([(3, 7)], "13.0", None),
        ([(8, 0)], "11.4", None),
    ],
)
def test_the_build_that_fits(capabilities: list[tuple[int, int]], cuda: str, build: str | None) -> None:
    assert build_for(capabilities, cuda) == build


def test_the_way_out_is_exact() -> None:
    assert CU130.too_new_for("13.0", "580") is CU130.too_new_for(None, None) is None
    assert CU130.too_new_for("12.4", "550.54.15") == (
        "torch 2.14.1+cu130 is built for CUDA 13.0, the driver 550.54.15 goes up to 12.4"
    )
    index = "--index-url https://download.pytorch.org/whl/cu126`"
    assert driver_way_out("13.0", [(8, 0)], "12.4").endswith(index)
    assert driver_way_out("13.0", [(8, 0)], "11.4") == "update the driver to 580 or newer"
    assert driver_way_out("13.0", [(7, 0)], "12.2").startswith(
        "install the build that fits this driver and these GPUs: "
    )
    newer = driver_way_out("13.0", [(5, 2)], "11.4")
    assert newer.startswith("update the driver to 525 or newer and install the build") and newer.endswith(index)
    assert driver_way_out("13.0", [(3, 7)], "11.4") == "torch 2.11 and later have no code for these GPUs (sm_37)"
    assert driver_way_out("14.0", [(8, 0)], "11.4") == "update the driver"
    assert way_out([(6, 1)], "13.0").endswith(index) and "none" in way_out([(3, 7)], "13.0")
