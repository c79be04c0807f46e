"""Which words are the launcher's and which the program's; what the launcher accepts."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions, Program, parse
from ddp_launch.cli.value_types import Tee
from ddp_launch.cluster.cluster import find_cluster
from ddp_launch.plan.command import escape_macros

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
        (["--nnodes", "2", "--master-port", "1"], "--master-addr"),
        (["--nnodes", "2", "--rdzv-endpoint", "localhost:0"], "HOST:PORT"),
        (["--rdzv-backend", "etcd", "a.py"], "no counterpart here: the rendezvous is c10d"),
        (["--rdzv-conf", "timeout", "a.py"], "KEY=VALUE"),
        (["--local-ranks-filter", "a", "a.py"], "numbers of ranks"),
        (["--num_processes", "2", "a.py"], "--num-processes is an option of accelerate; here it is --nproc N"),
        (["--num_gpus=2", "a.py"], "DeepSpeed; here it is --nproc N"),
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


LINES = """
torchrun --standalone --nnodes=1 --nproc-per-node=2 train.py --epochs 5 | 2 train.py
torchrun --nproc_per_node=2 train.py --dataset large.jsonl --distributed | 2 train.py
torchrun --nproc_per_node=1 --master_port=2122 train.py --test_dataset x | 1 train.py
torchrun --nproc_per_node=2 --master_addr=127.0.0.1 --master_port=29501 train.py | 2 train.py
torchrun --nproc_per_node 2 --nnodes 1 --master_addr localhost --node_rank 0 --master_port 6000 train.py | 2 train.py
torchrun --nnodes 1 --nproc_per_node 2 --rdzv_id 100 --rdzv_backend c10d --rdzv_endpoint localhost:29500 train.py | 2 train.py
torchrun --nnodes=1 --nproc_per_node=2 --rdzv_id=1 --rdzv_backend=c10d --rdzv_endpoint=localhost train.py | 2 train.py
torchrun --nnodes=1 --nproc_per_node=2 --rdzv_id=job --rdzv_backend=c10d --rdzv_endpoint=localhost:0 train.py | 2 train.py
torchrun --nproc_per_node=2 --rdzv_backend c10d --rdzv_endpoint=localhost:0 --local-ranks-filter 0 --role rank --tee 3 -m package.train --job.config_file x.toml | 2 package.train
torchrun --nproc-per-node=2 --rdzv-backend=static --rdzv-endpoint=127.0.0.1:29400 train.py | 2 train.py
torchrun --nproc_per_node=2 --no_python ./train.py --lr 0.1 | 2 ./train.py
torchrun --nproc_per_node=2 -m package.train run --model large | 2 package.train
torchrun -m --nproc_per_node=2 package.train --fast | 2 package.train
torchrun --module --nnodes=1 --nproc_per_node=2 package.train | 2 package.train
torchrun --nnodes=1:1 --nproc_per_node=2 --max_restarts=3 --rdzv_id=7 --rdzv_backend=c10d --rdzv_endpoint=localhost:29400 train.py | 2 train.py
torchrun --nproc_per_node=2 --max_restarts=0 --monitor_interval=5 train.py | 2 train.py
torchrun --nproc_per_node=2 --log_dir=logs --redirects=3 --tee=0:3 train.py | 2 train.py
torchrun --nproc_per_node=2 --log_dir logs -r 3 -t 0:1,1:2 train.py | 2 train.py
torchrun --nproc_per_node=2 -r3 -t3 train.py | 2 train.py
torchrun --nproc_per_node=2 --redirect=3 train.py | 2 train.py
torchrun --stand --nproc_per=2 --max_restart 1 train.py -- --flag | 2 train.py
torchrun --nproc_per_node=2 --start_method=fork --use_env train.py | 2 train.py
torchrun --nproc_per_node=2 --rdzv_conf=timeout=900,read_timeout=60 train.py | 2 train.py
torchrun --nproc_per_node=2 --log-line-prefix-template=[${rank}]: --tee 3 train.py | 2 train.py
torchrun --nproc_per_node=2 --logs_specs default --event_log_handler null train.py | 2 train.py
torchrun --nproc_per_node=2 --signals-to-handle SIGTERM,SIGUSR1 --shutdown-timeout 60 train.py | 2 train.py
torchrun --nproc_per_node=2 --local_addr 127.0.0.1 --virtual-local-rank train.py | 2 train.py
torchrun --nproc_per_node=cpu --run-path /tmp/train.py | cpu /tmp/train.py
torchrun --nproc_per_node=2 --duplicate-stdout-filters loss --role=trainer train.py --nproc_per_node 9 | 2 train.py
-m torch.distributed.launch --nproc_per_node=2 --master_port=12358 --use_env train.py --batch_size 2 | 2 train.py
-m torch.distributed.launch --nnodes=1 --node_rank=0 --nproc_per_node=2 --master_addr=127.0.0.1 --master_port=29501 train.py --cfg a | 2 train.py
-m torch.distributed.run --nproc_per_node=2 --nnodes=1 train.py | 2 train.py
""".strip().splitlines()  # noqa: E501
"""As in public READMEs, with other names of hosts and programs; after the bar, what torchrun makes of it."""


@pytest.mark.parametrize("line", LINES)
def test_torchrun_lines_of_readmes(line: str) -> None:
    """What torchrun's own parser makes of the line, but for what it takes for the command."""
    pasted, _, expected = line.partition(" | ")
    ranks, name = expected.split()
    words = pasted.split()
    options = parse(words)
    nproc = len(os.sched_getaffinity(0)) if ranks == "cpu" else int(ranks)
    assert (options.nproc, options.program.name) == (nproc, name)
    theirs = argparse_of_torchrun(words[1:] if words[0] == "torchrun" else words[2:])
    assert theirs.training_script == options.program.name
    given = [word for word in theirs.training_script_args if word != "--"]
    assert [word for word in options.program.args if word != "--"] == given
    assert (options.program.kind == "module") == theirs.module
    find_cluster(options, {})


def argparse_of_torchrun(words: list[str]) -> argparse.Namespace:
    from torch.distributed import run

    found: argparse.Namespace = run.get_args_parser().parse_args([word for word in words if word != "--use_env"])
    return found


def test_what_changes_nothing_is_a_note() -> None:
    line = "--rdzv_endpoint=localhost:0 --master_port=29504 --role rank --rdzv_conf=join_timeout=5 --use_env a.py"
    options = parse(line.split())
    assert (options.rdzv_endpoint, options.master_port, options.rdzv_timeout) == (None, None, None)
    for option in ("--role", "--use-env", "--rdzv-endpoint", "--master-port", "join_timeout of --rdzv-conf"):
        assert any(note.startswith(f"{option} ") for note in options.notes), options.notes


def test_settings_of_the_rendezvous_on_several_nodes() -> None:
    line = "--nnodes=2:3 --rdzv_endpoint=h --rdzv_conf=join_timeout=5,last_call_timeout=1,close_timeout=3 a.py"
    options = parse(line.split())
    assert (options.rdzv_endpoint, options.rdzv_timeout, options.last_call) == ("h:29400", 5, 1)
    cluster = find_cluster(options, {})
    assert (cluster.rdzv_timeout_s, cluster.last_call_s) == (5, 1)
    assert options.notes == ("close_timeout of --rdzv-conf changes nothing",)


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("--nproc_per_node=2 {dashes} --lr 1", "--local-rank=${local_rank}"),
        ("--nproc_per_node=2 {underscores} --lr 1", "--local_rank=${local_rank}"),
        ("--nproc_per_node=2 {neither} --lr 1", None),
        ("--nproc_per_node=2 missing.py --lr 1", None),
        ("--use_env {dashes} --lr 1", None),
        ("--use {dashes} --use_env", None),
        ("-m a.b --lr 1", None),
    ],
)
def test_torch_distributed_launch_passes_the_local_rank(line: str, added: str | None, tmp_path: Path) -> None:
    """To a script that has the option, in the script's spelling."""
    scripts = {"dashes": "--local-rank", "underscores": "--local_rank", "neither": "--rank"}
    for name, option in scripts.items():
        (tmp_path / f"{name}.py").write_text(f"parser.add_argument('{option}', type=int, default=0)\n")
    words = line.format(**{name: tmp_path / f"{name}.py" for name in scripts}).split()
    options = parse(["-m", "torch.distributed.launch", *words])
    last = tuple(words[words.index("--lr") :] if "--lr" in words else words[-1:])
    assert options.program.args == ((added, *last) if added else last)
    assert any("as torch.distributed.launch passes it" in note for note in options.notes) == bool(added)
    assert not any(note.startswith("--use-env") for note in options.notes)
    assert parse(["-m", "torch.distributed.run", *words]).program.args == last


def test_torchs_agent_fills_in_the_local_rank_of_this_argument_alone() -> None:
    argument = "--local-rank=${local_rank}"
    assert escape_macros((argument, "${local_rank}")) == [argument, "$${local_rank}"]


def test_the_path_of_torchrun_begins_a_pasted_command(tmp_path: Path) -> None:
    torchs, users = tmp_path / "torchrun", tmp_path / "mine" / "torchrun"
    users.parent.mkdir()
    torchs.write_text("#!/usr/bin/python3\nimport sys\nfrom torch.distributed.run import main\nsys.exit(main())\n")
    users.write_text("#!/usr/bin/python3\nprint('runs the torch')\n")
    options = parse([str(torchs), "--nproc-per-node=2", "train.py", "--lr", "1"])
    assert (options.nproc, options.program) == (2, Program("script", "train.py", ("--lr", "1")))
    assert parse([str(users), "train.py"]).program == Program("script", str(users), ("train.py",))
    assert parse(["--", str(torchs)]).program.name == str(torchs)


@pytest.mark.parametrize("host", ["node10", "10.0.0.10", "gpu0", "node11", "[fd00::10]"])
def test_an_endpoint_without_a_port_gets_torchs(host: str) -> None:
    assert parse(["--nnodes=2", "--rdzv-endpoint", host, "a.py"]).rdzv_endpoint == f"{host}:29400"


def test_a_number_that_is_out_of_range_is_no_script() -> None:
    for words, expected in (
        (["--wait", "99999999999d", "a.py"], "--wait '99999999999d': expected a time"),
        (["--tee", "1:9", "a.py"], "--tee '1:9': expected all"),
    ):
        with pytest.raises(OptionError, match=re.escape(expected)):
            parse(words)
    assert parse(["--wait", "train.py"]).program.name == "train.py"


def test_which_ranks_of_the_node_are_shown_and_how() -> None:
    tee = parse(["--tee", "3", "--local-ranks-filter", "0,2", "a.py"]).tee
    assert [tee.shown(rank, rank)[0] for rank in range(4)] == [3, 0, 3, 0]
    assert parse(["a.py"]).tee.shown(0, 0) == (3, "") and parse(["a.py"]).tee.shown(1, 1) == (0, "[rank 1] ")
    tee = parse(["--log-line-prefix-template", "<${role_name} ${rank}.${local_rank}> $x ", "a.py"]).tee
    assert tee.shown(5, 0) == (3, "<rank 5.0> $x ")


def test_a_module_behind_an_equals_sign() -> None:
    assert parse(["--module=a.b", "c"]).program == Program("module", "a.b", ("c",))


def test_an_option_is_named_as_it_was_spelled() -> None:
    with pytest.raises(OptionError, match=r"^--nproc-per-node '0'"):
        parse(["--nproc_per_node", "0"])
