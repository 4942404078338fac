"""Environments with turns: what one is, and the processes that they run in."""
