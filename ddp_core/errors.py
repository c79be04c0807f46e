"""Every error that the programs here answer for: raised where the mistake is seen, printed by `main`.

Exception
|-- UserError            a mistake that the user can fix: one line, exit status 2
|   |-- OptionError      on a command line
|   |-- SharedError      the same mistake on several ranks, of which one prints it
|   `-- TopologyError    about GPUs, the driver, or a topology file
|       |-- DriverError  (gpu_topology.driver.library); StuckDriverError: exit status 1
|       `-- SelectionError (gpu_topology.select.select)
|-- PreflightError       the check before a run failed: exit status 1
`-- TrainingDiverged     a loss or gradient is not finite: exit status 1
BaseException
`-- Stopped              a signal ended the run in good order
"""

from __future__ import annotations

LONGEST, HEAD, TAIL = 900, 600, 250
"""Characters of a message: a longer one keeps its head and its tail."""


_JOINERS = "\u200c\u200d"
"""Parts of words in some scripts, and of some emoji."""


class UserError(Exception):
    """One line that names the option or file, its value and what is accepted.

    `remedy`: what to do, where known; `speaks`: whether this process prints it, where several make the same mistake.
    """

    status = 2

    def __init__(self, message: str = "", remedy: str | None = None, *, speaks: bool = True) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.speaks = speaks

    def __str__(self) -> str:
        return one_line(super().__str__())


class OptionError(UserError):
    """On a command line: the option, its value and what is accepted."""


class SharedError(UserError):
    """The same UserError on several ranks, of which one `speaks`."""

    def __init__(self, message: str, *, speaks: bool) -> None:
        super().__init__(message, speaks=speaks)


class TopologyError(UserError):
    """About GPUs, the driver, or a topology file."""


class PreflightError(Exception):
    """The run cannot start: one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class TrainingDiverged(Exception):
    """The loss or a gradient is not finite: one line with what to try."""


class Stopped(BaseException):
    """A signal ended the run in good order. Not an Exception: handlers around a user's image or model let it through.

    status: of the process. together: on all ranks alike, after a checkpoint; else this process alone, with nothing to
    save.
    """

    def __init__(self, status: int, words: str = "", *, together: bool = False) -> None:
        super().__init__(words)
        self.status, self.together = status, together


def line_of(error: UserError) -> str:
    """What a program prints of it: `error: what is wrong; what to do`."""
    return f"error: {error}" + (f"; {error.remedy}" if error.remedy else "")


def one_line(text: str) -> str:
    """`text` with its line breaks as blanks, other unprintable characters as escapes, and the middle of a very long one
    left out."""
    if len(text) > LONGEST:
        text = f"{text[:HEAD]} [...] {text[-TAIL:]}"
    return printable(" ".join(part.strip() for part in text.splitlines()))


def printable(text: str) -> str:
    """`text`, such as the name of a file, with line breaks and other characters that are not printed as escapes."""
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode("ascii") for c in text)
