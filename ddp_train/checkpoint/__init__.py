"""Checkpoints: their format, integrity, what they hold, and the code that writes and reads them."""
