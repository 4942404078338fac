"""Reward functions, and the pool that survives bad ones."""
