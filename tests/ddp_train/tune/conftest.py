"""The fixture that runs the repository's commands."""
