"""`launch.py --doctor`: is this installation, and this machine, fit for training? A line per fact, with what to do.

The checks are in machine.py and gpus.py (facts that can be read) and in trials.py (trials in separate processes). This
module runs them in order, shows each result, and sums up. Imports no torch.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddp_core import __version__
from ddp_core.cli import print_json
from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.doctor import gpus, machine, trials
from ddp_launch.doctor.check import Check
from ddp_train.config.options import Config
from ddp_train.config.parse import parse
from gpu_topology.driver.library import DriverError
from gpu_topology.driver.read import read_topology
from gpu_topology.host.host import Host, read_host
from gpu_topology.select.from_environment import read_inherited
from gpu_topology.select.select import SelectionError, select
from gpu_topology.topology import Topology

SCHEMA = "ddp-launch-doctor/1"
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
# Prefixes of the variables in the report. Others do not explain a problem, but may identify the user.
REPORTED = ("NCCL_", "CUDA_", "TORCH_", "GLOO_", "OMP_", "PYTORCH_", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "PET_")


def run(options: LaunchOptions) -> int:
    """Check, show each line as it comes, and end with a block for a bug report; the exit status."""
    if options.program.kind != "trainer":
        raise OptionError(f"--doctor checks this machine, it runs no program: leave {options.program.name!r} out")
    config = parse(options.program.args, prog="launch.py")
    topology, problem = _read()
    host = read_host()
    console = Console(highlight=False)
    checks = []
    for check in _checks(options, config, topology, problem, host):
        checks.append(check)
        if not options.json:
            _show(console, check)
    report = bug_report(topology, host, checks, os.environ)
    if options.json:
        print_json(to_json(checks, report))
    else:
        _show_end(console, checks, report)
    return exit_status(checks)


def exit_status(checks: Sequence[Check]) -> int:
    """1 where a check failed, else 0: a warning does not prevent training."""
    return int(_worst(checks) == "failed")


def to_json(checks: Sequence[Check], report: str) -> dict[str, object]:
    """`status` (the worst), `checks` ([{name, status, detail, remedy}]) and `report`, the text for a bug report."""
    return {
        "schema": SCHEMA,
        "status": _worst(checks),
        "checks": [asdict(check) for check in checks],
        "report": report,
    }


def bug_report(topology: Topology, host: Host, checks: Sequence[Check], environ: Mapping[str, str]) -> str:
    """Versions, devices, variables and what is not in order, as a block of Markdown. No host, user or folder name."""
    lines = [
        f"ddp-launch {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}",
        "packages: " + ", ".join(f"{name} {version}" for name, version in _versions()),
        f"host: {host.cpu_name or platform.machine()}, {host.usable_cpus} usable CPUs, "
        f"{host.memory_total / 2**30:.0f} GiB, {host.numa_nodes} NUMA nodes",
        f"driver: {topology.driver_version or 'none'}, CUDA up to {topology.cuda_version or 'unknown'}",
        *(f"GPU {gpu.index}: {gpu.label}, {gpu.pci_bus_id}" for gpu in topology.gpus),
        *(f"link {link.a}-{link.b}: {link.label}, peer access {link.p2p or 'unknown'}" for link in topology.links),
        *(f"{name}={value}" for name, value in sorted(environ.items()) if name.startswith(REPORTED)),
        *(f"{check.status}: {check.name}: {check.detail}" for check in checks if check.status != "ok"),
    ]
    return "\n".join(["```", *lines, "```"])


def _read() -> tuple[Topology, DriverError | None]:
    """The topology, and the error where the driver cannot be read."""
    try:
        return read_topology(), None
    except DriverError as error:
        return Topology(), error


def _checks(
    options: LaunchOptions, config: Config, topology: Topology, problem: DriverError | None, host: Host
) -> Iterator[Check]:
    """Every check, one after the other, the quick ones first."""
    yield from machine.installation()
    yield from gpus.devices(topology, problem)
    probe = trials.probe_torch()
    used = Topology() if options.cpu else topology  # with --cpu a torch without CUDA is no fault
    yield from gpus.torch_and_driver(probe, used, _planned(options, topology))
    yield from gpus.links(topology, host)
    yield from gpus.adapters(topology)
    yield from machine.resources(host, config)
    yield machine.loopback()
    yield machine.host_name(host)
    yield trials.data(config)
    yield trials.training(options, torch_works=probe.error is None)


def _planned(options: LaunchOptions, topology: Topology) -> tuple[int, ...]:
    """The GPUs that a run with these options would use; () where the selection fails or chooses none."""
    try:
        return select(topology, read_inherited(topology, os.environ).completes(options.request(topology))).indices
    except SelectionError:
        return ()


def _worst(checks: Sequence[Check]) -> str:
    """The worst status among the checks."""
    return max((check.status for check in checks), key=list(STYLES).index, default="ok")


def _versions() -> Iterator[tuple[str, str]]:
    """(name, version) of each requirement, "missing" where it is not installed."""
    for name in machine.requirements():
        yield name, machine.installed_version(name) or "missing"


def _show(console: Console, check: Check) -> None:
    """Print one check in its three columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, width=7)
    table.add_column(no_wrap=True, width=18, style="bold")
    table.add_column(overflow="fold")
    words = Text(check.detail)
    if check.remedy:
        words.append(f"\n→ {check.remedy}", style="cyan")
    table.add_row(Text(check.status, style=STYLES[check.status]), check.name, words)
    console.print(table)


def _show_end(console: Console, checks: Sequence[Check], report: str) -> None:
    """Print the counts, then the text for a bug report."""
    counts = {status: sum(check.status == status for check in checks) for status in STYLES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(Text(f"\n{said}", style=STYLES[_worst(checks)]))
    console.print(Text("\nFor a bug report:", style="bold"))
    console.print(Text(report), soft_wrap=True)
