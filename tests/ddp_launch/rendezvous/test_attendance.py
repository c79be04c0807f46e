"""Who has come to a rendezvous, and who has not."""

from __future__ import annotations

import pytest

from ddp_launch.rendezvous.attendance import Attendance, Node, which_settings_differ, who_is_missing

A, B, C = Node("a1", "alpha", 0), Node("b1", "beta", 1), Node("c1", "gamma", 2)
NAMES = ("alpha", "beta", "gamma")


class Store:
    """A store of one process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add(self, key: str, amount: int, /) -> int:
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value

    def get(self, key: str, /) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str], /) -> bool:
        return all(key in self.values for key in keys)


def test_all_that_came_in_their_order() -> None:
    roll = Attendance(Store())
    assert roll.came() == []
    unnamed = Node("d1", "delta")
    for node in (B, unnamed, A):
        roll.enter(node)
    assert roll.came() == [B, unnamed, A]
    assert roll.ended() is None
    roll.end("why")
    assert roll.ended() == "why"


@pytest.mark.parametrize(
    ("nnodes", "names", "came", "present", "words"),
    [
        ((2, 2), (), [A], {"a1"}, "1 of 2 nodes did not come within 9 s: node rank 1 (here: alpha)"),
        ((2, 2), NAMES[:2], [A], {"a1"}, "1 of 2 nodes did not come within 9 s: node rank 1 (beta) (here: alpha)"),
        (
            (3, 3),
            NAMES,
            [A, B],
            {"a1"},
            "2 of 3 nodes did not come within 9 s: node rank 1 (beta), which came and was lost, node rank 2 (gamma)"
            " (here: alpha)",
        ),
        ((3, 3), (), [A, Node("x", "xi")], {"a1", "x"}, "1 of 3 nodes did not come within 9 s (here: alpha, xi)"),
        (
            (2, 2),
            (),
            [A, Node("x", "xi")],
            {"a1"},
            "1 of 2 nodes did not come within 9 s: xi, which came and was lost (here: alpha)",
        ),
        (
            (2, 3),
            (),
            [A],
            {"a1"},
            "1 of at least 2 nodes did not come within 9 s: node rank 1, node rank 2 (here: alpha)",
        ),
        (
            (2, 2),
            (),
            [A, B, Node("b2", "beta", 1)],
            {"b2"},
            "1 of 2 nodes did not come within 9 s: node rank 0 (alpha), which came and was lost (here: beta)",
        ),
    ],
)
def test_who_is_missing(
    nnodes: tuple[int, int], names: tuple[str, ...], came: list[Node], present: set[str], words: str
) -> None:
    assert who_is_missing(nnodes, names, came, present, 9) == words


def test_many_missing_nodes_make_a_short_line() -> None:
    words = who_is_missing((500, 500), (), [A], {"a1"}, 9)
    assert words.startswith("499 of 500 nodes")
    assert words.endswith("node rank 10, and 489 more (here: alpha)")


def test_settings_that_differ_between_nodes() -> None:
    newer = {"amp": "bf16", "batch_size": "384", "model": "power"}
    older = newer | {"amp": "fp16", "batch_size": "256"}
    a, b, c = (Node(key, key, None, settings) for key, settings in (("a", newer), ("b", newer), ("c", older)))
    assert which_settings_differ([a, b]) is None
    assert which_settings_differ([a, b, c]) == (
        "the nodes would train differently: a with --amp bf16 --batch-size 384, c with --amp fp16 --batch-size 256;"
        " give these options on the command line, the same on each node"
    )
    assert "b with --amp not set" in str(which_settings_differ([a, Node("b", "b")]))
