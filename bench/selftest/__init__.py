"""Seeded bugs that `asyncrl selftest` has to find."""
