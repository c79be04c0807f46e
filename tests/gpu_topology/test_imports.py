"""gpu_topology works in an environment that has nothing of the trainer's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpu_topology import snapshot
from tests.fake_nvml.machine import to_topology

_ROOT = Path(__file__).parents[2]
# What is not installed there cannot be found, neither by an import nor by importlib.
_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "jsonargparse", "yaml", "ddp_train", "ddp_launch"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
_EVERY_MODULE = """
import gpu_topology, importlib, pkgutil
names = [found.name for found in pkgutil.walk_packages(gpu_topology.__path__, "gpu_topology.")]
for name in names:
    if name not in ("gpu_topology.__main__", "gpu_topology.verify.worker"):
        importlib.import_module(name)
print(len(names))
"""
_COMMAND = "from gpu_topology.cli import main\nsys.exit(main(sys.argv[1:]))"


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT + code, *arguments]
    return subprocess.run(command, cwd=_ROOT, text=True, capture_output=True, timeout=120, check=False)


def test_every_module_is_imported_without_the_trainers_packages() -> None:
    done = _run(_EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@pytest.mark.parametrize("command", ["report", "select", "env", "snapshot", "draw"])
def test_every_command_on_a_saved_machine_works_without_them(command: str, tmp_path: Path) -> None:
    machine = tmp_path / "machine.json"
    snapshot.save(to_topology("rtx3090_2x_nvlink"), machine)
    done = _run(_COMMAND, command, "--from", str(machine))
    assert done.returncode == 0, done.stderr
    assert done.stdout
