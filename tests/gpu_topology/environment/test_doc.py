"""docs/environment.md says what the rules do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gpu_topology.environment.rules import NEVER_SET, REMARKS, RULES

ROOT = Path(__file__).parents[3]


def test_the_committed_page_is_the_generated_one() -> None:
    command = [sys.executable, "-m", "gpu_topology.environment.doc"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (ROOT / "docs/environment.md").read_text() == made


def test_every_row_is_whole() -> None:
    for rule in RULES:
        assert rule.when and rule.sets and rule.why.endswith(".") and rule.source, rule.name
        assert not rule.when.endswith("."), rule.name
    assert all(row.why.endswith(".") and row.source and "|" not in row.why for row in NEVER_SET)
    assert all(remark.text and not remark.text.endswith(".") for remark in REMARKS)


def test_what_is_never_set_is_set_by_no_rule() -> None:
    set_by_rules = {rule.name for rule in RULES}
    never = {name for row in NEVER_SET for name in row.name.split(", ")}
    assert never & set_by_rules == {"NCCL_P2P_DISABLE", "PYTORCH_ALLOC_CONF"}  # each but for the one need
    assert {"NCCL_IB_DISABLE", "CUDA_LAUNCH_BLOCKING"} <= never
