"""A planned run: starts, watches and ends the ranks."""
