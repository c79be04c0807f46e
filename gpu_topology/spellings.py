"""Other spellings of what a topology file says, as somebody writes them who copies from nvidia-smi and sysfs.

`nvidia-smi topo -m` calls four NVLinks "NV4" and lists each pair twice, `topo -p2p` says "OK" or "CNS" for peer access,
`-q` says "Enabled" for MIG mode, and sysfs calls an unknown NUMA node -1. What is none of these is left as it is, for
the reader to accept or refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpu_topology.topology import LinkLevel

__all__ = ["Json", "usual"]

Json = dict[str, object]

# The legend of `nvidia-smi topo -p2p`.
_PEER_WORDS = {
    "OK": "ok",
    "CNS": "chipset-not-supported",
    "GNS": "gpu-not-supported",
    "TNS": "topology-not-supported",
    "DR": "disabled-by-regkey",
    "NS": "not-supported",
    "U": None,
    "UNKNOWN": None,
}
_MODES = {"enabled": True, "disabled": False, "n/a": None, "[n/a]": None}


def usual(data: Json) -> Json:
    """The same object in the words of `snapshot.to_dict`; ValueError where a link contradicts itself."""
    gpus, links = data.get("gpus"), data.get("links")
    if isinstance(gpus, list):
        data = {**data, "gpus": [_gpu(gpu) if isinstance(gpu, dict) else gpu for gpu in gpus]}
    if isinstance(links, list):
        data = {**data, "links": list(_once(links))}
    return data


def _gpu(gpu: Json) -> Json:
    gpu = dict(gpu)
    if gpu.get("numa_node") == -1:
        gpu["numa_node"] = None
    mode = gpu.get("mig_mode")
    if isinstance(mode, str) and mode.lower() in _MODES:
        gpu["mig_mode"] = _MODES[mode.lower()]
    elif type(mode) is int and mode in (0, 1):
        gpu["mig_mode"] = mode == 1
    return gpu


def _once(links: list[object]) -> Iterator[object]:
    """Each pair once where a matrix was written out, without its diagonal; a pair told in two ways stays as it is."""
    seen: list[Json] = []
    for link in links:
        if not isinstance(link, dict):
            yield link
        elif link.get("level") != "X" and (plain := _link(link)) not in seen:
            seen.append(plain)
            yield plain


def _link(link: Json) -> Json:
    """As `Link` wants it: a below b, "NV4" as level NV with 4 links, peer access in the words of NVML."""
    level, nvlinks = link.get("level"), link.get("nvlinks")
    bonded = re.fullmatch(r"NV([1-9]\d?)", level) if isinstance(level, str) else None
    if bonded:
        count = int(bonded[1])
        if nvlinks not in (None, count):
            raise ValueError(f"level is {level!r}, but nvlinks is {str(nvlinks)[:60]}")
        link = {**link, "level": LinkLevel.NV.value, "nvlinks": count}
    if "p2p" in link:
        link = {**link, "p2p": _word(link["p2p"])}
    peer = link.get("peer")
    if isinstance(peer, dict):
        link = {**link, "peer": {kind: _pair(pair) for kind, pair in peer.items()}}
    return _turned(link)


def _turned(link: Json) -> Json:
    a, b, peer = link.get("a"), link.get("b"), link.get("peer")
    if type(a) is not int or type(b) is not int or a <= b:
        return link
    link = {**link, "a": b, "b": a}
    if isinstance(peer, dict):
        link["peer"] = {kind: pair[::-1] if isinstance(pair, list) else pair for kind, pair in peer.items()}
    return link


def _pair(pair: object) -> object:
    return [_word(word) for word in pair] if isinstance(pair, list) else pair


def _word(word: object) -> object:
    return _PEER_WORDS.get(word.upper(), word) if isinstance(word, str) else word
