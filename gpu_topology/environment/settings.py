"""The environment for a selection: each variable with its reason.

Nothing is set "to be safe". NCCL reads the P2P status of each pair itself since 2.12, so most variables recommended in
forums only cost speed. What the user has set is kept. The rules are tables in rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_topology.environment.facts import Facts, Given
from gpu_topology.environment.rules import REMARKS, RULES, Rule
from gpu_topology.host.host import Host
from gpu_topology.select.select import Selection
from gpu_topology.topology import Topology

if TYPE_CHECKING:
    from gpu_topology.verify_cache import Verdict


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable with the reason for its value.

    kept   the user's own value, left as it is
    unset  the variable is to be removed from the environment; `value` is empty then
    """

    name: str
    value: str
    reason: str
    kept: bool = False
    unset: bool = False


def environment(
    topology: Topology,
    selection: Selection,
    host: Host,
    *,
    ranks: int,
    environ: Mapping[str, str],
    interface: str | None = None,
    nodes: int = 1,
    verdict: Verdict | None = None,
    bound: bool = True,
    trainer: bool = True,
) -> tuple[Setting, ...]:
    """The variables for `ranks` processes on this node: those that are needed, then those that the user has set.

    `interface`: the network interface on which the ranks meet, where it was chosen ("lo" for a run on one node).
    `verdict`: what `verify` found; the settings that fixed a problem there are applied.
    `bound`: whether ranks are bound to NUMA nodes where that is possible (see select/numa.py).
    `trainer`: whether the bundled trainer runs; some tuning suits only its training loop.
    An empty selection is a plan for the CPU: no NCCL variables, and of CUDA's only the one that hides unused GPUs.
    """
    facts = Facts(topology, selection, host, max(1, ranks), environ, interface, nodes, verdict, bound, trainer)
    settings = {setting.name: setting for setting in _verified(facts)}
    for rule in RULES:
        if rule.name not in settings and rule.needed(facts):
            settings[rule.name] = _apply(rule, facts)
    for name, given in sorted(facts.given.items()):
        if name not in settings and _is_shown(name, facts):
            settings[name] = Setting(name, given.value, _remark(name, given, facts), kept=True)
    return tuple(settings.values())


def _verified(facts: Facts) -> list[Setting]:
    """The settings with which `verify` fixed a problem on exactly these GPUs."""
    if facts.verdict is None or not facts.on_gpu:
        return []
    when = facts.verdict.when[:10]
    return [
        _kept_or(Setting(name, value, f"verified{f' on {when}' if when else ''}: {reason}"), facts)
        for name, value, reason in facts.verdict.settings
    ]


def _apply(rule: Rule, facts: Facts) -> Setting:
    """The setting of a rule, or the user's own value where the rule keeps it."""
    value, reason = rule.value(facts), rule.reason(facts)
    setting = Setting(rule.name, value or "", reason, unset=value is None)
    own = facts.given.get(rule.name)
    if own is None or rule.keeps(facts):
        return _kept_or(setting, facts)
    if rule.name == "CUDA_VISIBLE_DEVICES":
        return Setting(rule.name, setting.value, f"{reason}; chosen within your CUDA_VISIBLE_DEVICES={own.value}")
    return setting


def _kept_or(setting: Setting, facts: Facts) -> Setting:
    """The user's own value where there is one, with the value that would be set otherwise in the reason."""
    own = facts.given.get(setting.name)
    if own is None:
        return setting
    remark = _remark(setting.name, own, facts)
    if setting.name == "CUDA_VISIBLE_DEVICES" and facts.on_gpu:
        return Setting(setting.name, own.value, f"{remark}; every GPU in it is used", kept=True)
    agrees = "" if own.value == setting.value else f"; otherwise it would be {setting.value} ({setting.reason})"
    return Setting(setting.name, own.value, f"{remark}{agrees}", kept=True)


def _is_shown(name: str, facts: Facts) -> bool:
    """Whether to show a variable that the user has set and no rule sets."""
    if name.startswith(("NCCL_", "CUDA_", "TORCH_NCCL_")):
        return facts.on_gpu and name != "CUDA_HOME"
    return name in ("GLOO_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def _remark(name: str, given: Given, facts: Facts) -> str:
    """Where a user's value comes from, and the remarks that apply to it."""
    words = [remark.text for remark in REMARKS if remark.name == name and remark.applies(facts)]
    return "; ".join([given.origin, *words])
