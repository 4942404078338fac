"""Benchmarks, see ../README.md."""
