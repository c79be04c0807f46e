"""What the launcher keeps of a run of any program, and the page that it makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddp_train.report.read_run import read_run
from tests.ddp_train.report.html import parse

FAILS_ONCE = """
import os, sys
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == sys.argv[1]:
    raise RuntimeError("no <b>such</b> thing \\x1b[31mred\\x1b[0m <script>alert(1)</script>")
"""


def test_a_program_with_a_log_dir(launcher: Any) -> None:
    script = launcher.script(FAILS_ONCE)
    command = ("--cpu", "--max-restarts", "1", "--log-dir", "logs", str(script), "0", "--api-key", "secret")
    done = launcher.run(*command)
    assert done.returncode == 0, done.stderr
    folder = launcher.folder / "logs"
    assert (folder / "attempt-1" / "rank-1.stdout.log").is_file()
    (launch,) = read_run(folder).launches
    assert launch.command[1:] == (*command[:-1], "***") and (launch.status, launch.attempts) == (0, 2)
    html = (folder / "report.html").read_text()
    parsed = parse(html)
    for words in ("finished", "no <b>such</b> thing red <script>alert(1)</script>", "Restart: attempt 2 started"):
        assert words in parsed.text
    assert "secret" not in html and "\x1b" not in html and not parsed.of("b")
    # Another run in the same folder is added; the page can be written again, and is the same.
    done = launcher.run("--cpu", "--log-dir", "logs", str(script), "9")
    assert done.returncode == 0, done.stderr
    assert [launch.status for launch in read_run(folder).launches] == [0, 0]
    written = (folder / "report.html").read_text()
    done = launcher.run("report", "logs")
    assert (done.returncode, done.stdout) == (0, "logs/report.html\n") and (
        folder / "report.html"
    ).read_text() == written


def test_a_failed_program_leaves_its_page_beside_the_temporary_logs(launcher: Any) -> None:
    done = launcher.run("--cpu", str(launcher.script(FAILS_ONCE)), "0")
    assert done.returncode == 1
    (page,) = Path(launcher.env["TMPDIR"]).glob("ddp-launch-*/report.html")
    assert "failed with status 1" in parse(page.read_text()).text
    (events,) = Path(launcher.env["TMPDIR"]).glob("ddp-launch-*/events.jsonl")
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()][-1] == "end"


def test_a_page_that_cannot_be_written_changes_no_status(launcher: Any) -> None:
    (launcher.folder / "logs" / "report.html").mkdir(parents=True)
    (launcher.folder / "logs" / "events.jsonl").mkdir()
    done = launcher.run("--cpu", "--log-dir", "logs", str(launcher.script("print('well')")))
    assert (done.returncode, done.stdout) == (0, "well\n")
    assert "logs/events.jsonl: Is a directory" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("warning: logs/report.html was not written: ")


def test_files_of_the_users_own_in_the_log_dir_stay(launcher: Any) -> None:
    folder = launcher.folder / "results"
    folder.mkdir()
    for name in ("report.html", "plan.json", "events.jsonl"):
        (folder / name).write_text(f"my own {name}")
    done = launcher.run("--cpu", "--nproc", "1", "--log-dir", "results", str(launcher.script("print('well')")))
    assert (done.returncode, done.stdout) == (0, "well\n")
    assert all((folder / name).read_text() == f"my own {name}" for name in ("report.html", "plan.json", "events.jsonl"))
    assert "results/report.html is another program's: -o FILE writes" in done.stderr


def test_a_program_may_be_called_report(launcher: Any) -> None:
    launcher.script("print('a program')", "report")
    done = launcher.run("--cpu", "--nproc", "1", "report")
    assert "a program" in done.stdout + done.stderr
