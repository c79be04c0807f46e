"""The bundled trainer in a plan: checks its options once, and adds options chosen for the machine."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass

from ddp_core.errors import UserError
from ddp_launch.cli.options import Program, option_names
from ddp_train.config import recommend
from ddp_train.config.options import Config, to_dict
from ddp_train.config.other_names import MEANT
from ddp_train.config.parse import parse
from ddp_train.config.validation import check, check_paths
from gpu_topology.host.host import Host
from gpu_topology.select.select import Selection
from gpu_topology.topology import Gpu, Topology

OF_ALL_RANKS = (
    *("device", "model", "width_mult", "hidden_dim", "n_layers", "target", "amp"),
    *("batch_size", "batch_size_per_rank", "accumulate"),
)
"""Options that depend on the hardware and must be the same on all ranks of a run, unlike num_workers."""


@dataclass(frozen=True)
class Training:
    """A run of the bundled trainer.

    `given`: the user's options; `settings`: values chosen for the machine, for options that the user did not set;
    `program`: the trainer with both; `config`: both, parsed and checked.
    """

    given: tuple[str, ...]
    program: Program
    config: Config
    settings: tuple[recommend.Recommendation, ...] = ()

    @property
    def wants_cpu(self) -> str | None:
        """The user's option that asks for the CPU, None where there is none."""
        return "--device cpu" if self.config.run.device == "cpu" else None

    @property
    def of_all_ranks(self) -> tuple[tuple[str, str], ...]:
        """The values of OF_ALL_RANKS that are set."""
        values = to_dict(self.config)
        return tuple((name, str(values[name])) for name in OF_ALL_RANKS if values[name] is not None)

    def decided(self, topology: Topology, selection: Selection, host: Host, *, ranks: int, nodes: int) -> Training:
        """This run with the settings for the selected hardware. Errors: UserError."""
        if self.config.run.device == "cuda" and not selection.indices:
            raise UserError(f"--device cuda: {selection.reason}")
        settings = (
            *self._device(selection),
            *self._shares(selection, ranks * nodes),
            *recommend.recommend(_hardware(topology, selection, host, ranks, nodes), self.config),
        )
        words = tuple(word for s in settings for word in ("--" + s.name.replace("_", "-"), str(s.value)))
        program = dataclasses.replace(self.program, args=(*self.program.args, *words))
        config = recommend.apply(self.config, settings)
        check(config)
        return Training(self.given, program, config, settings)

    def _device(self, selection: Selection) -> tuple[recommend.Recommendation, ...]:
        """The recommendation for `--device auto`."""
        if self.config.run.device != "auto":
            return ()
        if selection.indices:
            return (recommend.Recommendation("device", "cuda", f"{len(selection.indices)} GPU(s) selected"),)
        return (recommend.Recommendation("device", "cpu", "no GPU selected"),)

    def _shares(self, selection: Selection, ranks: int) -> tuple[recommend.Recommendation, ...]:
        """The recommendation of shares for --policy mixed: each GPU gets as much as it computes in the same time."""
        if selection.policy != "mixed" or ranks < 2 or "shares" in self.config.given or self.config.run.reproducible:
            return ()
        return (recommend.Recommendation("shares", "measured", "ranks of unequal speed (--policy mixed)"),)


def plan_training(program: Program) -> Training | None:
    """The trainer's options, checked; None for a user's program. Errors: UserError, one line."""
    if program.kind != "trainer":
        return None
    try:
        config = parse(program.args, prog="launch.py")
    except UserError as error:
        raise UserError(_with_suggestion(str(error))) from None
    check_paths(config)
    return Training(program.args, program, config)


def _with_suggestion(message: str) -> str:
    """The message; if an unknown word is close to an option of the launcher, a suggestion of that option instead."""
    word = message.split()[2].strip(",:").partition("=")[0] if message.startswith("unknown option ") else ""
    if word and word.removeprefix("--").replace("-", "_") not in MEANT:
        trainers = re.search(r"did you mean (--[\w-]+)", message)
        known = [*option_names(), *([trainers[1]] if trainers else [])]
        if (close := difflib.get_close_matches(word, known, n=1, cutoff=0.75)) and close[0] in option_names():
            return f"unknown option {word}, did you mean {close[0]}? (see --help)"
    return message


def _hardware(topology: Topology, selection: Selection, host: Host, ranks: int, nodes: int) -> recommend.Hardware:
    """What the trainer's recommendations depend on: devices, ranks, memory (bytes) and CPUs."""
    gpus = [topology.gpu(index) for index in selection.indices]
    each = list(map(_memory, gpus, selection.uuids))
    memory = sum(each) if all(each) else 0  # a sum without the unknown GPUs would be too small
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability is not None]
    return recommend.Hardware(
        device="cuda" if gpus else "cpu",
        world_size=ranks * nodes,
        local_world_size=ranks,
        gpu_memory=nodes * memory,
        compute_capability=min(capabilities) if capabilities else None,
        cpus=host.usable_cpus,
        cpu_flags=host.cpu_flags,
    )


def _memory(gpu: Gpu, uuid: str) -> int:
    """Bytes of the GPU, or of the MIG slice with this UUID; 0 where the driver does not report it."""
    parts = {part.uuid: part.memory_total for part in gpu.mig_devices}
    return parts.get(uuid, gpu.memory_total) or 0
