"""Generated mistakes in options and files: status 2 and one line, or input that is right; never a traceback.

Hypothesis makes them; 60 in a plain run, the 200 of `--whole` otherwise, the same ones every time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_core.errors import UserError
from ddp_launch import main as launch
from ddp_train import predict
from ddp_train.config.options import Config, to_dict
from ddp_train.config.parse import dump, parse
from ddp_train.config.validation import check_paths
from ddp_train.tune.space import read_space
from gpu_topology import cli as topology_cli

ROOT = Path(__file__).resolve().parents[2]
SHARE = {"options": 60, "yaml": 50, "launcher": 40, "topology": 20, "space": 20, "saved": 10}
"""Of 200, by surface; under --whole all, else three tenths of each."""

OPTIONS = ["--" + name.replace("_", "-") for name in to_dict(Config())]
TEXTS = [
    *("", " ", "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "9" * 40, "9" * 5000, "-0", "0x10", "1_000", "١"),
    *("true", "null", "[]", "{}", "[1, 2]", "{a: 1}", "!!python/object:os.system", "*x", "&x 1", "\ud800", "\x1b[31m"),
    *("a\nb", "é", "🙂", "../../etc", "/dev/null", "/proc/self/mem", "~", "$HOME", "%s%n", "--", "-", "=", "'", "1 2"),
    *("bf16", "auto", "vit", "digits", "onecycle", "muon", "small", "none", "off"),
]
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12), st.floats().map(str), st.integers().map(str))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([10**30, -1, 0, 2**63])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
Property = Callable[[Any], None]


@pytest.fixture
def each(request: pytest.FixtureRequest) -> Callable[[str, st.SearchStrategy[Any], Property], None]:
    """each(surface, strategy, check): the check on that surface's share of examples, the same ones every time."""
    whole = bool(request.config.getoption("--whole", default=False))

    def run(surface: str, strategy: st.SearchStrategy[Any], check: Property) -> None:
        count = SHARE[surface] if whole else max(3, SHARE[surface] * 3 // 10)
        silent = list(HealthCheck)
        options = settings(
            max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=silent
        )
        options(given(strategy)(check))()

    return run


def refused_in_one_line(status: int, errors: str, case: object) -> bool:
    """Whether it was refused; fails where it was in any other way than status 2 and one line."""
    assert status in (0, 2), (case, status, errors)
    assert "Traceback" not in errors, (case, errors)
    if status == 2:
        lines = errors.strip("\n").split("\n")
        assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable(), (case, errors)
        assert len(lines[0]) < 1000, (case, errors)
    return status == 2


def called(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> tuple[int, str]:
    """The exit status and standard error of a program's main function."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(words)
        except SystemExit as end:  # --help and --version
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return status, errors.getvalue()


def expect(main: Callable[[Sequence[str]], int], words: Sequence[str], case: object) -> None:
    """The program refuses in one line, or takes it."""
    refused_in_one_line(*called(main, words), case)


def read_options(words: Sequence[str]) -> int:
    """The part of the trainer's main that reads its options."""
    try:
        check_paths(found := parse(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # What was accepted is finite, and what a run folder keeps of it says the same.
    assert "nan" not in dump(found).lower().split()
    return 0


words = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(OPTIONS), texts).map(list),
        st.tuples(st.sampled_from(OPTIONS), texts).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
        st.sampled_from(OPTIONS).map(lambda word: [word]),
        st.sampled_from(OPTIONS).map(lambda word: ["--no-" + word[2:]]),
        texts.map(lambda word: ["--" + word]),
        texts.map(lambda word: [word]),
        st.tuples(st.sampled_from(["--config", "--preset", "--resume", "--out-dir", "--data-dir"]), texts).map(list),
    ),
    min_size=1,
    max_size=4,
).map(lambda groups: [word for group in groups for word in group])


@pytest.mark.timeout(240)
def test_options_of_the_trainer(each: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    each("options", words, lambda case: expect(read_options, case, case))


@pytest.mark.parametrize("option", ["--data-dir", "--resume", "--class-weights", "--out-dir", "--config"])
def test_names_longer_than_a_file_may_have(option: str) -> None:
    assert refused_in_one_line(*called(read_options, [option, "x" * 300]), option)


RAW = [
    b"",
    b"\xff\xfe\x00",
    b"\x00",
    b"lr: !!python/object/apply:os.system ['touch planted']",
    b"lr: !!python/name:os.system",
    b"!!binary aGVsbG8=",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nlr: [*e,*e,*e,*e,*e,*e,*e,*e,*e]",
    b"lr: &x [*x]",
    b"model: &x {a: *x}",
    b"lr: 0.1\nlr: 0.2",
    b"lr: 0.1\nLR: 0.2",
    b"? [a, b]\n: 1",
    b"1: 2",
    b"- lr: 1",
    b"lr: 0.1\n---\nlr: 0.2",
    b"lr: 2024-01-01",
    b"epochs: 12:30:45",
    b"lr: .nan",
    b"lr: .inf",
    b"epochs: " + b"9" * 5000,
    b"lr: 1" + b"0" * 5000,
    b"epochs: 0o17",
    b"seed: 1e3",
    b"model: {small: 1}",
    b"<<: {lr: 0.1}",
    b"<<: [1]",
    b"lr:\t0.1",
    b"lr: 'unclosed",
    b"%YAML 9.9\n---\nlr: 1",
    b"[" * 3000,
    b"lr: " + b"{a: " * 2000,
    b"config: other.yaml",
    b"preset: quick",
    b"out_dir: \"a\\0b\"",
    b"data_dir: \"\\e[31m\"",
    b"out_dir: [a]",
    b"resume: /dev/zero",
    b"given: [lr]",
    b"run: {epochs: 3}",
]  # fmt: skip
names = st.one_of(st.sampled_from(list(to_dict(Config()))), st.text(max_size=6))
mappings = st.dictionaries(names, values, max_size=4).map(lambda found: yaml.safe_dump(found, allow_unicode=True))
files = st.one_of(
    st.sampled_from(RAW), mappings.map(lambda text: text.encode(errors="replace")), st.binary(max_size=40)
)


@pytest.mark.timeout(240)
def test_yaml_of_the_trainer(each: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def check(content: bytes) -> None:
        Path("given.yaml").write_bytes(content)
        refused_in_one_line(*called(read_options, ["--config", "given.yaml"]), content)
        assert not Path("planted").exists()

    each("yaml", files, check)


LAUNCHER = [
    "--auto",
    "--gpus",
    "--cpu",
    "--nproc",
    "--policy",
    "--exclude",
    "--allow-busy",
    "--min-memory",
    "-m",
    "--no-python",
    "--json",
    "--topology",
    "--preflight",
    "--no-preflight",
    "--max-restarts",
    "--grace",
    "--log-dir",
    "--json-events",
    "--numa-binding",
    "-t",
    "--tee",
    "--nnodes",
    "--node-rank",
    "--rdzv-endpoint",
    "--master-addr",
    "--master-port",
    "--rdzv-id",
    "--completion",
    "--version",
    "--help",
    "--batch-size",
    "--lr",
    "--epochs",
    "--config",
    "--devices",
    "--nproc_per_node",
    "--max_restarts",
    "-h",
    "-x",
    "--standalone",
]
launcher_words = st.lists(st.one_of(st.sampled_from(LAUNCHER), texts), max_size=5)


@pytest.mark.timeout(240)
def test_options_of_the_launcher(each: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PET_", "OMPI_", "PMI_")):
            monkeypatch.delenv(name)

    def check(case: list[str]) -> None:
        refused_in_one_line(*called(launch.main, ["--dry-run", *case]), case)

    each("launcher", launcher_words, check)


def machines() -> list[dict[str, Any]]:
    folder = ROOT / "tests" / "gpu_topology" / "machines"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))[:4]]


@st.composite
def damaged_machines(draw: st.DrawFn) -> bytes:
    """A topology file with one value, somewhere, that is another; or none at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(
            st.one_of(st.binary(max_size=30), values.map(lambda v: json.dumps(v).encode()), st.just(b"[" * 9000))
        )
    document: Any = draw(st.sampled_from(machines()))
    node = document = json.loads(json.dumps(document))
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], (dict, list)) and node[key] and draw(st.booleans()):
            node = node[key]
            continue
        if draw(st.booleans()):
            node[key] = draw(values)
        elif isinstance(node, dict):
            del node[key]
        return json.dumps(document).encode()


@pytest.mark.timeout(240)
def test_topology_files(each: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "machine.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for main, case in (
            (topology_cli.main, ["report", "--from", str(path)]),
            (launch.main, ["--dry-run", "--topology", str(path)]),
        ):
            refused_in_one_line(*called(main, case), content)

    each("topology", damaged_machines(), check)


ranges = st.dictionaries(st.sampled_from(["low", "high", "log", "step", "x"]), scalars, max_size=4)
spaces = st.dictionaries(names, st.one_of(ranges, values, st.lists(scalars, max_size=3)), max_size=3)
space_files = st.one_of(st.sampled_from(RAW), spaces.map(lambda found: yaml.safe_dump(found).encode(errors="replace")))


@pytest.mark.timeout(240)
def test_search_spaces(each: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"

    def main(_: Sequence[str]) -> int:
        try:
            read_space(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    def check(content: bytes) -> None:
        path.write_bytes(content)
        refused_in_one_line(*called(main, []), content)

    each("space", space_files, check)


saved = st.tuples(st.one_of(st.binary(max_size=60), st.sampled_from([b"PK\x03\x04", b""])), st.lists(texts, max_size=3))


@pytest.mark.timeout(240)
def test_saved_models_and_images(each: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddp_train import evaluate

    monkeypatch.chdir(tmp_path)

    def check(case: tuple[bytes, list[str]]) -> None:
        content, further = case
        Path("best_model.pth").write_bytes(content)
        assert refused_in_one_line(*called(predict.main, ["best_model.pth", *further]), case) or "-h" in further
        assert refused_in_one_line(*called(evaluate.main, ["--checkpoint", "best_model.pth", *further]), case)

    each("saved", saved, check)


@pytest.mark.parametrize(
    "case",
    [
        ["--milestones", "x"],
        ["--milestones", "nan,1"],
        ["--save-every", "9" * 5000],
        [""],
        ["--config", "/dev/zero"],
    ],
)
def test_refused_before_torch_is_there(case: list[str]) -> None:
    assert refused_in_one_line(*called(read_options, case), case)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "command",
    [
        ["ddp_train/main.py", "--lr", "nan"],
        ["launch.py", "--cpu", "--epochs", "9" * 5000],
        ["-m", "gpu_topology", "report", "--from", "/dev/null"],
        ["-m", "ddp_train.tune", "search", "/dev/null", "--out", "nowhere"],
    ],
)
def test_as_processes(command: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [str(ROOT / command[0]) if command[0].endswith(".py") else command[0], *command[1:]]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert refused_in_one_line(done.returncode, done.stderr, command) and done.stdout == ""
