"""The library: the bundled trainer's guarantees for a user's own training loop. See docs/library.md and run.py."""
