"""Checkpoints: their format, integrity, what they hold, and who writes and reads them."""
