"""scripts/gpu_session.sh: its runner on steps that fail or hang, its data, and both parts rehearsed on a ghost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import ROOT

HERE = ROOT / "scripts" / "gpu_session"
SCRIPT = str(ROOT / "scripts" / "gpu_session.sh")
STEPS = """
import sys, time
from pathlib import Path
from runner import Step, exit_status, run_steps, table
folder, began = Path(sys.argv[1]), time.monotonic()
def sh(name, text, limit=20, **more):
    return Step(name, ("sh", "-c", text), limit, **more)
steps = [
    sh("fails", "echo seen; echo why >&2; exit 7"),
    sh("hangs", "sleep 60 & echo begun; wait", limit=1),
    Step("absent", ("no-such-program",), 5),
    sh("json", "echo '{}'; echo talk >&2", json=True),
    sh("never", "echo no", needs_s=3600),
]
results = run_steps(steps, folder, 60, {"PATH": "/usr/bin:/bin"})
print(table(results))
assert time.monotonic() - began < 15
good = run_steps([sh("good", "true", needs_s=1)], folder / "good", 30, {"PATH": "/usr/bin:/bin"})
sys.exit(10 * exit_status(results) + exit_status(good))
"""


def test_one_step_costs_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 10, done.stderr
    rows = {line.split()[0]: line.split(maxsplit=4)[1:] for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert rows["fails"][0] == "7" and rows["json"][0] == "0" and rows["absent"][0] == "127"
    assert rows["hangs"][0] == "124" and rows["hangs"][3] == "over its limit of 1 s"
    assert rows["never"][0] == "-" and rows["never"][3].startswith("left out: ")
    assert "   | why" in done.stdout, "the end of the log of what failed"
    assert (tmp_path / "fails.log").read_text() == "seen\nwhy\n"
    assert (tmp_path / "hangs.log").read_text() == "begun\n"
    assert ((tmp_path / "json.json").read_text(), (tmp_path / "json.log").read_text()) == ("{}\n", "talk\n")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [step["status"] for step in summary["steps"]] == [7, 124, 127, 0, None]
    assert "left out" in (tmp_path / "summary.txt").read_text()
    hanging = subprocess.run(["pgrep", "-f", "^sleep 60$"], capture_output=True, text=True).stdout.split()
    assert not [pid for pid in hanging if str(tmp_path) in str(Path(f"/proc/{pid}/fd/1").readlink())]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["3"], "error: argument PART: invalid choice"),
        ([], "error: the following arguments are required: PART"),
        (["1", "--budget", "soon"], "error: argument --budget: 'soon' is not a number of seconds above 0"),
        (["2", "out", "--data", "nowhere"], "no such folder"),
        (["1", "out", "--only", "reprot"], "error: --only reprot: part 1 has report, "),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def mosaics(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "mosaics.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_pixels_come_back_bit_for_bit(tmp_path: Path) -> None:
    chance, wanted = np.random.default_rng(1), {}
    for name, count in (("train/a", 43), ("train/b", 1), ("test/a", 2), ("test/b", 40)):
        (tmp_path / "images" / name).mkdir(parents=True)
        wanted[name] = chance.integers(256, size=(count, 8, 6, 3), dtype=np.uint8)
        for number, pixels in enumerate(wanted[name]):
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number:02d}.png")
    assert mosaics("pack", tmp_path / "images", tmp_path / "packed").returncode == 0
    done = mosaics("unpack", tmp_path / "packed", tmp_path / "data")
    assert (done.returncode, done.stdout.split()[-2:]) == (0, ["86", "images"])
    for name, images in wanted.items():
        files = sorted((tmp_path / "data" / name).iterdir())
        assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), images)
    damaged = next((tmp_path / "packed" / "cifar10-0").glob("*.webp"))
    Image.fromarray(np.zeros((16, 240, 3), np.uint8)).save(damaged, lossless=True)
    done = mosaics("unpack", tmp_path / "packed", tmp_path / "again")
    assert done.returncode == 1 and "not the pixels that were packed" in done.stderr
    (tmp_path / "packed" / "cifar10-1" / "index.json").unlink()
    done = mosaics("unpack", tmp_path / "packed", tmp_path / "again")
    assert done.returncode == 1 and "both parts are needed" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("part", [1, 2])
def test_a_part_rehearsed_on_a_ghost(part: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every step ends with 0 and has written something."""
    if not request.config.getoption("--whole"):
        pytest.skip("minutes: with --whole")
    words = ["-m", "tests.ghost", "bash", SCRIPT, str(part), str(tmp_path / "out"), "--rehearse"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    steps = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert len(steps) > 7 and {step["status"] for step in steps} == {0}
    for step in steps:
        output = tmp_path / "out" / f"{step['name']}.json"
        if output.exists():
            assert output.stat().st_size > 0
        else:
            assert (tmp_path / "out" / f"{step['name']}.log").stat().st_size > 0
