"""The errors that a user can mend."""

from __future__ import annotations

from ddp_core.one_line import one_line

__all__ = ["SharedError", "UserError"]


class UserError(Exception):
    """A mistake the user can mend: one line naming the option or file, its value and what is accepted."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class SharedError(UserError):
    """The same UserError on several ranks, of which one `speaks`."""

    def __init__(self, message: str, *, speaks: bool) -> None:
        super().__init__(message)
        self.speaks = speaks
