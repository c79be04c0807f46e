"""NCCL's own configuration files, read as NCCL reads them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from gpu_topology.host.nccl_conf import ConfiguredVariable, read_nccl_conf

HOME = pwd.getpwuid(os.getuid()).pw_dir
ETC = "/etc/nccl.conf"


def put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_no_file_is_no_variable(tmp_path: Path) -> None:
    assert read_nccl_conf(tmp_path, {}) == ()


def test_the_home_files_value_stands_before_that_of_etc(tmp_path: Path) -> None:
    put(tmp_path, f"{HOME}/.nccl.conf", "NCCL_DEBUG=WARN\nNCCL_DEBUG=INFO\n")
    put(tmp_path, ETC, "NCCL_DEBUG=TRACE\nNCCL_SOCKET_IFNAME==ens1\n")
    assert read_nccl_conf(tmp_path, {}) == (
        ConfiguredVariable("NCCL_DEBUG", "WARN", f"{HOME}/.nccl.conf"),
        ConfiguredVariable("NCCL_SOCKET_IFNAME", "=ens1", ETC),
    )


def test_a_file_of_ones_own_takes_the_home_files_place(tmp_path: Path) -> None:
    put(tmp_path, f"{HOME}/.nccl.conf", "NCCL_DEBUG=WARN\n")
    put(tmp_path, "/opt/my.conf", "NCCL_ALGO=Ring\n")
    put(tmp_path, ETC, "NCCL_PROTO=LL\n")
    found = {one.name: one.file for one in read_nccl_conf(tmp_path, {"NCCL_CONF_FILE": "/opt/my.conf"})}
    assert found == {"NCCL_ALGO": "/opt/my.conf", "NCCL_PROTO": ETC}
    assert {one.name for one in read_nccl_conf(tmp_path, {"NCCL_CONF_FILE": ""})} == {"NCCL_DEBUG", "NCCL_PROTO"}


def test_malformed_lines_are_none_and_never_an_error(tmp_path: Path) -> None:
    lines = [
        "# NCCL_A=1",
        "NCCL_B",
        "NCCL_C =1",
        " NCCL_D=1",
        "export NCCL_E=1",
        "=1",
        "",
        "PATH=/x",
        "NCCL_F=",
        "NCCL_G=1",
    ]
    put(tmp_path, ETC, "\n".join(lines).encode() + b"\nNCCL_\xff=1\n\x00\x00")
    assert [(one.name, one.value) for one in read_nccl_conf(tmp_path, {})] == [("NCCL_F", ""), ("NCCL_G", "1")]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "etc/nccl.conf").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    assert read_nccl_conf(tmp_path, {"NCCL_CONF_FILE": "/pipe"}) == ()
    assert read_nccl_conf(tmp_path, {"NCCL_CONF_FILE": "no\0name"}) == ()
