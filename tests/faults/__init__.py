"""Faults injected for real: processes killed, stopped and starved at points that a seed chooses."""
