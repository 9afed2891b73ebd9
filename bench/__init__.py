"""Benchmarks: ``python -m plugrad.bench`` and ``pytest bench``."""
