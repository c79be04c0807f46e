"""Gives ghost GPUs to a process that a test starts: Python imports this first where its folder is in PYTHONPATH."""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path


class _WhenTorchIsThere(importlib.abc.MetaPathFinder):
    """Asked at each import; once torch has been loaded as a whole, it puts the ghost in place and is gone."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        module = sys.modules.get("torch")
        if module is None or getattr(module.__spec__, "_initializing", False):
            return
        sys.meta_path.remove(self)
        root = str(Path(__file__).resolve().parents[3])
        sys.path.insert(0, root)
        try:
            from tests.ghost import process
        finally:
            sys.path.remove(root)
        process.begin()


sys.meta_path.insert(0, _WhenTorchIsThere())
