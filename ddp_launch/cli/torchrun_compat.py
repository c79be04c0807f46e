"""Compatibility with torchrun's command line: its spellings, PET_ variables as defaults, options without effect.

A pasted torchrun command runs. An option without effect here leads to a note. An option that asks for another engine is
an error, and so is an option of accelerate or DeepSpeed; the message names the launcher's option.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddp_core.errors import OptionError
from ddp_launch.cli.value_types import endpoint

# torchrun's PET_ variables -> the launcher's options. cluster/pet.py reads those about nodes, along with the variables
# of job managers.
VARIABLES = {
    "PET_NPROC_PER_NODE": "--nproc-per-node",
    "PET_MAX_RESTARTS": "--max-restarts",
    "PET_LOG_DIR": "--log-dir",
    "PET_TEE": "--tee",
    "PET_SHUTDOWN_TIMEOUT": "--shutdown-timeout",
    "PET_NO_PYTHON": "--no-python",
    "PET_LOCAL_RANKS_FILTER": "--local-ranks-filter",
    "PET_LOG_LINE_PREFIX_TEMPLATE": "--log-line-prefix-template",
    "PET_RDZV_CONF": "--rdzv-conf",
}
FLAGS = ("PET_NO_PYTHON",)

# Options of torchrun that change nothing here -> the reason.
NO_EFFECT = {
    "--standalone": "a run on one node has a rendezvous of its own",
    "--redirects": "the output of every rank goes to files",
    "-r": "the output of every rank goes to files",
    "--rdzv-backend": "the rendezvous is c10d",
    "--monitor-interval": "the end of a rank is noticed when it happens",
    "--start-method": "each rank runs as a separate program",
    "--role": "all ranks have the same role",
    "--run-path": "each rank runs in its own Python process",
    "--use-env": "LOCAL_RANK is in the environment",
    "--logs-specs": "--log-dir and --tee say where the output goes",
    "--event-log-handler": "--json-events FILE records what happens",
    "--local-addr": "the address is the one on the way to --rdzv-endpoint",
    "--duplicate-stdout-filters": "the logs of all ranks are files to search in",
    "--duplicate-stderr-filters": "the logs of all ranks are files to search in",
    "--signals-to-handle": "SIGINT, SIGTERM, SIGHUP and SIGQUIT are handled",
}
WITHOUT_VALUE = ("--standalone", "--run-path", "--use-env")
# Options that change nothing -> the values that are accepted.
HERE = {"--rdzv-backend": ("c10d", "static", ""), "--logs-specs": ("default", "")}
# Long options of torchrun that the launcher has too; for abbreviations.
SHARED = (
    *("--nnodes", "--nproc-per-node", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--max-restarts", "--module"),
    *("--no-python", "--log-dir", "--tee", "--log-line-prefix-template", "--local-ranks-filter", "--node-rank"),
    *("--master-addr", "--master-port", "--numa-binding", "--shutdown-timeout", "--virtual-local-rank"),
)
# Options of accelerate launch and deepspeed -> the tool, and what to use here instead.
OTHERS = {
    "--num-processes": ("accelerate", "--nproc N"),
    "--num-machines": ("accelerate", "--nnodes N"),
    "--machine-rank": ("accelerate", "--node-rank R"),
    "--main-process-ip": ("accelerate", "--master-addr HOST"),
    "--main-process-port": ("accelerate", "--master-port PORT"),
    "--gpu-ids": ("accelerate", "--gpus LIST"),
    "--multi-gpu": ("accelerate", "--auto"),
    "--config-file": ("accelerate", "options on the command line"),
    "--mixed-precision": ("accelerate", "an option of your program, or torch.autocast in it"),
    "--dynamo-backend": ("accelerate", "torch.compile in your program"),
    "--num-gpus": ("DeepSpeed", "--nproc N"),
    "--num-nodes": ("DeepSpeed", "--nnodes N"),
    "--include": ("DeepSpeed", "--gpus LIST"),
    "--enable-each-rank-log": ("DeepSpeed", "--log-dir DIR"),
}
LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[?::1\]?|0\.0\.0\.0|\[::\])(:0*)?")
NO_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]/\s]+)(:0+)?")
RENDEZVOUS_PORT = 29_400
JOIN = ("join_timeout", "timeout")
MODULES = ("torch.distributed.run", "torch.distributed.launch")
LOCAL_RANK_ARGUMENTS = ("--local-rank=${local_rank}", "--local_rank=${local_rank}")
"""What torch.distributed.launch puts in front of a program's arguments, as torch 2 and torch 1 spell it; torch's agent
fills in the number."""


def defaults(environ: Mapping[str, str], given: Container[str]) -> Iterator[tuple[str, str, str]]:
    """(variable, value, option as one word) for options that are not `given`. Errors: OptionError for a bad flag."""
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


def is_command(word: str, words: list[str]) -> bool:
    """Whether the word begins a pasted torchrun command. With -m torch.distributed.run, removes the second word."""
    if word in ("-m", "--module") and words and words[0] in MODULES:
        del words[:1]
        return True
    return Path(word).name == "torchrun" and (not Path(word).is_file() or _is_torchs(Path(word)))


def _is_torchs(file: Path) -> bool:
    """Whether a file named torchrun is torch's, and not a program of the user's."""
    try:
        return MODULES[0] in file.read_text("utf-8", errors="replace")
    except OSError:
        return False


def arguments_of_launch(before: Sequence[str], script: str, notes: list[str]) -> tuple[str, ...]:
    """What torch.distributed.launch adds to a script's arguments, if the script has that option: its local rank.

    Nothing with --use-env or without that module. before: the words before the script; notes: those on `before`, to
    which one may be added.
    """
    if not any(word in ("-m", "--module") and then == MODULES[1] for word, then in pairwise(before)):
        return ()
    if (use_env := no_effect("--use-env", "")) in notes:
        # Here the option does change something.
        notes.remove(use_env)
        return ()
    try:
        text = Path(script).read_text("utf-8", errors="replace")
    except (OSError, ValueError):
        return ()
    for argument in LOCAL_RANK_ARGUMENTS:
        option, _, _ = argument.partition("=")
        if re.search(rf"""["']{option}["']""", text):
            notes.append(f"{script} gets {option}=N, as torch.distributed.launch passes it; --use-env: it does not")
            return (argument,)
    return ()


def spelled(word: str, known: Container[str], *, abbreviated: bool) -> tuple[str, str, str]:
    """Name, "=" and value of an option. The name has dashes for underscores. `abbreviated`: a unique abbreviation is
    written out, as argparse does for torchrun."""
    if re.match(r"-[tr][^=]", word):
        return word[:2], "=", word[2:]
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name == "--":
        return name, equals, value
    name = "--" + name[2:].replace("_", "-")
    if abbreviated and name not in known and name not in NO_EFFECT:
        longer = [option for option in (*SHARED, *NO_EFFECT) if option.startswith(name)]
        name = longer[0] if len(longer) == 1 else name
    return name, equals, value


def no_effect(name: str, value: str) -> str:
    """The note on an option of torchrun that changes nothing here. Errors: OptionError for an unsupported value."""
    if name in HERE and value not in HERE[name]:
        raise OptionError(f"{name} {value!r} of torchrun has no counterpart here: {NO_EFFECT[name]}")
    return f"{name} changes nothing: {NO_EFFECT[name]}"


def refuse(name: str) -> None:
    """Errors: OptionError for an option of accelerate or DeepSpeed, with what it is called here."""
    if name in OTHERS:
        tool, here = OTHERS[name]
        raise OptionError(f"{name} is an option of {tool}; here it is {here}")


def settle(values: dict[str, Any], notes: list[str], environ: Mapping[str, str]) -> None:
    """Turn torchrun's settings into the launcher's values, and settings without effect on one node into notes.

    Errors: OptionError.
    """
    _settle_backend(notes, environ)
    _settle_alone(values, notes)
    several = values.get("nnodes", (1, 1))[1] > 1 or len(values.get("hosts", ())) > 1
    where = values.get("rdzv_endpoint")
    if where is not None:
        found = NO_PORT.fullmatch(where)
        if found and not several and ("nnodes" in values or LOOPBACK.fullmatch(where)):
            del values["rdzv_endpoint"]
            notes.append(f"--rdzv-endpoint {where} changes nothing: a run on one node finds its own port")
        else:
            bare = several and found and not found[2]
            values["rdzv_endpoint"] = endpoint(f"{where}:{RENDEZVOUS_PORT}" if bare else where)
    if "master_port" in values and "master_addr" not in values and not several:
        del values["master_port"]
        notes.append("--master-port changes nothing without --master-addr: a run on one node finds its own port")
    _settle_config(values, notes)


def _settle_alone(values: dict[str, Any], notes: list[str]) -> None:
    """--standalone, and a loopback endpoint without a port, mean this node alone, as with torchrun: also where a job
    manager has started the launcher on several nodes."""
    if "nnodes" in values or values.get("hosts"):
        return
    if (standalone := no_effect("--standalone", "")) in notes:
        notes[notes.index(standalone)] = "--standalone means this node alone, which has a rendezvous of its own"
        values["nnodes"] = (1, 1)
    elif LOOPBACK.fullmatch(where := values.get("rdzv_endpoint", "")):
        notes.append(f"--rdzv-endpoint {where} means this node alone, which finds its own port")
        values["nnodes"] = (1, 1)
        del values["rdzv_endpoint"]


def _settle_backend(notes: list[str], environ: Mapping[str, str]) -> None:
    """Refuse a backend in PET_RDZV_BACKEND that --rdzv-backend refuses, unless the command line names one.

    Errors: OptionError.
    """
    value = environ.get("PET_RDZV_BACKEND", "").strip()
    if value in HERE["--rdzv-backend"] or any(note.startswith(("--rdzv-backend ", "--standalone ")) for note in notes):
        return
    raise OptionError(
        f"PET_RDZV_BACKEND={value[:200]!r} in the environment has no counterpart here: {NO_EFFECT['--rdzv-backend']}"
    )


def _settle_config(values: dict[str, Any], notes: list[str]) -> None:
    """Turn --rdzv-conf into the launcher's values, and settings without effect into notes."""
    # The number of nodes may also come from variables, which are read later; a run on one node does not use the values.
    alone = values.get("nnodes") == (1, 1)
    for key, value in values.pop("rdzv_conf", {}).items():
        if not alone and key in JOIN and value.isdecimal() and int(value[:9]) > 0:
            values.setdefault("rdzv_timeout", int(value[:9]))
        elif not alone and key == "last_call_timeout" and value.isdecimal():
            values["last_call"] = int(value[:9])
        else:
            notes.append(f"{key} of --rdzv-conf changes nothing" + (" on one node" if alone else ""))
