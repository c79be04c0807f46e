"""The kept verdicts: what they are kept for, and that a bad file is no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_topology.topology import Topology
from gpu_topology.verify_cache import PairResult, Verdict, recall, remember

MACHINE = Topology(driver_version="580.95.05")
UUIDS = ("GPU-b", "GPU-a")
FOUND = Verdict(
    ok=False,
    problem="stopped in: copy GPU 0 -> GPU 1",
    settings=(("NCCL_P2P_DISABLE", "1", "with it the same job was right"),),
    remedy="turn ACS off",
    pairs=(PairResult(0, 1, "copy", 12.5), PairResult(1, 0, "nccl", None, "byte 7 is 0x00, not 0x1f")),
    busbw_gb_s=3.25,
    model_gb_s=24.0,
    compute=((0, 71.5), (1, 58.25)),
    concerns=("GPU 1 is 18% slower than its equals",),
    ranks=2,
    seconds=8.5,
    when="2026-11-22T07:00:00+00:00",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ddp_launch"


def test_what_is_remembered_is_recalled_whole(cache: Path) -> None:
    assert recall(MACHINE, UUIDS) is None
    assert remember(MACHINE, UUIDS, FOUND)
    assert recall(MACHINE, UUIDS) == FOUND
    assert recall(MACHINE, tuple(reversed(UUIDS))) == FOUND
    assert [path.name for path in cache.iterdir()] == [path.name for path in cache.glob("verify-*.json")]
    remember(MACHINE, UUIDS, Verdict(ok=True))
    assert recall(MACHINE, UUIDS) == Verdict(ok=True)


def test_another_driver_or_set_of_gpus_is_another_question() -> None:
    remember(MACHINE, UUIDS, FOUND)
    assert recall(Topology(driver_version="590.1"), UUIDS) is None
    assert recall(MACHINE, ("GPU-a",)) is None
    assert recall(MACHINE, ("GPU-a", "GPU-b", "GPU-c")) is None


def test_another_nccl_is_another_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remember(MACHINE, UUIDS, FOUND)
    older = tmp_path / "site" / "torch-9.9.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(older.parent))
    assert recall(MACHINE, UUIDS) is None


@pytest.mark.parametrize(
    ("topology", "uuids"), [(Topology(), UUIDS), (MACHINE, ()), (MACHINE, ("0", "1"))], ids=["driver", "cpu", "index"]
)
def test_gpus_that_cannot_be_told_from_others_are_not_kept(cache: Path, topology: Topology, uuids: tuple) -> None:
    assert not remember(topology, uuids, FOUND)
    assert recall(topology, uuids) is None
    assert not cache.exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "",
        lambda text: text[:-40],
        lambda text: "[" * 100_000,
        lambda text: "null",
        lambda text: text.replace("580.95.05", "580.95.06"),
        lambda text: text.replace("verify/1", "verify/2"),
        lambda text: text.replace('"ok": false', '"ok": "no"'),
        lambda text: text.replace('"1"', "1"),
        lambda text: text.replace("3.25", "NaN"),
        lambda text: text.replace('"pairs": [', '"pairs": [null, '),
        lambda text: text.replace('"way": "nccl"', '"away": "nccl"'),
        lambda text: json.dumps({**json.loads(text), "verdict": {}}),
        lambda text: "\udcff",
    ],
)
def test_a_bad_file_is_no_file(cache: Path, edit) -> None:
    remember(MACHINE, UUIDS, FOUND)
    (path,) = cache.iterdir()
    before = path.read_text()
    path.write_text(edit(before), errors="surrogateescape")
    assert edit(before) != before
    assert recall(MACHINE, UUIDS) is None
    assert remember(MACHINE, UUIDS, FOUND)
    assert recall(MACHINE, UUIDS) == FOUND


def test_no_place_to_write_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder would be")
    assert not remember(MACHINE, UUIDS, FOUND)
    assert recall(MACHINE, UUIDS) is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/proc/nowhere")
    assert not remember(MACHINE, UUIDS, FOUND)


def test_a_relative_cache_folder_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert remember(MACHINE, UUIDS, FOUND)
    assert not (tmp_path / "relative").exists()
    assert len(list((tmp_path / "home/.cache/ddp_launch").iterdir())) == 1
