"""Two allocator variables as one, and what torch itself makes of the result."""

from __future__ import annotations

import pytest

from gpu_topology.environment.alloc_conf import Merged, merge

CASES = {
    # what: (PYTORCH_ALLOC_CONF, PYTORCH_CUDA_ALLOC_CONF, merged)
    "apart": ("expandable_segments:True", "backend:native", Merged("expandable_segments:True,backend:native")),
    "the same key, the same value": ("a:1,b:2", "b:2,c:3", Merged("a:1,b:2,c:3")),
    "the same key, two values": ("a:1,b:2", "b:3,a:4,c:5", Merged("a:1,b:2,c:5", ("b", "a"))),
    "brackets": (
        "roundup_power2_divisions:[256:1,512:2,>:8]",
        "max_split_size_mb:64",
        Merged("roundup_power2_divisions:[256:1,512:2,>:8],max_split_size_mb:64"),
    ),
    "white space and a comma at the end": (" a : 1 , b:2,", "c:3", Merged("a:1,b:2,c:3")),
    "one is empty": ("", "a:1", Merged("a:1")),
    "the other is empty": ("a:1", "", Merged("a:1")),
    "no colon": ("a", "b:1", None),
    "no value": ("a:", "b:1", None),
    "no key": (":1", "b:1", None),
    "an open bracket": ("a:[1:2", "b:1", None),
}


@pytest.mark.parametrize("what", CASES)
def test_merge(what: str) -> None:
    general, cuda, merged = CASES[what]
    assert merge(general, cuda) == merged


def test_torch_parses_what_was_merged() -> None:
    """torch's parser refuses an unknown key or a wrong value."""
    torch = pytest.importorskip("torch")
    merged = merge("expandable_segments:False,roundup_power2_divisions:[256:1,512:2,>:8]", "max_split_size_mb:64")
    assert merged is not None
    torch._C._accelerator_setAllocatorSettings(merged.value)
    with pytest.raises(ValueError, match="nonsense"):
        torch._C._accelerator_setAllocatorSettings(merged.value + ",nonsense:1")
