"""Whole runs: real vLLM, real Ray, several ranks, killed processes."""
