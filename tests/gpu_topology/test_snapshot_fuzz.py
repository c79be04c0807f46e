"""Whatever a topology file holds, every command answers or ends with one line and status 2, within five seconds."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_launch.main import main as launch
from gpu_topology import snapshot
from gpu_topology.cli import main
from tests.fake_nvml.machine import to_topology

NAMES = ("a100_a5000_t400", "rtx3090_2x_nvlink", "h100_8x_nvswitch")
SEEDS = [snapshot.to_dict(to_topology(name)) for name in NAMES]
COMMANDS = (
    ("report",),
    ("report", "--json"),
    ("env",),
    ("select", "--count", "2"),
    ("select", "--policy", "fastest"),
    ("draw",),
    ("snapshot",),
)
LONGEST_S = 5.0

NUMBERS = (0, 1, 2, 5, 8, 15, 16, 17, 64, 99, 100, 1100, -1, 2**32 - 1, 2**63, 2**64 - 1, 2**64, 10**40, 0.5, 1e308)
WORDS = (
    "", " ", "0", "x" * 1000, "x" * 1001, "\u00e9\u4e2d\U0001f600", "\u2028", "\u202e", "$(id)`id`", "'\"\\",
    "prohibited", "completed", "failed", "0-4000000000", "NV", "NV4", "NV0", "PIX", "SYS", "OK", "CNS", "thermal",
)  # fmt: skip
ANYTHING = (None, True, False, *NUMBERS, *WORDS, [], {}, [1], [[]], [8, 6], {"a": 1}, ["ok", "ok"], [{"pid": 1}])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from places(item)


def other(value: Any, draw: random.Random) -> Any:
    """Mostly of the same type, or unknown; else anything."""
    kind = draw.random()
    if kind < 0.2:
        return None
    if kind < 0.35:
        return copy.deepcopy(draw.choice(ANYTHING))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice(NUMBERS[:11])
    if isinstance(value, str):
        return draw.choice(WORDS)
    return copy.deepcopy(draw.choice(([], value, [value], ANYTHING[-2:])))


def changed(seed: int) -> Any:
    """A valid topology with some of its values, items and keys changed."""
    draw = random.Random(seed)
    data = copy.deepcopy(draw.choice(SEEDS))
    for _ in range(draw.choice((1, 1, 2, 4, 9))):
        found = list(places(data))
        container, key = draw.choice(found)
        kind = draw.random()
        if kind < 0.8:
            container[key] = other(container[key], draw)
        elif kind < 0.9:
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    return data


def ends_well(path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> int:
    """Run one command on a file; its status, once it has answered or ended with one line."""
    started = time.process_time()  # a busy machine's clock says nothing of the work
    if command == ("launch",):
        status = launch(["--auto", "--dry-run", "--topology", str(path)])
    else:
        status = main([*command, "--from", str(path)])
    printed = capsys.readouterr()
    assert time.process_time() - started < LONGEST_S, command
    assert status in (0, 2), (command, printed.err)
    last = printed.err.splitlines()[-1:]
    assert status == 0 or (printed.out == "" and last[0].startswith("error: ")), (command, printed.err)
    return status


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_any_content(seed, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(changed(seed)))
    read = ends_well(path, ("snapshot",), capsys) == 0
    for command in (*COMMANDS, ("launch",)) if read else (("launch",),):
        assert ends_well(path, command, capsys) == 0 or command[0] in ("env", "select", "launch") or not read


TWO = '"gpus": [{"index": 0}, {"index": 1}]'
START = '{"schema": "gpu-topology/1", '
ONE_LINE = {
    # what is refused: a part of the message
    START + '"gpus": [{"index": 0, "pcie_generation": 1100, "pcie_width": 16}]}': "pcie_generation is 1100",
    START + '"gpus": [{"index": 0, "uuid": "GPU-1"}, {"index": 1, "uuid": "gpu-1"}]}': "the UUID 'gpu-1' occurs twice",
    START + '"gpus": [{"index": 0, "uuid": "GPU-1"}, {"index": 1, "mig_devices": [{"uuid": "GPU-1"}]}]}': "twice",
    START + '"gpus": [{"index": 0, "uuid": "GPU-1,GPU-2"}]}': "not one word without a comma",
    START + '"gpus": [{"index": 0, "uuid": "GPU 1"}]}': "not one word without a comma",
    START + '"gpus": [{"index": 99999}]}': "index is 99999, not a number of 0 to 4095",
    START + '"gpus": [{"index": 1e999}]}': "index is inf, not int",
    START + '"gpus": [' + ",".join(f'{{"index": {i}}}' for i in range(65)) + "]}": "gpus has 65 entries",
    START + TWO + ', "links": [' + ",".join(['{"a": 0, "b": 1}'] * 9999) + "]}": "links has 9999 entries",
    START + '"gpus": [{"index": 0, "processes": [' + ",".join(['{"pid": 1}'] * 9999) + "]}]}": "9999 entries",
    START + '"gpus": [{"index": 0, "name": "' + "W" * 10**6 + '"}]}': "name has 1000000 characters",
    START + '"later": ' + "[" * 99999 + "]" * 99999 + "}": "is not JSON",
    START + TWO + ', "links": [' + ",".join(['{"a": 0, "b": 1, "x": ' + "[" * 900 + "]" * 900 + "}"] * 2) + "]}": "",
    " " * (snapshot.MOST_BYTES + 1): "is larger than 8 MiB",
}  # fmt: skip


@pytest.mark.parametrize("text", ONE_LINE, ids=lambda text: ONE_LINE[text])
def test_what_no_machine_has_is_one_line(text, tmp_path, capsys):
    path = tmp_path / "odd.json"
    path.write_text(text)
    for command in (("report",), ("select",), ("launch",)):
        started = time.monotonic()
        arguments = ["--auto", "--dry-run", "--topology", str(path)]
        status = launch(arguments) if command == ("launch",) else main([*command, "--from", str(path)])
        printed = capsys.readouterr()
        assert time.monotonic() - started < LONGEST_S
        if ONE_LINE[text]:
            assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
            assert ONE_LINE[text] in printed.err
            assert len(printed.err) < 400 + len(str(path))
        else:
            assert status in (0, 2)


def test_a_file_without_end_is_refused(capsys):
    assert main(["report", "--from", "/dev/zero"]) == 2
    assert capsys.readouterr().err == "error: /dev/zero is larger than 8 MiB: it is no topology file\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_encodings_that_json_and_powershell_write(encoding, tmp_path):
    topology = to_topology("a100_a5000_t400")
    path = tmp_path / "machine.json"
    path.write_bytes(json.dumps(snapshot.to_dict(topology), ensure_ascii=False).encode(encoding))
    assert snapshot.load(path) == topology


def largest() -> dict[str, Any]:
    """As much as a file may hold: 64 GPUs of one model that meet at random levels, under the longest names."""
    draw = random.Random(1)
    size = 64
    one = {"memory_total": 48 << 30, "compute_capability": [8, 9], "processes": [{"pid": pid} for pid in range(200)]}
    gpus = [
        {**one, "index": i, "name": "W" * 1000, "uuid": f"GPU-{i}" + "f" * 900, "numa_node": draw.randrange(8)}
        for i in range(size)
    ]
    links = [
        {"a": a, "b": b, "level": draw.choice(("NV4", "PIX", "PXB", "PHB", "NODE", "SYS")), "p2p": "OK"}
        for a in range(size)
        for b in range(a)
    ]
    return {"schema": "gpu-topology/1", "gpus": gpus, "links": links, "warnings": ["w " * 499] * 20}


def test_the_largest_file_takes_every_command_less_than_five_seconds(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "largest.json"
    path.write_text(json.dumps(largest()))
    for command in (*COMMANDS, ("select", "--allow-busy", "--count", "8"), ("draw", "--allow-busy"), ("launch",)):
        ends_well(path, command, capsys)
