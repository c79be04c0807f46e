"""ONE table of techniques, and the checks that every row of it passes."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path

import pytest
import torch

from ddp_train.engine.reproducible_cost import Cost
from ddp_train.techniques import registry
from tests.ddp_train.techniques import runs
from tests.ddp_train.techniques.table import ELSEWHERE, TABLE, Row
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[3]
NAMES = [row.name for row in TABLE]

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Every row that two ranks must agree on, trained by one start of two real ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(2, Path(runs.__file__), str(folder / "result.pt"), folder=folder, timeout_s=280)
    return torch.load(folder / "result.pt", weights_only=True)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_neutral_equals_absent_and_on_does_not(row: Row) -> None:
    assert (row.neutral is None) != (row.no_neutral is None), "a row has a neutral setting, or says why not"
    network = row.network or runs.STATEFUL
    reference, on = runs.train(row.base, network), runs.train(row.on, network)
    if row.silent:
        assert same(on, reference), "it may look, and must not change what is trained"
    else:
        assert not same(on, reference), "it changes nothing: what follows would prove nothing"
    if row.neutral is not None:
        assert same(runs.train(f"{row.base} {row.neutral}".strip(), network), reference)


@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_killed_at_any_step_and_resumed_equals_uninterrupted(row: Row, tmp_path: Path) -> None:
    network = row.network or runs.STATEFUL
    whole, epochs = runs.trained(row.on, network)
    draw = random.Random(f"a kill: {row.name}")  # of 20 steps, or of the first 20
    at, saved = draw.randrange(3, 20), draw.choice([1, 2, 3, 100])
    at = at if saved < 100 else draw.randrange(10, 20)  # behind the checkpoint of the first epoch, the only one then
    print(f"killed before step {at}, a checkpoint every {saved} steps")
    parts, again = runs.train_with_a_kill(row.on, tmp_path / "parts", network, at=at, saved=saved)
    assert same(parts, whole)
    assert runs.rows_of_history(again) == epochs


@pytest.mark.parametrize("row", runs.rows_for_ranks(), ids=lambda row: row.name)
def test_two_ranks_equal_one(row: Row, on_two_ranks: dict[str, Weights]) -> None:
    one, two = runs.train(row.on, row.network or runs.PLAIN), on_two_ranks[row.name]
    for name, value in one.items():
        if value.is_floating_point():
            difference = (two[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)
            assert difference < 1e-4, f"{name}: {difference:.2e}"


@pytest.mark.parametrize("row", runs.rows_for_bits(), ids=lambda row: row.name)
def test_two_ranks_give_the_bits_of_one_where_they_are_to(
    row: Row, on_two_ranks: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the two ranks time their gradients, which takes most of such a run: a trace of it would differ here.
    monkeypatch.setattr("ddp_train.assemble.build.measure", lambda *_: Cost(1.0, 1.0))
    assert same(runs.train(*runs.reproducibly(row)), on_two_ranks[f"{row.name}, reproducible"])


def test_sam_on_two_ranks_climbs_on_each(on_two_ranks: dict[str, Weights], tmp_path: Path) -> None:
    expected = runs.sam_by_hand("--sam 0.1", 0.1, 2, tmp_path / "two")
    alone = runs.sam_by_hand("--sam 0.1", 0.1, 1, tmp_path / "one")
    assert all(
        torch.allclose(runs.train("--sam 0.1", runs.PLAIN)[name], value, atol=1e-5) for name, value in alone.items()
    )
    assert not all(torch.allclose(alone[name], value, atol=1e-5) for name, value in expected.items())
    for name, value in expected.items():
        assert torch.allclose(on_two_ranks["sam"][name], value, atol=1e-5), name


@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_the_oracle_is_there(row: Row) -> None:
    module, _, function = row.oracle.partition(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_technique_that_can_be_composed_has_a_row() -> None:
    assert {entry.name for entry in registry.TABLE} <= set(NAMES)


def cards() -> dict[str, tuple[str, ...]]:
    """The cards of docs/techniques.md, but for the models', and the first option that each names, with its value."""
    found = {}
    for section in re.split(r"^## ", (ROOT / "docs" / "techniques.md").read_text(), flags=re.M):
        for card in re.split(r"^### ", section, flags=re.M)[1:] if not section.startswith("Models") else ():
            option = re.search(r"^- \*\*Option\*\*: `?([^`\n]*)", card, flags=re.M)
            assert option is not None, card.splitlines()[0]
            found[card.splitlines()[0]] = tuple(option[1].split())
    return found


def has_row(option: tuple[str, ...]) -> bool:
    """Whether a row switches it on; a value that is a word of its own must be the row's."""
    name, value = option[0], "".join(option[1:2])
    for row in TABLE:
        words = row.options.split()
        if name in words and (not re.fullmatch("[a-z_]+", value) or value == words[words.index(name) + 1]):
            return True
    return False


def test_every_card_of_the_docs_has_a_row_or_a_reason() -> None:
    without = {title for title, option in cards().items() if not has_row(option)}
    assert without == set(ELSEWHERE)
    for reason in ELSEWHERE.values():
        assert all((ROOT / file).exists() for file in re.findall(r"tests/[\w/]+\.py", reason)), reason


def test_a_technique_of_the_users_own_takes_part(tmp_path: Path) -> None:
    run = runs.make("--technique tests.ddp_train.techniques.own:noise", tmp_path / "run", runs.PLAIN)
    run.trainer.fit()
    assert run.trainer.components.techniques[-1].report() == {"noise_steps": 20.0}
