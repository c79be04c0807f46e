"""One rule for all caches: below an absolute XDG_CACHE_HOME, else below ~/.cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_core.cache_folder import cache_folder
from ddp_train.data.sources import cache
from ddp_train.distributed import speed_cache
from ddp_train.process_setup import keep_private


def test_the_variable_counts_where_it_is_absolute() -> None:
    assert cache_folder("x", {"XDG_CACHE_HOME": "/caches"}) == Path("/caches/x")
    for ignored in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert cache_folder("x", ignored) == Path.home() / ".cache" / "x"


def test_every_cache_ignores_a_relative_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CACHE_HOME": "relative", "HOME": str(tmp_path)}
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    keep_private(environ)
    assert environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".cache/ddp_train/compiled")
    assert cache.roots(environ)[0] == tmp_path / ".cache/ddp_train"
    speed_cache.remember("work", speed_cache.KnownSpeeds({}, 0.0))
    assert (tmp_path / ".cache/ddp_launch/speeds.json").is_file()
    assert not (tmp_path / "relative").exists()


def test_speeds_that_cannot_be_kept_end_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ddp_launch" / "speeds.json").mkdir(parents=True)  # a folder has the name of the file
    speed_cache.remember("work", speed_cache.KnownSpeeds({}, 0.0))
    assert (tmp_path / "ddp_launch" / "speeds.json").is_dir()
