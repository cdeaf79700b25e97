"""Timings against reference implementations, paired in one process: `python -m benchmarks --list`."""
