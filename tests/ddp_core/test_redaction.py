"""What of a command line is hidden, and that no secret reaches a file or the screen of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddp_core.redaction import Secrets, redacted

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--api-key", "s3cret", "--lr", "0.1"], ["--api-key", "***", "--lr", "0.1"]),
        (["--hf_token=s3cret"], ["--hf_token=***"]),
        (["WANDB_API_KEY=s3cret", "-e", "A=b"], ["WANDB_API_KEY=***", "-e", "A=b"]),
        (["-password", "-s3cret-"], ["-password", "***"]),
        (["--s3.secret-key", "s3cret"], ["--s3.secret-key", "***"]),
        (["git+https://me:s3cret@host/x", "--lr"], ["git+https://***@host/x", "--lr"]),
        (["--token", "--lr", "1"], ["--token", "--lr", "1"]),
        (["--notify", "https://s3cret", "--notify-on", "end"], ["--notify", "***", "--notify-on", "end"]),
        (["--notify=https://s3cret", "DDP_NOTIFY=s3cret"], ["--notify=***", "DDP_NOTIFY=***"]),
        (["--slack-webhook-url", "s3cret"], ["--slack-webhook-url", "***"]),
        (["--export=HF_TOKEN=s3cret", "--env=A=b"], ["--export=HF_TOKEN=***", "--env=A=b"]),
        (["--export=A=1,HF_TOKEN=s3cret,B=2"], ["--export=A=1,HF_TOKEN=***"]),
        (["--export", "ALL,HF_TOKEN=s3,cret"], ["--export", "ALL,HF_TOKEN=***"]),
        (["+wandb.api_key=s3cret", "++x.hf_token=s3cret"], ["+wandb.api_key=***", "++x.hf_token=***"]),
    ],
)
def test_what_is_hidden(words: list[str], shown: list[str]) -> None:
    assert list(redacted(words)) == shown


def test_what_only_looks_alike_is_shown() -> None:
    words = ["--tokenizer", "bpe", "--max-tokens=512", "--key", "x", "https://host/a@b", "token", "secret.py", "--lr=1"]
    words += ["+model.tokenizer=bpe", "--export=ALL,TOKENIZERS_PARALLELISM=false", "--set=token="]
    assert list(redacted(words)) == words


def test_a_long_word_is_no_trap() -> None:
    started = time.monotonic()
    redacted(["a_" * 20_000, "-" * 20_000, "x-._" * 10_000 + "=", ",a_" * 20_000, "=token" * 20_000])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:s3cret@host/x?token=s3cret&page=2", "GET https://***@host/x?token=***&page=2"),
        ("{'api_key': 's3cret', 'lr': 1}", "{'api_key': '***', 'lr': 1}"),
        ("Authorization: Bearer s3cret.s3cret_s3cret", "Authorization: Bearer ***"),
        ("401 for hf_s3crets3crets3cret", "401 for ***"),
        ("value-of-it is wrong, and value-of-it-too", "*** is wrong, and ***"),
        ("KeyError: 'tokens'; max_tokens=512; tokenizer: bpe", "KeyError: 'tokens'; max_tokens=512; tokenizer: bpe"),
    ],
)
def test_what_is_hidden_in_a_text(text: str, shown: str) -> None:
    environ = {"A_TOKEN": "value-of-it", "B_SECRET": "value-of-it-too", "SHORT_TOKEN": "is", "HOME": "lr"}
    assert Secrets(environ).hidden(text) == shown


def test_a_long_text_is_no_trap() -> None:
    started = time.monotonic()
    Secrets({}).hidden("token_" * 20_000 + " " + "a-b." * 20_000 + "://" * 10_000)
    assert time.monotonic() - started < 5


def test_no_secret_in_plan_events_config_or_history(tmp_path: Path) -> None:
    secrets = {name: f"s3cret-of-{name}" for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_VALUE")}
    run = ["--cpu", "--nproc", "1", "--dataset", "synthetic", "--synthetic-samples", "64", "--model", "small"]
    run += ["--epochs", "1", "--batch-size", "32", "--out-dir", str(tmp_path / "run")]
    script = ["--cpu", "--dry-run", "--json", "train.py", "--api-key", "s3cret-of-the-script"]
    (tmp_path / "train.py").touch()
    said = ""
    for arguments in (script, [word for word in script if word != "--json"], [*run, "--json-events", "events.jsonl"]):
        done = subprocess.run(
            [sys.executable, str(_ROOT / "launch.py"), *arguments],
            cwd=tmp_path,
            env={**os.environ, **secrets},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    assert "--api-key" in said
    assert "s3cret" not in said
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes(), path
