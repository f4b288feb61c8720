"""Faults of real servers, beside peers: `python -m benchmarks.faults`."""
