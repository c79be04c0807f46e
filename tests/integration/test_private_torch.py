"""torch's private names are used in the modules named torch_internals alone."""

from __future__ import annotations

import ast

import pytest

from tests.integration.conftest import ROOT

PACKAGES = ("ddp_core", "gpu_topology", "ddp_launch", "ddp_train")
# Public despite the underscore: names of Python's own that torch's modules have too.
PUBLIC = {"__version__", "__name__", "__class__", "__file__", "__init__"}


def private(name: str) -> bool:
    return name.startswith("_") and name not in PUBLIC and not name.startswith("__")


def torch_names(tree: ast.AST) -> set[str]:
    """Local names that stand for torch or something of it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (alias.asname or alias.name.split(".")[0]) for alias in node.names if alias.name.startswith("torch")
            }
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def uses(tree: ast.AST) -> set[str]:
    names, found = torch_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            dotted = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            found |= {one for one in dotted if one.split(".")[0] == "torch" and any(map(private, one.split(".")))}
        if isinstance(node, ast.Attribute) and private(node.attr):
            root: ast.expr = node.value
            while isinstance(root, ast.Attribute | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and root.id in names:
                found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_only_torch_internals_uses_private_names(package: str) -> None:
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        if path.name != "torch_internals.py" and (there := uses(ast.parse(path.read_text()))):
            found[str(path.relative_to(ROOT))] = sorted(there)
    assert not found


def test_the_check_sees_each_form() -> None:
    imports = "import torch\nimport torch._C\nfrom torch.nn import _reduction\n"
    text = imports + "torch._foreach_add_(x)\ntorch.nn.f()._y\ntorch.nn.x\nself._z\n"
    assert uses(ast.parse(text)) == {"torch._C", "torch.nn._reduction", "torch._foreach_add_", "torch.nn.f()._y"}
