"""launch.py as a user meets it: dry runs, help, and mistakes. No rank is started but by the pasted lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddp_core import __version__

KEYS = {
    "selection",
    "environment",
    "nproc_per_node",
    "nnodes",
    "backend",
    "command",
    "shell",
    "training",
    "node_rank",
    "rdzv_endpoint",
    "cluster",
    "warnings",
}


def dry_run(launcher: Any, *args: str, **env: str) -> dict[str, Any]:
    done = launcher.run("--auto", "--dry-run", "--json", *args, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    made: dict[str, Any] = json.loads(done.stdout)
    assert made.keys() == KEYS
    return made


def test_json_on_a_machine_without_gpu(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    made = dry_run(launcher, **fake_driver("no_devices"))
    assert made["selection"]["indices"] == []
    assert made["backend"] == "gloo"
    assert made["selection"]["reason"] in made["warnings"]
    assert made["training"]["device"] == "cpu"
    assert made["training"]["reasons"].keys() == made["training"].keys() - {"reasons"}
    assert {"name", "value", "reason"} <= made["environment"][0].keys()


def test_json_over_the_stand_in_driver(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    """One A100, three RTX A5000, one display T400: the three like ones, and a line that bash takes."""
    # One write a rank: three ranks share the screen.
    text = "import os, sys\nos.write(1, f\"{os.environ['CUDA_VISIBLE_DEVICES']} {sys.argv[1:]}\\n\".encode())"
    program = launcher.script(text, "my program.py")
    made = dry_run(launcher, program.name, "--its option", "$x", **fake_driver("a100_a5000_t400"))
    assert made["nproc_per_node"] == 3
    assert "A5000" in made["selection"]["group"]
    assert made["backend"] == "nccl"
    assert made["training"] is None
    chosen = ",".join(map(str, made["selection"]["indices"]))
    done = subprocess.run(
        ["bash", "-c", made["shell"]], cwd=launcher.folder, env=launcher.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 3 * f"{chosen} ['--its option', '$x']\n"


def test_gpu_that_is_not_there(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    refused(launcher.run("--gpus", "9", **fake_driver("a100_a5000_t400")), "9")
    refused(launcher.run("--gpus", "9", **fake_driver("no_devices")), "9")


def test_a_plan_for_a_saved_machine(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    env = os.environ | fake_driver("a100_a5000_t400")
    root = Path(__file__).parents[2]
    file = launcher.folder / "machine.json"
    command = [launcher_python(launcher), "-m", "gpu_topology", "snapshot", "-o", str(file)]
    subprocess.run(command, cwd=root, env=env, check=True, timeout=60)
    made = dry_run(launcher, "--topology", str(file))
    assert (made["nproc_per_node"], made["selection"]["indices"]) == (3, [0, 2, 4])
    made = dry_run(launcher, "--topology", str(file), CUDA_VISIBLE_DEVICES="0,4", NCCL_DEBUG="WARN")
    assert made["selection"]["indices"] == [0, 4]
    assert {one["name"]: one["value"] for one in made["environment"] if one["kept"]} == {
        "CUDA_VISIBLE_DEVICES": "0,4",
        "NCCL_DEBUG": "WARN",
    }
    done = launcher.run("--auto", "--dry-run", "--topology", str(file))
    assert "NVIDIA RTX A5000" in done.stdout


def launcher_python(launcher: Any) -> str:
    import sys

    return sys.executable


def test_text_of_a_dry_run(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    env = fake_driver("a100_a5000_t400")
    done = launcher.run("--auto", "--dry-run", "--epochs", "3", **env)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("NVIDIA RTX A5000", "not GPU 3 (NVIDIA A100", "PCI_BUS_ID", "--batch-size", "trainer --epochs 3"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout, "no colours in a file"
    assert done.stdout.splitlines()[-1] == dry_run(launcher, "--epochs", "3", **env)["shell"]


def test_a_plan_imports_nothing_slow_that_it_does_not_use(in_process: Callable[[str], str]) -> None:
    code = (
        "import sys; from ddp_launch.main import main; main(['--cpu', '--dry-run', '--json'{}]); names = ["
        "'jsonargparse', 'yaml', 'http.client', 'ssl', 'ddp_launch.failure.known_failures', 'rich', 'asyncio'];"
        "print(sorted(sys.modules.keys() & {{*names}}))"
    )
    assert in_process(code.format("")).splitlines()[-1] == "[]"
    assert in_process(code.format(", '--epochs', '3'")).splitlines()[-1] == "['jsonargparse', 'yaml']", (
        "the check itself"
    )


def test_planning_imports_neither_torch_nor_numpy(in_process: Callable[[str], str]) -> None:
    out = in_process(
        "import sys; from ddp_launch import main as launch\n"
        "assert launch.main(['--auto', '--dry-run', '--json', '--lr', '0.1']) == 0\n"
        "assert launch.main(['--auto', '--dry-run', 'launch.py']) == 0\n"
        "heavy = {'torch', 'numpy', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    assert out


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


MISTAKES = [
    (["--auto", "missing.py"], "missing.py"),
    (["--auto", "folder"], "folder"),
    (["--auto", "secret\x00.py"], "secret"),
    (["--auto", "x" * 5000 + ".py"], "xxx"),
    (["--auto", "-m", "no_such_package.module"], "no_such_package"),
    (["--auto", "--no-python", "no-such-program"], "no-such-program"),
    (["--auto", "--no-such-option"], "--no-such-option"),
    (["--auto", "--dry-run", "--topology", "missing.json"], "missing.json"),
    (["--auto", "--dry-run", "--topology", "folder"], "folder"),
    (["--auto", "--dry-run", "--topology", "wrong.json"], "wrong.json"),
    (["--auto", "--topology", "wrong.json"], "--dry-run"),
    (["--nproc", "nan"], "--nproc"),
    (["--epochs", "-1"], "--epochs"),
    (["--out-dir", "file/run"], "--out-dir"),
    (["--cpu", "--log-dir", "file/logs", "ok.py"], "--log-dir"),
]


def test_mistakes(launcher: Any, in_process: Callable[[str], str]) -> None:
    """Each in one line, with status 2, before torch is imported."""
    (launcher.folder / "folder").mkdir()
    launcher.script("", "file")
    launcher.script("", "ok.py")
    launcher.script('{"schema": "other"}', "wrong.json")
    results = in_process(
        f"""
import contextlib, io, json, os, sys
from ddp_launch import main as launch
os.chdir({str(launcher.folder)!r})
results = []
for argv in {[argv for argv, _ in MISTAKES]!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = launch.main(argv)
    results.append([status, out.getvalue(), err.getvalue()])
assert "torch" not in sys.modules
print(json.dumps(results))
"""
    )
    for (argv, words), (status, out, err) in zip(MISTAKES, json.loads(results), strict=True):
        refused(subprocess.CompletedProcess(argv, status, out, err), words)
    assert not (launcher.folder / "runs").exists(), "nothing is left behind"


def test_help_and_version(launcher: Any) -> None:
    done = launcher.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Where to run" in done.stdout
    assert launcher.run("--version").stdout.startswith(f"launch.py {__version__} ")


def test_a_reader_that_goes_away(launcher: Any) -> None:
    """launch.py --dry-run | true"""
    read, write = os.pipe()
    os.close(read)
    command = [launcher_python(launcher), str(Path(__file__).parents[2] / "launch.py"), "--cpu", "--dry-run", "--json"]
    done = subprocess.run(command, env=launcher.env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.stderr == ""


def test_a_full_disk_under_a_plan(launcher: Any) -> None:
    """launch.py --dry-run > FILE"""
    start = [launcher_python(launcher), str(Path(__file__).parents[2] / "launch.py")]
    with Path("/dev/full").open("wb") as full:
        for words in (["--cpu", "--dry-run"], ["--cpu", "--dry-run", "--json"]):
            done = subprocess.run(
                [*start, *words], env=launcher.env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
            message = "error: cannot write the output: No space left on device\n"
            assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_script_that_may_not_be_read(launcher: Any) -> None:
    launcher.script("").chmod(0)
    refused(launcher.run("--cpu", "program.py"), "no permission to read this script")


@pytest.mark.parametrize("how", ["python -m ddp_launch", "ddp-launch"])
def test_the_version_beside_modules_of_the_users_own(tmp_path: Path, how: str) -> None:
    """`python -m` looks in the current folder first."""
    folder, command = tmp_path / "work", tmp_path / "bin" / "ddp-launch"
    for name in ("launch.py", "launcher/__init__.py", "ddp_train.py", "main.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit('the module of the user was imported')")
    command.parent.mkdir()
    command.write_text("from ddp_launch.__main__ import program\nprogram()\n")  # as pip makes it
    words = ["-m", "ddp_launch"] if how.startswith("python") else [str(command)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *words, "--version"], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("launch.py ")


def test_a_plan_with_characters_outside_the_encoding(launcher: Any) -> None:
    launcher.script("", "pr\xfcf-\U0001f600.py")
    words = ("--cpu", "--dry-run", "pr\xfcf-\U0001f600.py")
    done = launcher.run(*words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"pr\xfcf-\U0001f600.py" in done.stdout
    done = launcher.run("--json", *words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pr\xfcf-\U0001f600.py" in json.loads(done.stdout)["shell"]


def test_a_level_of_logging_that_torch_does_not_know(launcher: Any) -> None:
    """LOGLEVEL is a variable that many programs read, in their own spelling."""
    script = str(launcher.script("print('here')"))
    for level in ("debug", "10", "Verbose"):
        done = launcher.run("--cpu", "--nproc", "1", script, LOGLEVEL=level)
        assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr


def test_a_torch_that_cannot_be_imported_is_one_line(launcher: Any) -> None:
    launcher.script("raise OSError('libcudart.so.13: cannot open shared object file')", "broken/torch/__init__.py")
    script = str(launcher.script("print('here')"))
    done = launcher.run("--cpu", script, PYTHONPATH=str(launcher.folder / "broken"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "cannot import torch: OSError: libcudart.so.13: cannot open shared object file"
    )
    assert "Traceback" not in done.stderr
