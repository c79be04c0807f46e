"""A planned run: the ranks started, watched and ended."""
