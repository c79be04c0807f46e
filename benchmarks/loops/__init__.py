"""The same training loop written four times, for `python -m benchmarks library_loops`."""
