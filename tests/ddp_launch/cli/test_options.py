"""Which words are the launcher's and which the program's; what the launcher accepts."""

from __future__ import annotations

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions, Program, parse
from ddp_launch.cli.value_types import Tee

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
        tee=Tee(3),
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


@pytest.mark.parametrize(
    ("words", "tee"),
    [
        ("--tee a.py", Tee(3)),
        ("--tee all a.py", Tee(3)),
        ("-t 3 a.py", Tee(3)),
        ("--tee 0 a.py", Tee(0)),
        ("--tee 1,2 a.py", Tee(0, ((1, 3), (2, 3)))),
        ("--tee=7 a.py", Tee(0, ((7, 3),))),
        ("-t 0:3,1:1 a.py", Tee(0, ((0, 3), (1, 1)))),
        ("a.py", Tee()),
    ],
)
def test_which_ranks_are_shown(words: str, tee: Tee) -> None:
    options = parse(words.split())
    assert (options.tee, options.program.name) == (tee, "a.py")


def test_streams_of_a_rank() -> None:
    tee = parse(["--tee", "1:1,2"]).tee
    assert [tee.streams(rank) for rank in range(4)] == [0, 1, 3, 0]
    assert parse(["--tee"]).tee.streams(9) == 3


@pytest.mark.parametrize("text", ["x", "1,1", "1:4", "1,", "", "-1"])
def test_ranks_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match=r"--tee '.*': expected all"):
        parse([f"--tee={text}"])


def test_torchruns_variables_are_defaults() -> None:
    environ = {
        "PET_NPROC_PER_NODE": "4",
        "PET_MAX_RESTARTS": "2",
        "PET_SHUTDOWN_TIMEOUT": "7",
        "PET_LOG_DIR": "d",
        "PET_TEE": "3",
        "PET_NO_PYTHON": "1",
        "PET_NNODES": "9",
    }
    options = parse(["ls"], environ)
    assert (options.nproc, options.max_restarts, options.grace, options.log_dir) == (4, 2, 7, "d")
    assert (options.tee, options.program.kind) == (Tee(3), "executable")
    given = parse(["--nproc", "1", "--grace", "0", "--max-restarts", "0", "ls"], environ)
    assert (given.nproc, given.max_restarts, given.grace) == (1, 0, 0), "the command line goes over them"
    assert parse(["ls"], {"PET_NO_PYTHON": "0", "PET_NPROC_PER_NODE": ""}).program.kind == "script"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PET_NPROC_PER_NODE", "many", "a whole number from 1 to 1024, auto or gpu"),
        ("PET_MAX_RESTARTS", "-1", "from 0 to"),
        ("PET_NO_PYTHON", "yes", "0 or 1"),
        ("PET_TEE", "x", "all, ranks"),
    ],
)
def test_a_bad_variable_is_named_as_such(name: str, value: str, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(["a.py"], {name: value})
    assert str(caught.value).startswith(f"{name}={value!r} in the environment: expected ")
    assert words in str(caught.value)


def test_a_pasted_torchrun_command() -> None:
    line = (
        "--standalone --nproc-per-node=gpu --rdzv_backend c10d -r 3 --redirects=0:1 --max_restarts 1 a.py --standalone"
    )
    options = parse(line.split())
    assert options.program == Program("script", "a.py", ("--standalone",))
    assert (options.nproc, options.max_restarts) == (None, 1)
    assert [note.split()[0] for note in options.notes] == ["--standalone", "--rdzv-backend", "-r", "--redirects"]
    with pytest.raises(OptionError, match="--role of torchrun has no counterpart here: all ranks"):
        parse(["--role", "trainer", "a.py"])


def test_a_module_behind_an_equals_sign() -> None:
    assert parse(["--module=a.b", "c"]).program == Program("module", "a.b", ("c",))


def test_an_option_is_named_as_it_was_spelled() -> None:
    with pytest.raises(OptionError, match=r"^--nproc-per-node '0'"):
        parse(["--nproc_per_node", "0"])
