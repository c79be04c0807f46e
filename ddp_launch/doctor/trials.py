"""The doctor's trials, each in a separate process under a time limit: torch, the data set, a short training run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ddp_core.files import is_folder
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.doctor.check import Check
from ddp_launch.doctor.gpus import Probe
from ddp_train.config.options import Config

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable, "-P")
"""For code after -c: the current folder may hold modules that are named like those that torch imports."""
PROBE_S, DATA_S, TRAINING_S = 120, 300, 300
EPOCHS = 2

_PROBE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
found = dict(version=torch.__version__, cuda=torch.version.cuda)
if torch.version.cuda:
    try:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    except Exception:
        pass
    found["architectures"] = torch.cuda.get_arch_list()
    try:
        torch.cuda.init()
        found["devices"] = torch.cuda.device_count()
    except Exception as error:
        found["cuda_error"] = " ".join(str(error).split())
import torchvision
print("\\n" + json.dumps(found))
"""

_DATA = """
import json, sys
from pathlib import Path
from ddp_core.errors import UserError
from ddp_train.config.options import DataOptions
from ddp_train.data.sources import cifar10, dataset, listing
options = DataOptions(**json.loads(sys.argv[1]))
folder = Path(options.data_dir)
try:
    name, train = options.dataset, listing.find_splits(folder).get("train")
    if name is None and train is not None and not cifar10.use_torchvision_files(folder):
        name = None if listing.class_names(train) == cifar10.CLASSES else "folder"
    if name == "folder":
        found = dataset.list_files(name, options)
        sizes = ", ".join(f"{len(split.names)} in {part}" for part, split in found.splits.items())
        print(f"images of {len(found.train.classes)} classes: {sizes}")
    elif train is not None or cifar10.has_torchvision_folder(folder):
        dataset.prepare("cifar10", options)
        found = dataset.load("cifar10", options)
        print(f"{len(found.train.labels)} images for training, {len(found.test.labels)} for testing")
except UserError as error:
    sys.exit(str(error))
"""


def probe_torch() -> Probe:
    """What torch reports about itself. Never raises."""
    status, out, err = _run([*PYTHON, "-c", _PROBE], PROBE_S)
    if status is None:
        return Probe(error=f"importing torch took more than {PROBE_S} s")
    if status != 0:
        return Probe(error=f"torch or torchvision cannot be imported: {_last_line(err)}")
    found = json.loads(out.strip().splitlines()[-1])
    return Probe(**{**found, "architectures": tuple(found.get("architectures", ()))})


def data(config: Config) -> Check:
    """The data folder: CIFAR-10 is there, complete and readable, or a folder of other images can be listed."""
    options = config.data
    if options.dataset not in (None, "cifar10", "folder"):
        return Check("data", "ok", f"--dataset {options.dataset}: the run looks for it")
    folder = Path(options.data_dir)
    # As for a run, the folder may be torchvision's own.
    folder = folder.parent if folder.name == "cifar-10-batches-py" else folder
    words = json.dumps(asdict(replace(options, data_dir=str(folder.absolute()))))
    status, out, err = _run([*PYTHON, "-c", _DATA, words], DATA_S) if is_folder(folder) else (0, "", "")
    if status == 0 and not out.strip():
        given = "data_dir" in config.given
        words = f"{folder} has no CIFAR-10" + ("" if given else ": it is downloaded, or digits are trained on instead")
        expected = "expected there: cifar-10-batches-py/, or train/CLASS/* and test/CLASS/* images"
        return Check("data", "failed" if given else "warning", words, expected)
    if status == 0:
        return Check("data", "ok", f"{folder}: {out.strip()}")
    words = f"reading {folder} took more than {DATA_S} s" if status is None else _last_line(err)
    return Check("data", "failed", words, "put the data there again, or name another folder: --data-dir")


def training(options: LaunchOptions, *, torch_works: bool) -> Check:
    """Two epochs on the bundled digits through the launcher, on the devices that it would choose."""
    if not torch_works:
        return Check("training", "failed", "not tried, since torch does not run")
    try:
        scratch = tempfile.TemporaryDirectory(prefix="ddp-launch-doctor-", ignore_cleanup_errors=True)
    except OSError as error:
        words = f"not tried, since no temporary folder can be made ({error.strerror or error})"
        return Check("training", "failed", words, "free some space, or name another folder: TMPDIR=FOLDER")
    with scratch as folder:
        # An installed package has no launch.py.
        command = [sys.executable, str(ROOT / "ddp_launch" / "__main__.py"), *_devices(options), "--nnodes", "1"]
        command += ["--dataset", "digits", "--epochs", str(EPOCHS), "--out-dir", str(Path(folder) / "run")]
        started = time.monotonic()
        status, _, err = _run(command, TRAINING_S)
        seconds = time.monotonic() - started
        if status == 0:
            history = json.loads((Path(folder) / "run" / "training_history.json").read_text(encoding="utf-8"))
            about, best = history["environment"], history["best"]["test_accuracy"]
            ranks = about["world_size"]
            tried = f"{EPOCHS} epochs on digits, {ranks} rank{'s' * (ranks != 1)}"
            where = "the CPU, no GPU was used" if about["device"] == "cpu" else about["device"]
            words = f"{tried}: {best:.1%} in {seconds:.0f} s on {where}"
            return Check("training", "ok", words)
    if status is None:
        words = f"{EPOCHS} epochs on digits did not end within {TRAINING_S} s"
        return Check("training", "failed", words, "python -m gpu_topology verify tests the GPUs and links")
    shown = shlex.join(["python", "launch.py", *command[2:-2]])
    return Check("training", "failed", f"status {status}: {_last_line(err)}", f"{shown} shows the whole error")


def _devices(options: LaunchOptions) -> list[str]:
    """The launcher's options for the devices that the user chose."""
    words = ["--cpu"] if options.cpu else ["--gpus", ",".join(options.gpus)] if options.gpus else ["--auto"]
    words += ["--nproc", str(options.nproc)] if options.nproc else []
    words += ["--exclude", ",".join(options.exclude)] if options.exclude else []
    return [*words, "--policy", options.policy] + (["--allow-busy"] if options.allow_busy else [])


def _run(command: Sequence[str], limit_s: float) -> tuple[int | None, str, str]:
    """Run a command. Returns its status (None: out of time), stdout and stderr. A timeout ends its process group."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None, "", ""
    finally:
        if process.poll() is None:
            _end(process)
    return process.returncode, out, err


def _end(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to the process group (a launcher then ends its ranks), and SIGKILL if the process still runs."""
    for number, wait_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        os.killpg(process.pid, number)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
        return


def _last_line(text: str) -> str:
    """The last line that begins with "error:", else the last line; without "error: "."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")
