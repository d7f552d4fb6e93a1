"""Benchmarks: each measures the product against a peer that runs here and now, and ends with one JSON line (see `bench/report.py`)."""
