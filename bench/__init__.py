"""Benchmarks: what they measure and how to read it stands in README.md."""
