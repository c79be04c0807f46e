"""The page of a verdict, and the same as data."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import pytest

from gpu_topology.verify.show import page, to_json
from gpu_topology.verify_cache import PairResult, Verdict

RIGHT = Verdict(
    ok=True,
    pairs=tuple(PairResult(a, b, way, 20.25) for way in ("copy", "nccl") for a, b in permutations((0, 3), 2)),
    busbw_gb_s=123.4,
    ranks=2,
    seconds=8.25,
)
PROBLEM = "wrong data in copy GPU 0 -> GPU 3: byte 7 is 0x00 and should be 0x1f, 1 of 9 bytes are wrong"
MENDED = replace(
    RIGHT,
    ok=False,
    problem=PROBLEM,
    settings=(("NCCL_P2P_DISABLE", "1", "reason"),),
    remedy="turn ACS off",
    pairs=(PairResult(0, 3, "copy", 19.0, "byte 7"), PairResult(3, 0, "copy", 19.0)),
)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_a_right_machine() -> None:
    lines = [line.split() for line in page(RIGHT, (0, 3)).splitlines()]
    assert ["GPU0", "GPU3"] in lines
    assert lines.count(["GPU0", "X", "20.2"]) == 2
    assert page(RIGHT, (0, 3)).endswith(
        "all-reduce over 2 ranks: busbw 123 GB/s\nright: every byte and every sum, in 8.2 s; nothing needs to be set\n"
    )


def test_speeds_are_shown_beside_what_they_should_be() -> None:
    verdict = replace(RIGHT, model_gb_s=450.0, compute=((0, 312.4), (3, 256.0)), concerns=("GPU 3 is 18% slower",))
    assert page(verdict, (0, 3)).splitlines()[-4:] == [
        "matrix products, TFLOP/s: GPU 0 312, GPU 3 256",
        "all-reduce over 2 ranks: busbw 123 GB/s, 27% of the 450 of its slowest link",
        "slow: GPU 3 is 18% slower",
        "right: every byte and every sum, in 8.2 s; nothing needs to be set",
    ]


def test_a_mended_machine_says_what_to_set() -> None:
    text = page(MENDED, (0, 3))
    assert ["GPU0", "X", "wrong"] in [line.split() for line in text.splitlines()]
    assert text.endswith(
        f"failed: {PROBLEM}\nset NCCL_P2P_DISABLE=1: with it the same job was right\nwhat to do: turn ACS off\n"
    )


def test_what_nothing_mends_ends_with_the_last_words() -> None:
    text = page(replace(MENDED, settings=(), words=("RuntimeError: [x]",), pairs=(), busbw_gb_s=None), (0, 3))
    assert text == f"failed: {PROBLEM}\n  │ RuntimeError: [x]\nwhat to do: turn ACS off\n"


@pytest.mark.parametrize("ranks", [2, 9, 16, 64])
def test_no_table_is_wider_than_the_screen(ranks: int) -> None:
    for devices, way in ((tuple(range(ranks)), "nccl"), ((), "gloo")):
        pairs = tuple(PairResult(a, b, way, 20.25) for a, b in permutations(range(ranks), 2))
        text = page(replace(RIGHT, pairs=pairs, ranks=ranks), devices)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        assert text.count("20.2") == ranks * (ranks - 1)


def test_data_are_json() -> None:
    data = json.loads(json.dumps(to_json(MENDED, (0, 3))))
    assert data["settings"] == [{"name": "NCCL_P2P_DISABLE", "value": "1", "reason": "reason"}]
    assert data["pairs"][0] == {"a": 0, "b": 3, "way": "copy", "gb_s": 19.0, "problem": "byte 7"}
    assert data["devices"] == [0, 3]
