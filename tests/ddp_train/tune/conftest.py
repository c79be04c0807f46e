"""The fixture that runs the repository's commands."""

from tests.integration.conftest import command

__all__ = ["command"]
