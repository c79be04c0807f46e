"""The library: what the bundled trainer promises, for a training loop of one's own. See docs/library.md and run.py."""
