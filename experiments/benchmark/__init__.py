"""Measures: see `python -m experiments.benchmark --help`."""
