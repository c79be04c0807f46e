"""Which words are the launcher's and which the program's; what the launcher accepts."""

from __future__ import annotations

import pytest

from launcher.options import LaunchOptions, OptionError, Program, parse

TRAINER = "trainer"


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        ([], Program("trainer", "", ())),
        (["--auto"], Program("trainer", "", ())),
        (["--auto", "--epochs", "3", "--lr=0.1"], Program("trainer", "", ("--epochs", "3", "--lr=0.1"))),
        (["--weight_decay", "-1", "--cpu", "--compile"], Program("trainer", "", ("--weight_decay", "-1", "--compile"))),
        (["--auto", "a.py"], Program("script", "a.py", ())),
        (["a.py", "--help", "--", "--cpu", "--nproc"], Program("script", "a.py", ("--help", "--", "--cpu", "--nproc"))),
        (["--cpu", "a b.py", "ü ß", "", "$x"], Program("script", "a b.py", ("ü ß", "", "$x"))),
        (["--", "a.py", "-m", "b"], Program("script", "a.py", ("-m", "b"))),
        (["-m", "a.b", "-m", "c"], Program("module", "a.b", ("-m", "c"))),
        (["--module", "a", "--"], Program("module", "a", ("--",))),
        (["--no-python", "ls", "-l"], Program("executable", "ls", ("-l",))),
        (["--no_python", "ls"], Program("executable", "ls", ())),
    ],
)
def test_program(argv: list[str], program: Program) -> None:
    assert parse(argv).program == program


def test_every_option_arrives() -> None:
    devices = "--gpus 0,GPU-1a --nproc_per_node=2 --policy fastest --exclude 3 --allow-busy --min-memory 20GB"
    nodes = "--nnodes 2:4 --node-rank 1 --rdzv-endpoint h:29500 --rdzv-id x --rdzv-timeout 9"
    rest = "--dry-run --json --topology f --max-restarts 3 --grace 5 --log-dir d --tee a.py"
    assert parse([*devices.split(), *nodes.split(), *rest.split()]) == LaunchOptions(
        program=Program("script", "a.py", ()),
        gpus=("0", "GPU-1a"),
        nproc=2,
        policy="fastest",
        exclude=("3",),
        allow_busy=True,
        min_memory=20 * 10**9,
        dry_run=True,
        json=True,
        topology="f",
        nnodes=(2, 4),
        node_rank=1,
        rdzv_endpoint="h:29500",
        rdzv_id="x",
        rdzv_timeout=9,
        max_restarts=3,
        grace=5,
        log_dir="d",
        tee=True,
    )


def test_launcher_options_stand_anywhere_among_the_trainers() -> None:
    options = parse(["--epochs", "3", "--devices", "0,1", "--lr", "0.1", "--dry-run"])
    assert (options.gpus, options.dry_run) == (("0", "1"), True)
    assert options.program.args == ("--epochs", "3", "--lr", "0.1")


@pytest.mark.parametrize(
    ("text", "size"), [("20", 20 * 10**9), ("20GiB", 20 * 2**30), ("1.5 gb", 15 * 10**8), ("0", 0)]
)
def test_memory(text: str, size: int) -> None:
    assert parse(["--min-memory", text]).min_memory == size


WHOLE_NUMBERS = ("--nproc", "--max-restarts", "--node-rank", "--grace", "--nnodes", "--rdzv-timeout", "--master-port")
NO_NUMBERS = ("-1", "nan", "inf", "1e308", str(2**63), "", "1.5", "x", "9" * 5000)


@pytest.mark.parametrize("option", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_numbers_out_of_range(option: str, value: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse([option, value])
    message = str(caught.value)
    assert message.startswith(f"{option} {value!r}: expected")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nproc", "0"], "from 1 to"),
        (["--nnodes", "0"], "--nnodes '0'"),
        (["--nnodes", "3:2"], "--nnodes '3:2'"),
        (["--nproc"], "--nproc needs a value"),
        (["--gpus", "--dry-run"], "--gpus needs a value"),
        (["--gpus", ""], "--gpus ''"),
        (["--gpus", "0,,1"], "--gpus '0,,1'"),
        (["--gpus", "-1"], "--gpus '-1'"),
        (["--policy", "best"], "largest, fastest, mixed"),
        (["--min-memory", "much"], "20GB"),
        (["--log-dir", ""], "--log-dir ''"),
        (["--rdzv-endpoint", "host"], "HOST:PORT"),
        (["--rdzv-endpoint", "host:0"], "HOST:PORT"),
        (["--rdzv-endpoint", "h:1", "--master-addr", "h"], "give one"),
        (["--master-port", "1"], "--master-addr"),
        (["--master-addr", "a b"], "--master-addr 'a b'"),
        (["--topology", "f"], "--dry-run"),
        (["--json"], "--dry-run"),
        (["--cpu", "--gpus", "0"], "exclude each other"),
        (["--cpu=1"], "--cpu"),
        (["-m"], "name of a module"),
        (["--no-python"], "needs an executable"),
        (["--no-python", "-m", "a"], "needs an executable"),
        ([""], "''"),
        (["--nprocs", "2", "a.py"], "--nprocs is not an option of the launcher"),
        (["--compile", "a.py"], "--compile is not an option of the launcher"),
        (["--compile", "a.py", "x"], "options of a.py stand after a.py"),
    ],
)
def test_refusals(argv: list[str], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(argv)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_shows_examples_before_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--auto", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert out.index("examples:") < out.index("Where to run:") < out.index("Several nodes")
    assert "python ddp_train/main.py --help" in out
