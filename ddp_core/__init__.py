"""The small torch-free ground of the other packages: errors, command line, files, host memory, redaction."""

__version__ = "0.1.0"
"""Of all four packages, which are released together; pyproject.toml has the same."""
