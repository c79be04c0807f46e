"""The small torch-free base of the other packages: errors, command line, files, host memory, redaction."""

__version__ = "0.1.0"
"""Version of all four packages, which are released together; pyproject.toml has the same."""
