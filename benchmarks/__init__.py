"""Measurements, each run with one command and kept as JSON under benchmarks/results/."""
