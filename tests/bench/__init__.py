"""Benchmarks: each measures the product beside a baseline in the same run, on this machine."""
