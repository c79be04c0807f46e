"""The predicted speed of each policy in the plan, from a cache of calibrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_launch.plan.predicted_speed import predict
from ddp_train.config.parse import parse
from ddp_train.distributed import speed_cache
from ddp_train.distributed.load_balance import Speed
from ddp_train.distributed.speed_cache import KnownSpeeds, recall, remember, work_of
from gpu_topology.select.select import SelectionRequest
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, to_topology

CONFIG = parse(["--batch-size", "600", "--model", "power", "--amp", "bf16"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ddp_launch" / "speeds.json"


@pytest.fixture
def names() -> list[str]:
    return [gpu.name or "" for gpu in machine().gpus]


def machine() -> Topology:
    return to_topology(load_machine("a100_a5000_t400"))


def line(known: KnownSpeeds | None) -> str | None:
    return predict(machine(), SelectionRequest(), CONFIG, lambda work: known)


def test_nothing_is_said_without_a_calibration() -> None:
    assert line(None) is None


def test_each_policy_has_its_speed(names: list[str]) -> None:
    each = {"NVIDIA A100": 0.001, "NVIDIA RTX A5000": 0.002, "NVIDIA T400": 0.1}
    speeds = {name: Speed(0.0, next(s for key, s in each.items() if name.startswith(key))) for name in names}
    said = line(KnownSpeeds(speeds, 0.0)) or ""
    # Three of 200 samples at 2 ms; one of 600 at 1 ms; 1/1 + 3/2 a millisecond together, without the T400.
    assert "largest (NVIDIA RTX A5000 x 3) 1,500 images/s, fastest (NVIDIA RTX A5000 x 3) 1,500 images/s" in said
    assert said.endswith(
        "2,500 images/s by shares 120 + 0 + 120 + 240 + 120, without GPU 1, which would not make it 5% faster"
    )


def test_what_was_not_calibrated_is_unknown(names: list[str]) -> None:
    only = next(name for name in names if "A5000" in name)
    said = line(KnownSpeeds({only: Speed(0.0, 0.002)}, 0.0)) or ""
    assert "mixed unknown (not calibrated" in said
    assert "largest (NVIDIA RTX A5000 x 3) 1,500" in said


def test_the_cache_keeps_what_it_is_given(cache: Path) -> None:
    work = work_of(CONFIG)
    assert recall(work) is None
    remember(work, KnownSpeeds({"A": Speed(0.1, 0.2, 12)}, 0.5))
    remember(work, KnownSpeeds({"B": Speed(0.3, 0.4)}, 0.6))
    remember("another", KnownSpeeds({"A": Speed(1.0, 2.0)}))
    assert recall(work) == KnownSpeeds({"A": Speed(0.1, 0.2), "B": Speed(0.3, 0.4)}, 0.6)
    assert work_of(parse(["--model", "power", "--amp", "off"])) != work


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "ddp-train-speeds/1", "works": {"w": {"speeds": {"A": [1]}, "communication": 0}}}'],
)
def test_a_file_that_is_none_is_none(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert recall("w") is None
    speed_cache.remember("w", KnownSpeeds({"A": Speed(0.0, 1.0)}))
    assert recall("w") == KnownSpeeds({"A": Speed(0.0, 1.0)})
