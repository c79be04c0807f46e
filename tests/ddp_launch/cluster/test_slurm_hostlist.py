"""Node lists as Slurm writes them."""

from __future__ import annotations

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cluster.slurm_hostlist import expand, expand_counts


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node7", "node7"),
        ("node[01-03,7]", "node01 node02 node03 node7"),
        ("node[8-11]", "node8 node9 node10 node11"),
        ("node[08-11]", "node08 node09 node10 node11"),
        ("node[098-101]", "node098 node099 node100 node101"),
        ("rack1-[001-002,012],gpu5", "rack1-001 rack1-002 rack1-012 gpu5"),
        ("a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"),
        ("a[1-2],b[3-4]", "a1 a2 b3 b4"),
        ("n[1,3]-ib,login.example.org", "n1-ib n3-ib login.example.org"),
        ("[1-3]", "1 2 3"),
    ],
)
def test_names(text: str, names: str) -> None:
    assert expand(text, "V") == tuple(names.split())


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", "a[", "a]", "a[]", "a[1-]", "a[2-1]", "a[1-2", "a[x]", "a b", "a[1-999999999]", "a[1-9999]" * 2],
)
def test_lists_that_cannot_be_read(text: str) -> None:
    with pytest.raises(OptionError, match=r"^V='"):
        expand(text, "V")


@pytest.mark.parametrize(("text", "counts"), [("1", (1,)), ("4(x2)", (4, 4)), ("4(x2),3,1(x1)", (4, 4, 3, 1))])
def test_counts(text: str, counts: tuple[int, ...]) -> None:
    assert expand_counts(text, "V") == counts


@pytest.mark.parametrize("text", ["", "x", "4(x)", "4(x2", "4,,3", "1(x999999)", "-1"])
def test_counts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(OptionError, match=r"^V='"):
        expand_counts(text, "V")
