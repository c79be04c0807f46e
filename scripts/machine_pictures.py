"""Makes the pictures of machines and reports in docs/pictures from the machines of the tests.

    python scripts/machine_pictures.py

Needs the `docs` extra for the reports. The machines are link matrices of real ones; what the picture needs besides
(CPUs, PCIe generation) is added here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpu_topology import snapshot  # noqa: E402
from tests.fake_nvml.machine import to_topology  # noqa: E402

MACHINES = ROOT / "tests" / "gpu_topology" / "machines"
OUT = ROOT / "docs" / "pictures"


@dataclass(frozen=True)
class Scene:
    """A machine of the tests, what is added to its GPUs, and the options of `draw`."""

    machine: dict[str, Any]
    cpus: tuple[str, ...]
    pcie: tuple[int, int] = (4, 16)
    options: tuple[str, ...] = ()
    busy: dict[int, dict[str, Any]] = field(default_factory=dict)


def saved(name: str, folder: Path = MACHINES) -> dict[str, Any]:
    """A machine of the tests by name."""
    machine: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return machine


# An A100, three RTX A5000 and a T400 for the display.
WORKSTATION = saved("a100_a5000_t400", ROOT / "tests" / "fake_nvml")
ONE = {"gpus": [{"name": "NVIDIA GeForce RTX 4090", "memory_mib": 24564, "cc": [8, 9], "memory_used_mib": 640}]}

SCENES = {
    "dgx1v": Scene(saved("dgx1v_8xv100"), ("0-19,40-59", "20-39,60-79"), (3, 16), ("--count", "4")),
    "two-bridges": Scene(saved("a30_4x_two_bridges"), ("0-23,48-71", "24-47,72-95"), options=("--count", "2")),
    "one-gpu": Scene(ONE, ("0-31",)),
    "hgx-h100": Scene(saved("h100_hgx_8x"), ("0-47,96-143", "48-95,144-191"), (5, 16)),
    "workstation": Scene(WORKSTATION, ("0-15", "16-31"), busy={4: {"processes": [{"pid": 4312, "used_mib": 17_800}]}}),
}

# name: (scene, columns)
REPORTS = {"report-80": ("workstation", 80), "report-160": ("dgx1v", 160)}


def main() -> int:
    """Draw all; the exit status."""
    OUT.mkdir(exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NCCL_", "OMP_"))}
    tool = [sys.executable, "-m", "gpu_topology"]
    with tempfile.TemporaryDirectory() as folder:
        for name, scene in SCENES.items():
            path = Path(folder) / f"{name}.json"
            gpus = [
                {"pcie": list(scene.pcie), **gpu, "cpus": scene.cpus[gpu.get("numa") or 0], **scene.busy.get(index, {})}
                for index, gpu in enumerate(scene.machine["gpus"])
            ]
            snapshot.save(to_topology({**scene.machine, "gpus": gpus}), path)
            command = [*tool, "draw", "--from", str(path), *scene.options, "-o", str(OUT / f"{name}.svg")]
            subprocess.run(command, cwd=ROOT, env=environ, check=True)
        for name, (scene_name, columns) in REPORTS.items():
            words = ["report", "--from", f"{scene_name}.json", *SCENES[scene_name].options]
            picture = [sys.executable, str(ROOT / "scripts" / "terminal_picture.py"), str(OUT / f"{name}.svg")]
            picture += ["--columns", str(columns), "--prompt", " ".join(["python -m gpu_topology", *words]), "--"]
            command = [sys.executable, "-m", "gpu_topology", *words]
            subprocess.run([*picture, *command], cwd=folder, env={**environ, "PYTHONPATH": str(ROOT)}, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
