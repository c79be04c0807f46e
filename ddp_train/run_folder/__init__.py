"""The folder of a run: claimed, locked, filled, marked as done."""
