"""A topology through JSON and back."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from itertools import combinations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from ddp_core.errors import TopologyError
from ddp_core.files import write_text
from gpu_topology import snapshot
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, MigDevice, PeerAccess, Topology
from tests.fake_nvml.machine import to_topology

MACHINES = ["a100_a5000_t400", "h100_8x_nvswitch", "rtx3090_2x_nvlink", "no_devices"]
MIG = {"uuid": "MIG-1", "profile": "7g.80gb", "memory_mib": 80000, "instance": 0}


@pytest.mark.parametrize(
    "topology",
    [
        *map(to_topology, MACHINES),
        Topology(warnings=("no driver", "to use a GPU: install it")),
        Topology((Gpu(0, error="GPU is lost"),)),
        Topology(
            gpus=(
                Gpu(0, cpu_affinity="0-19,40-59", pcie_generation_now=1, pcie_width_now=8, ecc=True, ecc_uncorrected=2),
                Gpu(1, throttle=("thermal", "power-cap"), memory_faults=(), graphics_processes=(GpuProcess(9),)),
            ),
            links=(Link(0, 1, LinkLevel.PHB, 0, "ok", peer=PeerAccess(("ok", None), ("ok", "not-supported"))),),
        ),
        to_topology(
            {"gpus": [{"name": "A", "mig_mode": True, "mig": [MIG], "processes": [{"pid": 1, "used_mib": 2}]}]}
        ),
        to_topology({"gpus": [{"processes": None}], "p2p": "unknown"}),
    ],
)
def test_round_trip_is_lossless(topology, tmp_path):
    path = tmp_path / "machine.json"
    snapshot.save(topology, path)
    assert snapshot.load(path) == topology
    assert json.loads(path.read_text())["schema"] == "gpu-topology/1"


def _anything(kind: Any, draw: random.Random, name: str = "") -> Any:
    """A random value of the type that the field of this name is annotated with."""
    if get_origin(kind) is UnionType:
        kinds = get_args(kind)
        return _anything(draw.choice(kinds), draw, name)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        count = draw.randrange(4) if ... in kinds else len(kinds)
        return tuple(_anything(kinds[0], draw, name) for _ in range(count))
    if is_dataclass(kind):
        return kind(**{name: _anything(hint, draw, name) for name, hint in get_type_hints(kind).items()})
    if name == "uuid" and kind is str:  # no two devices share one
        return f"GPU-\u00e9\u4e2d\U0001f600{draw.random()}"
    if issubclass(kind, LinkLevel):
        return draw.choice(list(LinkLevel))
    choices = {
        NoneType: (None,),
        bool: (True, False),
        int: (0, 1, draw.randrange(1 + snapshot.LARGEST_OF.get(name, snapshot.LARGEST))),
        str: ("", "NV4", "GPU-\u00e9\u4e2d\U0001f600", '"\\', str(draw.random())),
    }
    return draw.choice(choices[kind])


def random_topology(seed: int) -> Topology:
    """Every field of every class, in any state; GPUs and pairs counted as a reading counts them."""
    draw = random.Random(seed)
    size = draw.randrange(7)
    gpus = (replace(_anything(Gpu, draw), index=index) for index in draw.sample(range(99), size))
    gpus = tuple(sorted(gpus, key=lambda gpu: gpu.index))
    links = tuple(replace(_anything(Link, draw), a=a.index, b=b.index) for a, b in combinations(gpus, 2))
    return replace(_anything(Topology, draw), gpus=gpus, links=links)


def test_any_topology_comes_back_as_it_was(tmp_path):
    path = tmp_path / "machine.json"
    for seed in range(150):
        topology = random_topology(seed)
        snapshot.save(topology, path)
        assert snapshot.load(path) == topology, seed
        assert snapshot.to_dict(topology) == json.loads(path.read_text()), seed


GPU_KEYS: dict[str, Any] = {
    "index": 0,
    "uuid": "GPU-1",
    "name": "NVIDIA RTX A6000",
    "pci_bus_id": "0000:41:00.0",
    "memory_total": 2**35,
    "memory_used": 2**30,
    "compute_capability": [8, 6],
    "numa_node": None,
    "mig_mode": False,
    "utilization": None,
    "processes": [{"pid": 7, "used_memory": 2**20}],
}


def test_a_file_with_the_documented_keys_alone_is_enough():
    link = {"a": 0, "b": 1, "level": "NV", "nvlinks": 4, "p2p": "ok"}
    gpus = [GPU_KEYS, {**GPU_KEYS, "index": 1, "uuid": "GPU-2"}]
    topology = snapshot.from_dict({"schema": "gpu-topology/1", "gpus": gpus, "links": [link]})
    assert topology.gpus[0] == Gpu(
        0,
        "GPU-1",
        "NVIDIA RTX A6000",
        "0000:41:00.0",
        memory_total=2**35,
        memory_used=2**30,
        compute_capability=(8, 6),
        mig_mode=False,
        processes=(GpuProcess(7, 2**20),),
    )
    assert topology.links == (Link(0, 1, LinkLevel.NV, 4, "ok"),)


def test_the_page_on_the_file_names_every_key_and_its_example_is_read():
    page = (Path(__file__).parents[2] / "docs" / "topology-file.md").read_text()
    example = snapshot.from_dict(json.loads(page.split("```json")[1].split("```")[0]))
    assert example.link(0, 1).label == "NV4"
    named = set(re.findall(r"`(\w+)`", page))
    keys = {field.name for kind in (Topology, Gpu, GpuProcess, MigDevice, Link, PeerAccess) for field in fields(kind)}
    assert keys <= named, keys - named


def test_links_are_read_as_nvidia_smi_writes_them_and_from_either_end():
    gpus = [{"index": index} for index in range(3)]
    links = [
        {"a": 1, "b": 0, "level": "NV12", "peer": {"read": ["ok", "not-supported"]}},
        {"a": 0, "b": 2, "level": "PHB"},
        {"a": 2, "b": 1, "level": "NV"},
    ]
    topology = snapshot.from_dict({"schema": "gpu-topology/1", "gpus": gpus, "links": links})
    assert [link.label for link in topology.links] == ["NV12", "PHB", "NV?"]
    assert topology.link(0, 1) == Link(0, 1, LinkLevel.NV, 12, peer=PeerAccess(read=("not-supported", "ok")))


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("OK", "ok"),
        ("CNS", "chipset-not-supported"),
        ("GNS", "gpu-not-supported"),
        ("TNS", "topology-not-supported"),
        ("NS", "not-supported"),
        ("DR", "disabled-by-regkey"),
        ("U", None),
        ("unknown", None),
        ("not-supported", "not-supported"),
        (None, None),
    ],
)
def test_peer_access_in_the_words_of_nvidia_smi(word, means):
    link = {"a": 0, "b": 1, "level": "NV4", "p2p": word, "peer": {"write": [word, "OK"]}}
    data = {"schema": "gpu-topology/1", "gpus": [{"index": 0}, {"index": 1}], "links": [link]}
    read = snapshot.from_dict(data).link(0, 1)
    assert (read.p2p, read.peer) == (means, PeerAccess(write=(means, "ok")))


def test_a_whole_matrix_and_the_facts_of_nvidia_smi_and_sysfs():
    modes = [("Enabled", True), ("Disabled", False), ("[N/A]", None), (1, True), (0, False), (True, True)]
    gpus = [{"index": index, "numa_node": -1, "mig_mode": mode} for index, (mode, _) in enumerate(modes)]
    links = [{"a": a, "b": b, "level": "X" if a == b else "PIX"} for a in range(3) for b in range(3)]
    topology = snapshot.from_dict({"schema": "gpu-topology/1", "gpus": gpus, "links": links})
    assert [gpu.mig_mode for gpu in topology.gpus] == [on for _, on in modes]
    assert {gpu.numa_node for gpu in topology.gpus} == {None}
    assert [(link.a, link.b, link.label) for link in topology.links] == [(0, 1, "PIX"), (0, 2, "PIX"), (1, 2, "PIX")]


def test_an_earlier_file_survives_an_error_and_nothing_is_left_behind(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text("precious")
    with pytest.raises(TopologyError, match="cannot write"):
        write_text(path, "half a pair: \ud800", TopologyError)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_to_keeps_its_kind(tmp_path):
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(link, "new")
    assert (link.is_symlink(), target.read_text(), target.stat().st_mode & 0o777) == (True, "new", 0o640)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_open_descriptor_is_written_to_at_its_place(name, tmp_path):
    """A file that a shell has redirected to is not replaced, and what comes next follows."""
    write = "import sys; from ddp_core.files import write_text; write_text(sys.argv[1], 'middle\\n')"
    out = tmp_path / "out"
    script = 'echo first; "$@"; echo last >&1; "$@" | cat'
    with out.open("w") as file:
        command = ["sh", "-ec", script, "sh", sys.executable, "-c", write, name]
        subprocess.run(command, cwd=Path(__file__).parents[2], stdout=file, timeout=60, check=True)
    assert out.read_text() == "first\nmiddle\nlast\nmiddle\n"
    assert list(tmp_path.iterdir()) == [out]


def test_a_closed_descriptor_is_named():
    with pytest.raises(TopologyError, match="cannot write /dev/fd/999: Bad file descriptor"):
        write_text("/dev/fd/999", "", TopologyError)


def test_keys_of_a_later_minor_version_are_ignored():
    data = snapshot.to_dict(to_topology("rtx3090_2x_nvlink"))
    data["gpus"][0]["flux_capacitor"] = 1.21
    data["weather"] = "fine"
    assert snapshot.from_dict(data) == to_topology("rtx3090_2x_nvlink")


BAD = {
    "{": "is not JSON",
    "[]": 'expected a JSON object with "schema"',
    "{}": "schema is None, this version reads 'gpu-topology/1'",
    '{"schema": "gpu-topology/2"}': "schema is 'gpu-topology/2'",
    '{"schema": "gpu-topology/1", "gpus": 3}': "not a valid gpu-topology/1 topology",
    '{"schema": "gpu-topology/1", "gpus": [{}]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": ["A100"]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": [{"index": "0"}]}': "index is '0', not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "memory_total": "24G"}]}': "memory_total is '24G', not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": true}]}': "index is True, not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "name": 4090}]}': "name is 4090, not str",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "compute_capability": 8.6}]}': "is 8.6, not a list of 2",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "processes": [4]}]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0}, {"index": 0}]}': "GPU 0 occurs twice",
    '{"schema": "gpu-topology/1", "links": [{"a": 0, "b": 1, "level": "NEAR"}]}': "level is 'NEAR', not NV1",
    '{"schema": "gpu-topology/1", "links": [{"a": 0, "b": null}]}': "b is None, not int",
    '{"schema": "gpu-topology/1", "warnings": "all"}': "warnings is 'all'",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0}': "is not JSON",
    '{"schema": "gpu-topology/1", "gpus": [{"index": NaN}]}': "is not JSON: NaN is no number",
    '{"schema": "gpu-topology/1", "gpus": [{"index": Infinity}]}': "is not JSON: Infinity is no number",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "utilization": 1.5}]}': "utilization is 1.5, not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": -1}]}': "index is -1, not a number of 0 to",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "memory_total": 1' + 30 * "0" + "}]}": "not a number of 0 to",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "memory_total": 1' + 9999 * "0" + "}]}": "is not JSON",
    '{"schema": "gpu-topology/1", "gpus": [{"name": "A100"}]}': "has no 'index'",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "name": "\\ud800"}]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": {"index": 0}}': "not a list",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "name": "A\\u001b[31m"}]}': "with a control character in it",
    '{"schema": "gpu-topology/1", "warnings": ["two\\nlines"]}': "with a control character in it",
    '{"schema": "' + 9999 * "x" + '"}': "this version reads",
    9999 * "[": "is not JSON",
    "": "is not JSON",
    "\tGPU0\tGPU1\nGPU0\t X \tNV4\n": "`python -m gpu_topology snapshot -o FILE` makes a topology file",
}

LINKS = {
    '{"a": 0, "b": 0}': "the link 0-0 joins a GPU to itself",
    '{"a": 0, "b": 2}': "the link 0-2 names GPU 2, which does not exist",
    '{"a": 0, "b": 1, "level": "PIX"}, {"a": 0, "b": 1}': "the link 0-1 occurs twice",
    '{"a": 0, "b": 1, "level": "PIX"}, {"a": 1, "b": 0, "level": "SYS"}': "the link 0-1 occurs twice",
    '{"a": 0, "b": "1"}': "b is '1', not int",
    '{"a": 0}': "has no 'b'",
    '{"a": 0, "b": 1, "level": "NV4", "nvlinks": 2}': "level is 'NV4', but nvlinks is 2",
    '{"a": 0, "b": 1, "level": "NV0"}': "level is 'NV0', not NV1",
    '{"a": 0, "b": 1, "level": 4}': "level is 4, not NV1",
    '{"a": 0, "b": 1, "level": ["NV"]}': "level is ['NV'], not NV1",
    '{"a": 0, "b": 1, "peer": {"read": ["ok"]}}': "read is ['ok'], not a list of 2",
    "4": "holds 4, not an object",
}
BAD |= {f'{{"schema": "gpu-topology/1", "gpus": [{{"index": 0}}, {{"index": 1}}], "links": [{links}]}}': message
        for links, message in LINKS.items()}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[-60:])
def test_a_bad_file_is_one_line_that_names_it(text, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(TopologyError) as caught:
        snapshot.load(path)
    message = str(caught.value)
    assert BAD[text] in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message.removeprefix(str(path))) < 250


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(TopologyError, match=r"cannot read .*missing.json: No such file"):
        snapshot.load(tmp_path / "missing.json")
    with pytest.raises(TopologyError, match=r"cannot read .*: Is a directory"):
        snapshot.load(tmp_path)
    with pytest.raises(TopologyError, match=r"cannot write .*: No such file"):
        snapshot.save(Topology(), tmp_path / "no" / "such" / "folder.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match=r"binary.json is not JSON"):
        snapshot.load(Path(binary))
