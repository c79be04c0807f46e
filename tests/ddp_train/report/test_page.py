"""The page of a run: what it shows, that nothing in it comes to life, and that it stays small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.report.command import run
from ddp_train.report.page import page
from ddp_train.report.read_run import read_run
from ddp_train.report.render import clean
from ddp_train.report.write import write_page, write_page_if_possible
from gpu_topology import snapshot
from tests.ddp_train.report.folders import PLAN, epoch, event, failure, history, large, write
from tests.ddp_train.report.html import Parsed, parse
from tests.fake_nvml.machine import load_machine, to_topology


def shown(folder: Path) -> Parsed:
    return parse(write_page(folder).read_text(encoding="utf-8"))


def sections(parsed: Parsed) -> list[str]:
    return [attributes["aria-labelledby"] for attributes in parsed.of("section")]


def test_a_long_run_of_many_ranks(tmp_path: Path) -> None:
    folder = large(tmp_path / "run")
    snapshot.save(to_topology(load_machine("h100_8x_nvswitch")), folder / "topology.json")
    parsed = shown(folder)
    assert (folder / "report.html").stat().st_size < 2_000_000
    expected = ["command", "curves", "failures", "ranks", "energy", "plan", "settings", "data", "versions"]
    assert sections(parsed) == expected
    for words in (
        "best test accuracy 94.55%",
        "launch.py --auto --epochs 300",
        "Attempt 1: rank 0 on box failed first",
        "What to do: reset it",
        "Ranks 0 to 63 lost the connection to it",
        "The other ranks waited for rank 3: 4.2 ms a step, 12% of the time.",
        "to 90% test accuracy 1.33 kWh",
        "NCCL_P2P_LEVEL NVL NVLink between all",
        "2 in use by process 7",
        "1,000: class number 0 of them",
        "--lr 0.1 not set",
    ):
        assert words in parsed.text
    assert len(parsed.of("figure")) == 8 and len(parsed.of("details")) >= 13
    assert {"8 x H100 80GB HBM3"} <= {*parsed.words}


def test_a_program_that_is_not_ours(tmp_path: Path) -> None:
    events = [event("plan", argv=["launch.py", "train.py"], plan=PLAN), failure(), event("end", status=1, seconds=5.0)]
    parsed = shown(write(tmp_path / "logs", plan=PLAN, events=events))
    assert sections(parsed) == ["command", "failures", "plan"]
    assert "failed with status 1" in parsed.text and "launch.py train.py" in parsed.text


def test_how_long_ranks_waited_is_shown_of_any_program(tmp_path: Path) -> None:
    versions = {"python": "3.13.1", "torch": "2.9.0"}
    waits = event("waits", seconds=9.0, ranks={"0": 0.25, "1": 0.0, "x": 1.0, "2": None})
    parsed = shown(write(tmp_path / "logs", plan=PLAN, events=[event("plan", versions=versions), waits]))
    assert sections(parsed) == ["ranks", "plan", "versions"]
    assert "0 75% 25% 1 100% 0%" in parsed.text and "torch 2.9.0" in parsed.text


@pytest.mark.parametrize("file", ["history", "plan", "config", "dataset", "events"])
def test_one_file_alone_is_shown(tmp_path: Path, file: str) -> None:
    files = {"history": history(), "plan": PLAN, "config": "lr: 0.5\n", "events": [event("plan")]}
    files["dataset"] = {"name": "digits", "classes": ["0"]}
    alone = write(tmp_path / "run", **{name: content for name, content in files.items() if name in (file, "plan")})
    assert sections(shown(alone))


def test_several_starts_of_the_launcher_are_told_apart(tmp_path: Path) -> None:
    events = [event("plan"), failure(), event("end", status=1), event("plan"), failure(rank=0), event("end", status=0)]
    parsed = shown(write(tmp_path / "run", events=events))
    assert "The launcher was started 2 times in this folder" in parsed.text
    for words in ("Start 1: Attempt 1: rank 1 on box failed first", "Start 2: Attempt 1: rank 0 on box failed first"):
        assert words in parsed.text


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", plan=PLAN)
    (folder / "training_history.json").write_text("{")
    parsed = shown(folder)
    assert sections(parsed)[-1] == "problems" and "training_history.json is left out" in parsed.text


def test_a_machine_that_does_not_fit_the_plan_costs_the_picture_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", plan=PLAN | {"selection": {"indices": [99], "excluded": [{"index": 98}]}})
    snapshot.save(to_topology(load_machine("rtx3090_2x_nvlink")), folder / "topology.json")
    assert "plan" in sections(shown(folder))


BAD = "<script>alert(1)</script>\"'`{{7*7}}{% raw %}<img src=x onerror=alert(1)>"
BAD += "\x1b[31mred\x1b]0;title\x07\r\n\x00\udcff\u202eevil"


def hostile(folder: Path) -> Path:
    """Every text that a run's files can hold is hostile."""
    setting = {"name": BAD, "value": BAD, "reason": BAD, "kept": False, "unset": False}
    selection = {"indices": [0], "uuids": [BAD], "group": BAD, "policy": BAD, "reason": BAD}
    plan = PLAN | {"selection": selection | {"excluded": [{"index": 1, "reason": BAD}]}, "environment": [setting]}
    plan |= {"training": {BAD: BAD, "reasons": {BAD: BAD}}, "shell": BAD, "backend": BAD, "warnings": [BAD]}
    columns = {"columns": [BAD], BAD: 1.0, "extra": {BAD: 2.0}}
    rows = [epoch(1, **columns), epoch(2, **columns)]
    environment = dict.fromkeys(("python", "torch", "model", "device", "platform", "precision"), BAD)
    document = history(environment=environment, rank_seconds={BAD: {BAD: 1}, "0": {BAD: 2, "data": 1}}) | {
        "epochs": rows
    }
    facts = dict.fromkeys(("host", "words", "error", "at", "found"), BAD)
    bad_failure = failure(place={"phase": BAD}, hang={"seconds": 1.0, "stack": [BAD]}, last_lines=[BAD], **facts)
    bad_failure["remedy"] = {"meaning": BAD, "advice": BAD}
    events = [
        event("plan", host=BAD, argv=[BAD, "--lr"], version=BAD, plan=plan),
        bad_failure,
        event("restart", attempt=1, devices=BAD, change=BAD),
        event("stall", seconds=3.0, words=BAD, collective=BAD, doing=[{"ranks": [0], "doing": BAD}]),
        event("end", status=1, message=BAD),
    ]
    dataset = {"name": BAD, "classes": [BAD] * 3, "content": BAD, "left_out": [BAD], "train_samples": 1}
    settings = f"model: {json.dumps(BAD.replace(chr(0xDCFF), ''))}\ndata_dir: '<b>'\n"
    return write(folder, history=document, plan=plan, events=events, dataset=dataset, config=settings)


def test_nothing_that_a_file_says_comes_to_life(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "<img src=x onerror=alert(2)>\udcff\n'\"")
    html = write_page(folder).read_text(encoding="utf-8")
    parsed = parse(html)
    plain = parse(write_page(large(tmp_path / "plain")).read_text(encoding="utf-8"))
    assert len(parsed.of("script")) == 1 and not parsed.of("img")
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in plain.elements} | {"ul", "li", "circle"}
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert names <= {name for _, attributes in plain.elements for name in attributes} | {"cx", "cy", "r"}
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", html)
    assert "\u202e" not in html and "49" not in parsed.text and "{{7*7}}" in parsed.text
    assert parsed.text.count("alert(1)") > 30, "it is shown as text"
    assert parsed.of("meta")[-1]["content"].startswith("default-src 'none'")


def test_no_address_is_in_the_page(tmp_path: Path) -> None:
    parsed = shown(large(tmp_path / "run"))
    assert not [pair for _, a in parsed.elements for pair in a.items() if pair[0] in ("src", "href", "xlink:href")]
    assert not re.search(r"url\(|@import", (tmp_path / "run" / "report.html").read_text())


def test_each_table_and_picture_has_words(tmp_path: Path) -> None:
    parsed = shown(large(tmp_path / "run"))
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("table") == tags.count("caption") and tags.count("h1") == 1
    assert all(attributes.get("aria-label") for attributes in parsed.of("svg"))
    (loss, *_) = [attributes["aria-label"] for attributes in parsed.of("svg")]
    assert loss.startswith("Loss. train: 2.") and "in epoch 300" in loss


def test_a_text_is_cleaned_and_shortened() -> None:
    assert clean("a\x1b[1;31mb\x1b[0mc\x1b]8;;http://x\x1b\\d\te\nf") == "abcd\te\nf"
    assert clean("\x00\x7f\x9b\u2028\ud800") == "\ufffd" * 5
    assert clean("x" * 5000) == "x" * 2000 + " [... 1,000 characters ...] " + "x" * 2000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run", plan=PLAN)
    assert run([str(folder)]) == 0 and capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert run([str(folder), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (folder / "report.html").read_text()
    capsys.readouterr()
    for words in ([str(tmp_path)], [str(tmp_path / "missing")], [], [str(folder), "-o", str(tmp_path)]):
        assert run(words) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n"), said.err[:7]) == ("", 1, "error: ")


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run", plan=PLAN)
    (folder / "report.html").mkdir()
    write_page_if_possible(folder)
    write_page_if_possible(tmp_path / "missing")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {folder / 'report.html'} was not written: ")
    assert "no such folder" in second
    with pytest.raises(UserError):
        write_page(folder)


def test_a_run_of_very_many_epochs_is_drawn_in_part(tmp_path: Path) -> None:
    rows = [epoch(number) for number in range(1, 20_001)]
    folder = write(tmp_path / "run", history=history(epochs=1) | {"epochs": rows})
    html = page(read_run(folder))
    assert len(html) < 1_000_000 and "of the 20,000 epochs" in html and "in epoch 20000" in html
