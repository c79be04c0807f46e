"""Checkpoints made to do harm: each is refused, nothing of it is run, no memory goes, and the one before is used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint import integrity
from ddp_train.config.validation import LATEST, PREVIOUS
from tests.faults.hostile import PAYLOADS

_ROOT = Path(__file__).parents[2]

_READER = """
import json, sys
from pathlib import Path
import torch
from ddp_train.checkpoint import format as checkpoint
from ddp_core.errors import UserError

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

for folder in map(str.strip, sys.stdin):
    latest = Path(folder) / "checkpoint-latest.pt"
    answer = {}
    for name, read in (("load", checkpoint.load), ("load_state_dict", checkpoint.load_state_dict)):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
        try:
            answer[name] = repr(read(latest).keys())
        except UserError as error:
            answer[name] = f"refused {error}"
        answer[f"{name} growth"] = status("VmHWM") - before
    found = checkpoint.newest(folder)
    answer["used"], answer["notes"] = found.path.name, found.notes
    print(json.dumps(answer), flush=True)
"""

Reader = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def read() -> Iterator[Reader]:
    """Read the checkpoint of a folder in a process of its own, whose memory is measured."""
    command = [sys.executable, "-c", _READER]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def ask(folder: Path) -> dict[str, str]:
            print(folder, file=stdin, flush=True)
            return dict(json.loads(stdout.readline()))

        yield ask
        stdin.close()
    assert child.returncode == 0


@pytest.mark.parametrize("name", PAYLOADS)
def test_it_is_refused_and_the_one_before_is_used(name: str, tmp_path: Path, read: Reader) -> None:
    mark, folder = tmp_path / "executed", tmp_path / "run"
    folder.mkdir()
    checkpoint_format.save(folder / PREVIOUS, {"model": {"weight": torch.ones(3)}}, step=7)
    latest = folder / LATEST
    PAYLOADS[name](latest, mark)
    size = latest.stat().st_size
    answer = read(folder)
    for way in ("load", "load_state_dict"):
        assert answer[way].startswith("refused "), answer
        assert str(latest) in answer[way]
        assert "\n" not in answer[way]
        assert re.search(r"SHA-256 is [0-9a-f]{64}(,| as expected)", answer[way]), answer
        # Under twice the file; of a small one, under the megabytes that any reading takes.
        assert int(answer[f"{way} growth"]) < max(2 * size, 40_000_000), answer
    assert not mark.exists()
    assert answer["used"] == PREVIOUS
    assert len(answer["notes"]) == 1
    assert str(latest) in answer["notes"][0]
    assert "checkpoint-previous.pt of step 7 is used" in answer["notes"][0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]


def test_what_they_are_made_of_loads_where_it_does_no_harm(tmp_path: Path, read: Reader) -> None:
    """Else a fault in making the files would pass for their refusal."""
    from tests.faults.hostile import WHOLE, _archive, _checkpoint, _records

    _archive(tmp_path / LATEST, _records(_checkpoint(WHOLE)))
    answer = read(tmp_path)
    assert answer["load"] == "dict_keys(['model'])"
    assert answer["used"] == LATEST
    assert int(answer["load growth"]) < 2 * (tmp_path / LATEST).stat().st_size
    assert torch.load(tmp_path / LATEST, weights_only=True)["state"]["model"]["weight"].numel() == 2_000_000


def test_a_file_that_is_exchanged_while_it_is_read_is_the_one_that_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / LATEST, tmp_path / "other.pt"
    verify = integrity.verify

    def then_exchange(*arguments: object, **options: object) -> str | None:
        digest = verify(*arguments, **options)  # type: ignore[arg-type]
        PAYLOADS["a function of the system"](other, tmp_path / "executed")
        other.replace(path)
        return digest

    checkpoint_format.save(path, {"epoch": 1})
    monkeypatch.setattr(integrity, "verify", then_exchange)
    assert checkpoint_format.load(path) == {"epoch": 1}
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_changed_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / LATEST
    checkpoint_format.save(path, {"model": {"weight": torch.full((1000,), 1.5)}})
    verify = integrity.verify

    def then_change(*arguments: object, **options: object) -> str | None:
        digest = verify(*arguments, **options)  # type: ignore[arg-type]
        data = path.read_bytes()
        os.utime(path, (0, 0))
        with path.open("r+b") as file:
            file.seek(data.index(torch.full((8,), 1.5).numpy().tobytes()))
            file.write(b"\0")
        return digest

    monkeypatch.setattr(integrity, "verify", then_change)
    with pytest.raises(UserError, match="was changed while it was read"):
        checkpoint_format.load(path)
