"""Measurements of the pool; each is a command, `python -m benchmarks.NAME --help`."""
