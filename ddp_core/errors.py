"""The errors that these programs report in one line: raised where the mistake is found, printed by `main`.

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
`-- Stopped              a signal ended the run cleanly
"""

from __future__ import annotations

LONGEST, HEAD, TAIL = 900, 600, 250
"""Most characters of a message, and how many a longer one keeps of its beginning and of its end."""


_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: unprintable to Python, but parts of words in some scripts and of some emoji."""


class UserError(Exception):
    """One line that names the option or file, its value and what is accepted.

    `remedy`: what to do, where known; `speaks`: whether this process prints the error, where several raise the same.
    """

    status = 2

    def __init__(self, message: str = "", remedy: str | None = None, *, speaks: bool = True) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.speaks = speaks

    def __str__(self) -> str:
        return one_line(super().__str__())


class OptionError(UserError):
    """A mistake on a command line: names the option, its value and what is accepted."""


class SharedError(UserError):
    """A UserError that several ranks raise alike; only the rank with `speaks` prints it."""

    def __init__(self, message: str, *, speaks: bool) -> None:
        super().__init__(message, speaks=speaks)


class TopologyError(UserError):
    """A mistake about GPUs, the driver, or a topology file."""


class PreflightError(Exception):
    """The run cannot start: one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class TrainingDiverged(Exception):
    """The loss or a gradient is not finite: one line with what to try."""


class Stopped(BaseException):
    """A signal ended the run cleanly. Not an Exception: handlers around a user's image or model let it through.

    status: exit status of the process. together: whether all ranks stop, after a checkpoint; otherwise this process
    stops alone, with nothing to save.
    """

    def __init__(self, status: int, words: str = "", *, together: bool = False) -> None:
        super().__init__(words)
        self.status, self.together = status, together


def line_of(error: UserError) -> str:
    """The line that a program prints for an error: `error: what is wrong; what to do`."""
    return f"error: {error}" + (f"; {error.remedy}" if error.remedy else "")


def one_line(text: str) -> str:
    """`text` on one line: line breaks become blanks, other unprintable characters become escapes, and a text of more
    than LONGEST characters loses its middle."""
    if len(text) > LONGEST:
        text = f"{text[:HEAD]} [...] {text[-TAIL:]}"
    return printable(" ".join(part.strip() for part in text.splitlines()))


def printable(text: str) -> str:
    """`text`, such as a file name, with line breaks and other unprintable characters replaced by escapes."""
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode("ascii") for c in text)
