"""A run folder as one record, whatever is missing in it or damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.report.launches import Setting
from ddp_train.report.page import state
from ddp_train.report.read_run import read_run
from tests.ddp_train.report.folders import PLAN, event, failure, history, write


def test_a_whole_run(tmp_path: Path) -> None:
    events = [
        event("plan", host="box", argv=["launch.py", "--auto"], version="0.1.0", plan=PLAN),
        event("attempt", attempt=0, world_size=2),
        failure(),
        event("restart", attempt=1, ranks=1, devices="GPU 0", change="GPU 1 is left out"),
        event("waited-for", rank=1, ms_a_step=2.5, share=0.2, steps=40, ranks={"0": {"forward": 0.5}}),
        event("energy", gpus=[{"index": 0, "uuid": "GPU-a", "joules": 3.6e6}]),
        event("end", status=0, seconds=12.5),
    ]
    dataset = {"name": "cifar10", "classes": ["cat"], "image_shape": [3, 32, 32], "train_samples": 5, "left_out": ["x"]}
    folder = write(
        tmp_path / "run",
        history=history(
            rank_seconds={"0": {"forward": 1.5}}, energy={"joules": 7.0, "epochs": 3}, examination={"top1": 0.9}
        ),
        plan=PLAN,
        events=events,
        config="epochs: 3\nlr: 0.2\nseed: 0\nno_such_option: 1\n",
        dataset=dataset,
        done={},
    )
    found = read_run(folder)
    assert (found.name, found.finished, found.trained, found.problems) == ("run", True, True, ())
    assert found.best == (3, found.column("test_accuracy")[-1]) and found.split == "test"
    assert (found.examined, found.rank_seconds, found.energy_joules) == ({"top1": 0.9}, {0: {"forward": 1.5}}, 7.0)
    assert found.changed == {"epochs": (3, None), "lr": (0.2, None)}
    assert found.data is not None and (found.data.classes, found.data.train, found.data.val) == (("cat",), 5, None)
    assert found.plan is not None and found.plan.excluded == ((2, "in use by process 7"),)
    assert found.plan.environment[1] == Setting("MASTER_PORT", "1", "stale", "removed")
    assert found.plan.settings == (Setting("batch_size", "512", "fits the memory"),)
    (launch,) = found.launches
    assert (launch.command, launch.status, launch.seconds, launch.attempts) == (("launch.py", "--auto"), 0, 12.5, 1)
    assert launch.failures[0].others == (("lost the connection to it", (0,)), ("were stopped", (2, 3)))
    assert launch.failures[0].place == "step 12 (epoch 2), backward"
    assert (launch.troubles[1].change, launch.energy[0].joules) == ("GPU 1 is left out", 3.6e6)
    assert launch.waited_for is not None and launch.waited_for.shares == {0: {"forward": 0.5}}


def test_a_config_file_of_another_program_is_no_setting(tmp_path: Path) -> None:
    plan = PLAN | {"training": None}
    files = {"events": [event("plan", plan=plan), event("end", status=0)], "config": "model: gpt\n"}
    found = read_run(write(tmp_path / "run", **files))
    assert (found.trained, found.config, found.problems) == (False, {}, ())
    assert state(found, found.launches[-1])["words"] == "finished"
    (found.folder / "config.yaml").write_text("a: [1")
    assert read_run(found.folder).problems == ()
    # The trainer's own file, before its first epoch; with every setting given, no other is decided.
    trainer = PLAN | {"training": {"reasons": {}}}
    found = read_run(write(tmp_path / "run", events=[event("plan", plan=trainer)], config="lr: 0.5\n"))
    assert (found.trained, found.config) == (True, {"lr": 0.5})
    assert read_run(write(tmp_path / "without launcher", config="lr: 0.5\n")).trained


def test_each_start_of_the_launcher_is_apart(tmp_path: Path) -> None:
    events = [event("plan"), failure(), event("end", status=1), event("plan"), event("end", status=0)]
    first, second = read_run(write(tmp_path / "run", events=events)).launches
    assert (first.status, len(first.failures), second.status, second.failures) == (1, 1, 0, ())


def test_a_run_that_was_finished_without_the_launcher_is_not_running(tmp_path: Path) -> None:
    # The launcher was killed; torchrun alone has resumed the run.
    folder = write(tmp_path / "run", history=history(), events=[event("plan")])
    found = read_run(folder)
    assert state(found, found.launches[-1])["words"].startswith("running, or ended without")
    found = read_run(write(folder, done={}))
    assert state(found, found.launches[-1])["words"] == "finished"


def test_energy_of_some_epochs_is_not_that_of_the_training(tmp_path: Path) -> None:
    assert read_run(write(tmp_path / "run", history=history(energy={"joules": 7.0, "epochs": 2}))).energy_joules is None


def test_the_validation_split_is_what_the_best_is_of(tmp_path: Path) -> None:
    found = read_run(write(tmp_path / "run", history=history(best={"epoch": 2, "val_accuracy": 0.5})))
    assert (found.best, found.split) == ((2, 0.5), "val")


DAMAGED = {
    "training_history.json": b'{"schema": "ddp-train-history/1", "epochs": [{"epoch": 1',
    "plan.json": b"\xff\xfe not JSON",
    "config.yaml": b"a: [1",
    "dataset.json": b"[" * 100_000,
    "topology.json": b'{"schema": "other"}',
    "events.jsonl": b'{"event": "plan"}\n{"event": "fai',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_a_line_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "run", history=history(), plan=PLAN, config="lr: 0.5\n", events=[event("plan")])
    (folder / name).write_bytes(DAMAGED[name])
    found = read_run(folder)
    assert len(found.problems) == 1 and name in found.problems[0] and str(tmp_path) not in found.problems[0]
    kept = [bool(found.epochs), found.plan is not None, bool(found.config), bool(found.launches)]
    assert kept.count(False) == (name in ("training_history.json", "plan.json", "config.yaml"))


WRONG: list[object] = [None, [], {}, "text", 1, True, [[]], {"a": {}}, {"selection": 1, "environment": {"a": 1}}]


@pytest.mark.parametrize("value", WRONG)
def test_values_of_another_kind_are_left_out(tmp_path: Path, value: object) -> None:
    names = ("plan", "attempt", "failure", "restart", "stall", "waited-for", "energy", "signal", "end")
    keys = ("plan", "argv", "place", "hang", "remedy", "doing", "ranks", "gpus", "status", "last_lines", "victims")
    events = [event(name, **dict.fromkeys(keys, value)) for name in names] + [value]
    folder = write(tmp_path / "run", history=history(examination=value), plan=value, dataset=value, events=events)
    assert read_run(folder).problems == ()


def test_numbers_beyond_a_float_are_not_known(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", events=[event("plan"), event("end", status=10**400, seconds=float("nan"))])
    (launch,) = read_run(folder).launches
    assert (launch.status, launch.seconds) == (None, None)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", plan=PLAN)
    os.mkfifo(folder / "events.jsonl")
    (folder / "dataset.json").symlink_to("dataset.json")
    assert len(read_run(folder).problems) == 2


@pytest.mark.parametrize("name", ["empty", "missing", "file", "nul\0"])
def test_what_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run folder|such folder|null"):
        read_run(tmp_path / name)
