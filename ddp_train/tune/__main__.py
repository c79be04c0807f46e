"""`python -m ddp_train.tune search SPACE.yaml --out DIR`; a mistake is one line on stderr and status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ddp_core.cli import INTERRUPTED, CommandLine, exit_status
from ddp_core.errors import OptionError, UserError
from ddp_train.tune.search import Search, Settings, search_table
from ddp_train.tune.space import OptunaSampler, read_space

EPILOG = "Options of launch.py and of the trainer that all trials share come at the end, after --."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    at = words.index("--") if "--" in words else len(words)
    status = exit_status(lambda: _search(_parser().parse_args(words[:at]), tuple(words[at + 1 :])))
    if status == INTERRUPTED:
        print("ended; the same command continues the search", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    """The command line of `python -m ddp_train.tune`."""
    parser = CommandLine(prog="python -m ddp_train.tune", description="Measurements that choose settings.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    search = commands.add_parser("search", help="try sets of options, each in a run of its own", epilog=EPILOG)
    add = search.add_argument
    add("space", metavar="SPACE.yaml", type=Path, help="options, their values or ranges: see ddp_train/tune/space.py")
    add("--out", metavar="DIR", type=Path, required=True, help="folder of the search; the same command continues there")
    add("--trials", metavar="N", type=_whole("--trials"), default=20, help="sets of options to try [20]")
    add("--epochs", metavar="N", type=_whole("--epochs"), default=10, help="epochs of a full run [10]")
    methods = ("random", "halving")
    add("--method", choices=methods, default="halving", help="halving ends the worse trials early [halving]")
    first = "halving: epochs before the first cut [epochs / eta^2]"
    add("--first-epochs", metavar="N", type=_whole("--first-epochs"), help=first)
    add("--eta", metavar="N", type=_whole("--eta"), default=3, help="halving: one trial of so many continues [3]")
    add("--seed", metavar="N", type=int, default=0, help="seed of the draws [0]")
    add("--sampler", choices=("own", "optuna"), default="own", help="optuna: its TPE draws, with --method random [own]")
    return parser


def _search(arguments: argparse.Namespace, shared: tuple[str, ...]) -> int:
    """Run or continue a search; returns the exit status."""
    space = read_space(arguments.space)
    halving = arguments.method == "halving"
    if arguments.eta < 2:
        raise UserError("--eta takes a whole number of at least 2")
    if not halving and arguments.first_epochs is not None:
        raise UserError("--first-epochs is for --method halving")
    first = arguments.first_epochs or max(1, arguments.epochs // arguments.eta**2)
    settings = Settings(
        space=arguments.space.read_text(encoding="utf-8"),
        method=arguments.method,
        trials=arguments.trials,
        epochs=arguments.epochs,
        seed=arguments.seed,
        eta=arguments.eta,
        first_epochs=first if halving else None,
        words=shared,
    )
    sampler = None
    if arguments.sampler == "optuna":
        if halving:
            raise UserError("--sampler optuna draws from finished trials: give --method random")
        sampler = OptunaSampler(space, arguments.out, arguments.seed)
    search = Search(settings, space, arguments.out, sampler)
    search.run(lambda line: print(line, file=sys.stderr, flush=True))
    return _end(search)


def _end(search: Search) -> int:
    """Print the results and draw them; returns the exit status."""
    from rich.console import Console

    from ddp_train.plots.style import save_if_possible
    from ddp_train.plots.tuning import search_figure

    if all(trial.best is None for trial in search.trials.values()):
        print("error: every trial failed; the lines above say why", file=sys.stderr)
        return 1
    Console(highlight=False).print(search_table(search.ranking))
    picture = search.folder / "search.png"
    scores = [(trial.values, trial.best, max(trial.scores)) for trial in search.ranking]
    drawn = save_if_possible(lambda: search_figure(scores), picture)
    best = search.ranking[0]
    print(f"best: trial {best.number + 1}, in {search.folder_of(best)}{f'; picture: {picture}' * bool(drawn)}")
    return 0


def _whole(option: str) -> Callable[[str], int]:
    """A parser of whole numbers for an option."""

    def number(text: str) -> int:
        """Parse one number. Errors: OptionError."""
        if not text.isdecimal() or not 1 <= int(text[:9]) <= 1_000_000:
            raise OptionError(f"{option}: {text!r} is not a whole number from 1 to 1000000")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
