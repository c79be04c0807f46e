"""The check before a run: when it is due, what it makes of the plan, and that it ends with the launcher."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ddp_launch.cli.options import parse
from ddp_launch.plan.plan import LaunchPlan, MachineFacts, make_plan
from ddp_launch.run.preflight import is_due, preflight
from gpu_topology.host.host import read_host
from gpu_topology.topology import LinkLevel
from gpu_topology.verify_cache import Verdict, remember
from tests.fake_nvml.machine import to_topology

GPUS = to_topology("rtx3090_2x_nvlink")
MENDED = Verdict(
    ok=False,
    problem="stopped after 60 s in: send GPU 0 -> GPU 1 (NCCL)",
    settings=(("NCCL_P2P_DISABLE", "1", "verify: with it the same job was right"),),
    when="2026-11-22T07:00:00+00:00",
)
PROGRAM = "import os, json; open('env-' + os.environ['RANK'], 'w').write(json.dumps(dict(os.environ)))"
# A rank of the check that needs neither torch nor GPUs, and goes wrong as long as peer access is on.
BROKEN_PEERS = """
import os
from pathlib import Path
from gpu_topology.verify.journal import FOLDER_VARIABLE, Journal, Step

rank = int(os.environ["RANK"])
journal = Journal(Path(os.environ[FOLDER_VARIABLE]), rank)
for step in (Step("start"), Step("init"), Step("send", 0, 1), Step("send", 1, 0), Step("sum"), Step("done")):
    wrong = step.kind == "sum" and os.environ.get("NCCL_P2P_DISABLE") != "1"
    journal.end(step, "sum 0 of 1 is 3 and should be 2" if wrong else None, 1.0)
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("NCCL_P2P_DISABLE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def plan_for(*words: str) -> LaunchPlan:
    return make_plan(parse([*words, __file__]), MachineFacts(topology=GPUS, host=read_host(), environ={}))


@pytest.mark.parametrize(
    ("words", "doubt", "due"),
    [
        ((), None, False),
        ((), "an IOMMU is on", True),
        (("--nproc", "1"), "an IOMMU is on", False),
        (("--no-preflight",), "an IOMMU is on", False),
        (("--preflight",), None, True),
        (("--cpu", "--preflight"), None, True),
    ],
)
def test_when_it_is_due(words: tuple[str, ...], doubt: str | None, due: bool) -> None:
    plan = dataclasses.replace(plan_for(*words), doubt=doubt)
    assert is_due(plan, parse([*words, __file__])) is due


def test_a_doubt_ends_with_a_verdict_and_without_peer_access() -> None:
    near = dataclasses.replace(
        GPUS, links=tuple(dataclasses.replace(k, p2p="ok", level=LinkLevel.PIX, nvlinks=0) for k in GPUS.links)
    )
    options = parse([__file__])
    host = dataclasses.replace(read_host(), iommu=("dmar0",), iommu_types=("DMA",))
    facts = MachineFacts(topology=near, host=host, environ={})
    assert make_plan(options, facts).doubt is not None
    assert make_plan(options, replace(facts, recall=lambda *_: Verdict(ok=True))).doubt is None
    assert make_plan(options, replace(facts, environ={"NCCL_P2P_DISABLE": "1"})).doubt is None


def test_the_run_goes_on_with_what_mends_it(tmp_path: Path) -> None:
    worker = tmp_path / "rank.py"
    worker.write_text(BROKEN_PEERS)
    screen = io.StringIO()
    console = Console(file=screen, width=300)
    plan = dataclasses.replace(plan_for(), doubt="an IOMMU is on")
    mended = preflight(plan, parse([__file__]), console, (str(worker),))
    assert ("NCCL_P2P_DISABLE", "1") in mended.job.environment
    assert "NCCL_P2P_DISABLE=1" in mended.shell
    why, first, _, last = screen.getvalue().splitlines()
    assert why == "preflight: an IOMMU is on"
    assert first == "preflight: GPU 0, 1 with NCCL, at most 60 s"
    assert last == (
        "preflight: wrong data in the all-reduce: sum 0 of 1 is 3 and should be 2;"
        " the run continues with NCCL_P2P_DISABLE=1: the same job passed with that"
    )


def test_a_check_that_does_not_start_stops_nobody_who_did_not_ask(tmp_path: Path) -> None:
    screen = io.StringIO()
    plan = dataclasses.replace(plan_for(), doubt="an IOMMU is on")
    assert preflight(plan, parse([__file__]), Console(file=screen, width=300), (str(tmp_path / "no.py"),)) is plan
    assert "the run continues unchecked" in screen.getvalue()


def test_gloo_on_the_cpu(launcher: Any) -> None:
    launcher.script(PROGRAM)
    done = launcher.run("--cpu", "--preflight", "program.py")
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stderr.splitlines()
    assert first == "preflight: 2 ranks on the CPU with gloo, at most 60 s"
    assert second.startswith("preflight: every byte and every sum right in ")
    assert (launcher.folder / "env-1").exists()


def test_gpus_that_cannot_work_stop_the_run(launcher: Any, fake_driver: Any) -> None:
    launcher.script(PROGRAM)
    done = launcher.run("--preflight", "program.py", **fake_driver("rtx3090_2x_nvlink"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: preflight: rank ")
    assert "sees 0 GPUs of this selection" in last
    assert last.endswith("--no-preflight starts the run without this check")
    assert not (launcher.folder / "env-0").exists()


def test_what_was_found_before_is_used(launcher: Any, fake_driver: Any) -> None:
    launcher.script(PROGRAM)
    assert remember(GPUS, [gpu.uuid or "" for gpu in GPUS.gpus], MENDED)
    done = launcher.run("program.py", **fake_driver("rtx3090_2x_nvlink"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(
        f"preflight: checked on 2026-11-22: {MENDED.problem}; the run continues with NCCL_P2P_"
    )
    assert json.loads((launcher.folder / "env-1").read_text())["NCCL_P2P_DISABLE"] == "1"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_check(launcher: Any, number: signal.Signals, status: int) -> None:
    launcher.script(PROGRAM)
    process = launcher.start("--cpu", "--preflight", "program.py")
    while len(launcher.alive()) < 2:  # torchrun is there
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == status
    assert "Traceback" not in err
    # A torchrun that was only just being started is ended by the kernel, behind the launcher's own end.
    deadline = time.monotonic() + 2
    while launcher.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not launcher.alive()
