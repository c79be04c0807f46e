"""torchrun's command line here: its PET_ variables as defaults, and its options that have no counterpart.

A pasted torchrun command runs where its options are ours or change nothing; what it asks for and would not get is an
error with the reason.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from ddp_core.errors import OptionError

# Options that torchrun takes from PET_ variables, and that are the launcher's too. Those about nodes are read with what
# job managers say: clusters/pet.py.
VARIABLES = {
    "PET_NPROC_PER_NODE": "--nproc-per-node",
    "PET_MAX_RESTARTS": "--max-restarts",
    "PET_LOG_DIR": "--log-dir",
    "PET_TEE": "--tee",
    "PET_SHUTDOWN_TIMEOUT": "--shutdown-timeout",
    "PET_NO_PYTHON": "--no-python",
}
FLAGS = ("PET_NO_PYTHON",)

# What the launcher does anyway, and why the option changes nothing.
NO_EFFECT = {
    "--standalone": "a run on one node has a rendezvous of its own",
    "--redirects": "the output of every rank goes to files",
    "-r": "the output of every rank goes to files",
    "--rdzv-backend": "the rendezvous is c10d",
    "--monitor-interval": "the end of a rank is noticed when it happens",
    "--start-method": "ranks are programs of their own",
}
WITHOUT_VALUE = ("--standalone",)

REFUSED = {
    "--rdzv-conf": "--rdzv-timeout is the setting that has a use",
    "--role": "all ranks have the same role",
    "--run-path": "each rank is a Python of its own",
    "--event-log-handler": "--json-events FILE records what happens",
    "--logs-specs": "--log-dir and --tee say where the output goes",
    "--local-addr": "the address is the one on the way to --rdzv-endpoint",
    "--log-line-prefix-template": "lines of --tee begin with [rank N]",
    "--local-ranks-filter": "--tee takes the ranks to show, as in --tee 1,2",
    "--duplicate-stdout-filters": "the logs of all ranks are files to search in",
    "--duplicate-stderr-filters": "the logs of all ranks are files to search in",
    "--signals-to-handle": "SIGINT, SIGTERM, SIGHUP and SIGQUIT are handled",
    "--virtual-local-rank": "it is set where the ranks are MIG slices",
}


def defaults(environ: Mapping[str, str], given: Container[str]) -> Iterator[tuple[str, str, str]]:
    """Variable, value and option as one word, for options that are not `given`. Errors: OptionError for a bad flag."""
    for variable, option in VARIABLES.items():
        value = environ.get(variable, "").strip()
        if not value or option in given:
            continue
        if variable not in FLAGS:
            yield variable, value, f"{option}={value}"
        elif value not in ("0", "1"):
            raise OptionError(f"{variable}={value!r} in the environment: expected 0 or 1")
        elif value == "1":
            yield variable, value, option


def no_effect(name: str) -> str | None:
    """The words for an option of torchrun that changes nothing here; None for any other word."""
    return f"{name} changes nothing: {NO_EFFECT[name]}" if name in NO_EFFECT else None


def refuse(name: str) -> None:
    """Errors: OptionError for an option of torchrun that has no counterpart."""
    if name in REFUSED:
        raise OptionError(f"{name} of torchrun has no counterpart here: {REFUSED[name]}")
