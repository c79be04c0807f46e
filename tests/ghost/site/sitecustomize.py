"""Gives ghost GPUs to a process that a test starts: Python imports this first where its folder is in PYTHONPATH."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path


class _WithTorch(importlib.abc.MetaPathFinder):
    """Finds torch as ever, and puts the ghost in place once it has been loaded as a whole."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_begin(module):  # type: ignore[no-untyped-def]
                load(module)
                sys.meta_path.remove(self)
                _begin()

            spec.loader.exec_module = load_and_begin  # type: ignore[method-assign]
        return spec


def _begin() -> None:
    root = str(Path(__file__).resolve().parents[3])
    sys.path.insert(0, root)
    try:
        from tests.ghost import process
    finally:
        sys.path.remove(root)
    process.begin()


sys.meta_path.insert(0, _WithTorch())
