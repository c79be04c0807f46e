"""Measurements, each run with one command and kept as JSON under benchmarks/results/."""

from ddp_core.missing_packages import leave_without

# Each of them is a program, and imports these before it could say what is missing.
leave_without("torch", "numpy", "psutil", "rich", "yaml")
